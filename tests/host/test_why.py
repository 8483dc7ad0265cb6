"""`ig trace tcpconnect --why`: the cause of every attempt that did not go well, and no other."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ig.commands.setup import EXAMINING
from ig.kernel import netns
from ig.kernel.capabilities import Capability
from tests.features import has_drop_reasons
from tests.host.engine import Engine
from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import until

NETWORK = {"4": "192.0.2.", "6": "2001:db8:2::"}
ROUTED = {"4": "203.0.113.", "6": "2001:db8:113::"}
PEER = {"4": "198.51.100.7", "6": "2001:db8:51::7"}
PREFIX = {"4": "/32", "6": "/128"}
TABLES = {"4": "iptables", "6": "ip6tables"}
REASONS = has_drop_reasons()
"""Whether this kernel says why it drops a segment, so that causes are seen."""
SEEN = "seen" if REASONS else "likely"

Cause = tuple[str, str, str]
"""The outcome, the kind of the cause, and its confidence."""


def linked(new_namespace: Callable[[], Namespace]) -> tuple[Namespace, Namespace]:
    """Return two namespaces that reach each other on 192.0.2.0/24 and 2001:db8:2::/64."""
    here, there = new_namespace(), new_namespace()
    here.link(there)
    for namespace, last in ((here, 1), (there, 2)):
        device = json.loads(namespace.ip("-j", "link", "show", "type", "veth"))[0]["ifname"]
        namespace.ip("addr", "add", f"{NETWORK['6']}{last}/64", "dev", device, "nodad")
    return here, there


class Traced:
    """A trace with --why, and the attempts of namespaces in it."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer

    def attempt(self, near: Namespace, host: str, port: int, *options: object) -> Report:
        """Connect from a namespace, and return the event of how that ended."""
        begin = len(self.tracer.events)
        near.connect(host, port, "--kind", "6" if ":" in host else "4", *options)

        def ended(event: Report) -> bool:
            place = event["netns_id"], event["dst"]["addr"], event["dst"]["port"]
            return place == (near.inode, host, port) and event["outcome"] != "unanswered"

        until(lambda: any(map(ended, self.tracer.events[begin:])), f"the connect to {port}")
        return next(filter(ended, self.tracer.events[begin:]))


def told(event: Report) -> Cause:
    """Return what an event says of its cause."""
    return event["outcome"], event["cause"]["kind"], event["cause"]["confidence"]


@pytest.fixture
def traced(start_ig: Callable[..., Tracer]) -> Traced:
    """Trace all connects of other network namespaces than the host's, with their causes."""
    others = f"netns!={netns.own()}"
    return Traced(start_ig("trace", "tcpconnect", "--host", "--why", "-o", "json", "-F", others))


def deny(namespace: Namespace, version: str, chain: str, port: int, *target: object) -> None:
    """Let a rule deny what goes to a port."""
    rule = ("-A", chain, "-p", "tcp", "--dport", port, "-j", *target)
    namespace.run(TABLES[version], *rule)


@pytest.mark.parametrize("how", [(), ("--nonblocking", "--timeout", 1.5)], ids=("blocking", "not"))
@pytest.mark.parametrize("version", ["4", "6"])
def test_why_shows_what_the_far_end_and_firewalls_on_this_host_did(
    new_namespace: Callable[[], Namespace], traced: Traced, version: str, how: tuple[object, ...]
) -> None:
    here, there = linked(new_namespace)
    far = f"{NETWORK[version]}2"
    inside = there.serve("::1" if version == "6" else "127.0.0.1")
    good = there.serve(far)
    for port, target in enumerate((("DROP",), ("REJECT",)), 81):
        deny(there, version, "INPUT", port, *target)
        deny(here, version, "OUTPUT", port + 10, *target)
    deny(there, version, "INPUT", 83, "REJECT", "--reject-with", "tcp-reset")
    silent = "abandoned" if how else "timed-out"
    ways = how or ("--syn-count", 1)
    expected = {
        good: ("established", "", "", ""),
        9: ("refused", "no-listener", SEEN, there),
        inside: ("refused", "listens-elsewhere", SEEN, there),
        81: (silent, "firewall-drop-in", SEEN, there),
        82: ("refused", "firewall-reject", SEEN, there),
        83: ("refused", "firewall-reject", SEEN, there),
        91: (silent, "firewall-drop-out", SEEN, here),
        92: ("refused", "firewall-reject", SEEN, here),
    }
    for port, (outcome, kind, confidence, where) in expected.items():
        event = traced.attempt(here, far, port, *ways)
        assert told(event) == (outcome, kind, confidence), event
        if isinstance(where, Namespace):
            assert event["cause"]["where"].startswith(f"network namespace {where.inode}")


