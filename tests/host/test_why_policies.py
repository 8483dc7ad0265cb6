"""`--why` where a policy of this host denies a call or drops a segment."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.cgroups import new_cgroup, unified
from tests.host.namespace import Namespace, Program, program
from tests.host.policies import denying, dropping_at, forbidding
from tests.host.test_explain import NETWORK, linked
from tests.host.why import HOW, LOOPBACK, PEER, REASONS, VERSION, Traced, told

pytestmark = pytest.mark.interrupts


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own, in the version 2 hierarchy."""
    with new_cgroup(unified()) as folder:
        yield folder


def within(cgroup: Path, namespace: Namespace, name: str, *arguments: object) -> Program:
    """Start a program in a cgroup and in a network namespace."""
    join = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
    return Program(["sh", "-c", join, "sh", *namespace.command(*program(name, *arguments))])


def place(namespace: Namespace) -> str:
    return f"network namespace {namespace.inode}"


@pytest.mark.shows("local-policy")
@HOW
@VERSION
def test_why_shows_that_a_program_of_the_cgroup_denied_the_call(
    namespace: Namespace, traced: Traced, cgroup: Path, version: str, how: tuple[object, ...]
) -> None:
    loopback = LOOPBACK[version]
    port = namespace.serve(loopback)

    def connect() -> None:
        within(cgroup, namespace, "connect", loopback, port, "--kind", version, *how).finished()

    with denying(cgroup, f"connect{version}"):
        event = traced.ended(namespace.inode, loopback, port, connect)
    assert told(event) == ("failed", "local-policy", "seen")
    assert event["error"] == "EPERM"
    assert event["cause"]["where"].startswith(place(namespace))
    assert told(traced.ended(namespace.inode, loopback, port, connect)) == ("established", "", "")


@pytest.mark.needs("drop reasons")
@pytest.mark.shows("local-policy")
@pytest.mark.parametrize("hook", ["egress", "ingress"])
@VERSION
def test_why_shows_that_a_program_of_the_cgroup_dropped_segments(
    new_namespace: Callable[[], Namespace], traced: Traced, cgroup: Path, version: str, hook: str
) -> None:
    here, there = linked(new_namespace)
    far = f"{NETWORK[version]}2"
    server = within(cgroup, there, "serve", far)
    port = server.reports.ready()["port"]
    with denying(cgroup, hook):  # of the server: the answer is dropped, or the SYN
        event = traced.attempt(here, far, port, "--syn-count", 1)
    if hook == "egress" and event["outcome"] == "established":
        assert told(event)[1:] == ("", "")  # older kernels let each SYN-ACK pass
    else:
        assert told(event) == ("timed-out", "local-policy", "seen")
        assert event["cause"]["where"].startswith(place(there))
        assert "cgroup" in event["cause"]["detail"]
        what = "the answer" if hook == "egress" else "the SYN"
        assert event["cause"]["detail"].startswith(f"{what} was dropped")
    server.stop()
    with denying(cgroup, hook):  # of the client
        attempt = ("connect", far, there.serve(far), "--kind", version, "--syn-count", 1)
        event = traced.ended(
            here.inode, far, attempt[2], lambda: within(cgroup, here, *attempt).finished()
        )
    assert told(event) == ("timed-out", "local-policy", "seen")
    assert event["cause"]["where"].startswith(place(here))


@pytest.mark.needs("BPF LSM")
@pytest.mark.shows("local-policy")
@VERSION
def test_why_shows_that_a_security_module_denied_the_call(
    namespace: Namespace, traced: Traced, version: str
) -> None:
    loopback = LOOPBACK[version]
    port = namespace.serve(loopback)
    client = namespace.start("connect", loopback, port, "--kind", version, "--on-signal")
    client.reports.ready()

    def connect() -> None:
        client.process.send_signal(signal.SIGUSR1)
        client.finished()

    with forbidding(client.pid):
        event = traced.ended(namespace.inode, loopback, port, connect)
    assert told(event) == ("failed", "local-policy", "seen")
    assert event["cause"]["where"].startswith(place(namespace))