@pytest.mark.parametrize("version", ["4", "6"])
def test_why_shows_routes_neighbours_and_peers(
    new_namespace: Callable[[], Namespace], traced: Traced, version: str
) -> None:
    here, _ = linked(new_namespace)
    kinds = ("unreachable", "prohibit", "blackhole")
    for last, kind in enumerate(kinds, 1):
        here.ip(f"-{version}", "route", "add", kind, f"{ROUTED[version]}{last}{PREFIX[version]}")
    for last in range(1, 5):
        event = traced.attempt(here, f"{ROUTED[version]}{last}", 80)
        assert told(event) == ("failed", "route", "seen")
    here.peer("--answer", "reset")
    assert told(traced.attempt(here, PEER[version], 80)) == ("refused", "peer-refused", "likely")
    event = traced.attempt(here, f"{NETWORK[version]}9", 80)
    assert event["cause"]["kind"] == "neighbour"
    assert f"{NETWORK[version]}9" in event["cause"]["detail"]


def test_why_shows_silence_and_who_gave_up(namespace: Namespace, traced: Traced) -> None:
    namespace.peer("--answer", "nothing")
    event = traced.attempt(namespace, PEER["4"], 80, "--nonblocking", "--timeout", 0.3)
    assert told(event) == ("abandoned", "closed-by-caller", "seen")
    event = traced.attempt(namespace, PEER["4"], 80, "--syn-count", 1)
    assert told(event) == ("timed-out", "no-answer", "likely")
    unanswered = [
        each
        for each in traced.tracer.events
        if each["outcome"] == "unanswered" and each["netns_id"] == namespace.inode
    ]
    assert {each["cause"]["kind"] for each in unanswered} == {"no-answer"}


def test_why_shows_full_accept_queues(namespace: Namespace, traced: Traced) -> None:
    full = namespace.serve("127.0.0.1", 0, "--deaf", "--backlog", 0)
    assert traced.attempt(namespace, "127.0.0.1", full)["outcome"] == "established"
    event = traced.attempt(namespace, "127.0.0.1", full, "--syn-count", 1)
    assert event["cause"]["kind"] == "accept-queue-full"
    assert event["cause"]["where"].startswith(f"network namespace {namespace.inode}")


@pytest.mark.parametrize("version", ["4", "6"])
def test_why_shows_that_no_local_port_is_free(
    namespace: Namespace, traced: Traced, version: str
) -> None:
    loopback = "::1" if version == "6" else "127.0.0.1"
    port = namespace.serve(loopback)
    namespace.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40000")
    held = namespace.start("connect", loopback, port, "--kind", version, "--hold")
    held.reports.ready()
    traced.tracer.wait_for(lambda event: event["dst"]["port"] == port)
    event = traced.attempt(namespace, loopback, port)
    assert told(event) == ("failed", "local-port-exhausted", "seen")
    assert event["error"] == "EADDRNOTAVAIL"


def test_why_shows_what_a_slow_connect_waited_for(
    new_namespace: Callable[[], Namespace], traced: Traced
) -> None:
    here, there = linked(new_namespace)
    port = there.serve("192.0.2.2")
    deny(there, "4", "INPUT", port, "DROP")
    connecting = here.start("connect", "192.0.2.2", port)
    traced.tracer.wait_for(
        lambda event: event["outcome"] == "unanswered" and event["netns_id"] == here.inode
    )
    there.run("iptables", "-F", "INPUT")
    connecting.finished()
    (event,) = traced.tracer.wait_for(
        lambda event: event["outcome"] == "established" and event["netns_id"] == here.inode
    )
    assert told(event) == ("established", "syn-lost-repeated", SEEN)
    if REASONS:
        assert event["cause"]["where"].startswith(f"network namespace {there.inode}")
        assert "NETFILTER_DROP" in event["cause"]["detail"]


def test_why_says_nothing_of_good_connections(namespace: Namespace, traced: Traced) -> None:
    port = namespace.serve("127.0.0.1")
    namespace.connect("127.0.0.1", port, "--count", 1009)
    events = traced.tracer.wait_for(lambda event: event["netns_id"] == namespace.inode, 1009)
    assert Counter(told(event) for event in events) == {("established", "", ""): 1009}
    assert traced.tracer.stop()[1:] == ("", 0)


LOADED = """
import sys
from ig.bpf.loader import Loading
print(*Loading(sys.argv[1], {"TRACE_CONNECT": 1}).result().tracepoints)
"""


def test_why_alone_loads_the_programs_of_signals() -> None:
    hooks = [
        set(subprocess.check_output([sys.executable, "-c", LOADED, each], text=True).split())
        for each in ("tcp.c", "tcp_why.c")
    ]
    assert not {"kfree_skb", "icmp_send", "tcp_send_reset", "tcp_receive_reset"} & hooks[0]
    assert hooks[0] < hooks[1]
    assert {"tcp_receive_reset", *(("kfree_skb",) if REASONS else ())} <= hooks[1]


def test_why_and_summary_exclude_each_other(start_ig: Callable[..., Tracer]) -> None:
    tracer = start_ig("trace", "tcpconnect", "--why", "--summary", ready=False)
    _, stderr, code = tracer.finished()
    assert code == 2
    assert "--why" in stderr
    assert "--summary" in stderr


def test_why_keeps_the_privileges_that_looking_at_this_host_takes(traced: Traced) -> None:
    kept = (Capability.CAP_BPF, *EXAMINING)
    threads = Path(f"/proc/{traced.tracer.process.pid}/task").iterdir()
    texts = [(thread / "status").read_text() for thread in threads]
    held = {int(text.partition("CapPrm:\t")[2].split()[0], 16) for text in texts}
    assert held == {sum(1 << each for each in kept)}


@pytest.mark.needs("drop reasons")
def test_why_finds_the_kind_of_each_of_200_failures_that_are_mixed(
    new_namespace: Callable[[], Namespace], traced: Traced
) -> None:
    here, there = linked(new_namespace)
    here.peer("--answer", "reset")
    there.peer("--answer", "nothing")
    there.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0")
    here.ip("route", "add", "198.51.100.128/25", "via", "192.0.2.2")
    here.ip("route", "add", "prohibit", "203.0.113.0/24")
    inside = there.serve("127.0.0.1")
    full = there.serve("192.0.2.2", 0, "--deaf", "--backlog", 0)
    assert traced.attempt(here, "192.0.2.2", full)["outcome"] == "established"
    deny(there, "4", "INPUT", 81, "DROP")
    deny(there, "4", "INPUT", 82, "REJECT")
    deny(here, "4", "OUTPUT", 91, "DROP")
    expected = {
        ("192.0.2.2", 9): "no-listener",
        ("192.0.2.2", inside): "listens-elsewhere",
        ("192.0.2.2", full): "accept-queue-full",
        ("192.0.2.2", 81): "firewall-drop-in",
        ("192.0.2.2", 82): "firewall-reject",
        ("192.0.2.2", 91): "firewall-drop-out",
        ("203.0.113.1", 80): "route",
        ("192.0.2.9", 80): "neighbour",
        (PEER["4"], 80): "peer-refused",
        ("198.51.100.200", 80): "closed-by-caller",
    }
    gives_up = "198.51.100.200"
    targets = [f"{host}{'!' if host == gives_up else ''}:{port}:20" for host, port in expected]
    here.start("failures", 10, *targets).finished()
    events = traced.tracer.wait_for(
        lambda event: (
            event["netns_id"] == here.inode
            and event["outcome"] not in ("established", "unanswered")
        ),
        200,
    )
    found = Counter(
        (event["dst"]["addr"], event["dst"]["port"], event["cause"]["kind"]) for event in events
    )
    assert found == {(*place, kind): 20 for place, kind in expected.items()}


def test_why_is_not_disturbed_by_a_flood_of_dropped_segments(
    new_namespace: Callable[[], Namespace], traced: Traced
) -> None:
    here, flooded = new_namespace(), new_namespace()
    deny(flooded, "4", "INPUT", 80, "DROP")
    deny(here, "4", "INPUT", 81, "DROP")
    port = here.serve("127.0.0.1")
    flood = flooded.start("flood", "127.9.9.9", "127.0.0.1")
    flood.reports.ready()
    here.connect("127.0.0.1", 9, "--count", 101)
    here.connect("127.0.0.1", port, "--count", 101)
    here.start("failures", 10, "127.0.0.1:81:11").finished()
    assert flood.process.poll() is None  # it went on all the time
    flood.stop()
    events = traced.tracer.wait_for(
        lambda event: event["netns_id"] == here.inode and event["outcome"] != "unanswered", 213
    )
    assert Counter(map(told, events)) == {
        ("refused", "no-listener", SEEN): 101,
        ("established", "", ""): 101,
        ("timed-out", "firewall-drop-in", SEEN): 11,
    }
    _, stderr, code = traced.tracer.stop()
    assert "lost" not in stderr
    assert code == 0


def test_why_names_containers(ig: Callable[..., Tracer], engine: Engine) -> None:
    web = engine.idle("web")
    database, port = engine.serve("db")
    slow = engine.program("slow", "serve", "0.0.0.0", 0, "--deaf", "--backlog", 0)
    full = slow.reports.ready()["port"]
    tracer = ig("trace", "tcpconnect", "-c", web.name, "--why")

    def cause(address: str, number: int, *options: object) -> tuple[str, str]:
        engine.connect(web, address, number, *options)
        (event,) = tracer.wait_for(
            lambda event: (
                (event["dst"]["addr"], event["dst"]["port"]) == (address, number)
                and event["outcome"] not in ("established", "unanswered")
            )
        )
        return event["cause"]["kind"], event["cause"]["where"]

    far, address = f"container {database.name}", database.address
    assert cause(address, port % 60000 + 1) == ("no-listener", far)
    engine.connect(web, slow.address, full)
    slow.container.pause()
    try:
        found = cause(slow.address, full, "--syn-count", 1)
    finally:
        slow.container.unpause()
    assert found == ("container-paused", f"container {slow.name}")
    database.container.remove(force=True)
    assert cause(address, port, "--syn-count", 1) == ("container-gone", far)