@pytest.mark.needs("drop reasons", "tc")
@pytest.mark.shows("local-policy")
@pytest.mark.parametrize("hook", ["ingress", "egress"])
@VERSION
def test_why_shows_that_traffic_control_dropped_segments(
    new_namespace: Callable[[], Namespace], traced: Traced, version: str, hook: str
) -> None:
    here, there = linked(new_namespace)
    far = f"{NETWORK[version]}2"
    port = there.serve(far)
    (link,) = json.loads(there.ip("-j", "link", "show", "type", "veth"))
    device = link["ifname"]
    protocol, header = ("ipv6", "ip6") if version == "6" else ("ip", "ip")
    match = ("protocol", protocol, "u32", "match", header, "protocol", 6, "0xff")
    there.run("tc", "qdisc", "add", "dev", device, "clsact")
    there.run("tc", "filter", "add", "dev", device, hook, *match, "action", "drop")
    event = traced.attempt(here, far, port, "--syn-count", 1)
    assert told(event) == ("timed-out", "local-policy", "seen")
    assert event["cause"]["where"].startswith(place(there))
    assert f"tc {hook}" in event["cause"]["detail"]


@pytest.mark.needs("drop reasons", "netem")
@pytest.mark.shows("dropped")
def test_why_shows_that_a_queue_dropped_segments(
    new_namespace: Callable[[], Namespace], traced: Traced
) -> None:
    here, there = linked(new_namespace)
    port = there.serve("192.0.2.2")
    (link,) = json.loads(here.ip("-j", "link", "show", "type", "veth"))
    assert traced.attempt(here, "192.0.2.2", port)["outcome"] == "established"
    lossy = ("netem", "loss", "100%")
    here.run("tc", "qdisc", "add", "dev", link["ifname"], "root", *lossy)
    event = traced.attempt(here, "192.0.2.2", port, "--syn-count", 1)
    assert told(event) == ("timed-out", "dropped", "seen")
    assert event["cause"]["where"].startswith(place(here))
    assert "a queue of traffic control" in event["cause"]["detail"]


@pytest.mark.parametrize("device", ["lo", "veth"])
@VERSION
def test_why_blames_nobody_for_what_xdp_drops_without_a_reason(
    new_namespace: Callable[[], Namespace], traced: Traced, version: str, device: str
) -> None:
    here, there = linked(new_namespace)
    near, far = here, f"{NETWORK[version]}2"
    if device == "lo":
        near, far = there, LOOPBACK[version]
    else:
        (link,) = json.loads(there.ip("-j", "link", "show", "type", "veth"))
        device = link["ifname"]
    port = there.serve(far)
    assert traced.attempt(near, far, port)["outcome"] == "established"  # the neighbour is known
    with dropping_at(there, device):
        event = traced.attempt(near, far, port, "--syn-count", 1)
    assert told(event) == ("timed-out", "", "")


@pytest.mark.shows("firewall-drop-out", "no-answer")
def test_why_shows_that_connection_tracking_has_no_room_where_that_dropped_a_segment(
    namespace: Namespace, traced: Traced
) -> None:
    namespace.peer("--answer", "nothing")
    port = namespace.serve("127.0.0.1")
    assert told(traced.attempt(namespace, "127.0.0.1", port)) == ("established", "", "")
    # A rule that asks for states turns connection tracking on.
    namespace.run("iptables", "-A", "OUTPUT", "-m", "conntrack", "--ctstate", "NEW")
    most = int(namespace.run("sysctl", "-n", "net.netfilter.nf_conntrack_max"))
    namespace.start("track", most).finished()
    event = traced.attempt(namespace, "127.0.0.1", port, "--syn-count", 1)
    assert told(event) == ("timed-out", "firewall-drop-out", "likely")
    assert event["cause"]["where"].startswith(place(namespace))
    assert f"is full: {most:,} of {most:,} entries" in event["cause"]["detail"]
    namespace.run("iptables", "-t", "raw", "-A", "OUTPUT", "-d", PEER["4"], "-j", "NOTRACK")
    event = traced.attempt(namespace, PEER["4"], 80, "--syn-count", 1)
    kind = "no-answer" if REASONS else "firewall-drop-out"
    assert told(event) == ("timed-out", kind, "likely")
