"""`ig trace tcpconnect --why`: the cause of every attempt that did not go well, and no other."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ig.commands.setup import EXAMINING
from ig.kernel.capabilities import Capability
from tests.host.namespace import Namespace
from tests.host.test_explain import NETWORK, linked
from tests.host.tracer import Tracer
from tests.host.why import HOW, LOOPBACK, PEER, REASONS, SEEN, VERSION, Traced, deny, told

pytestmark = pytest.mark.interrupts

ROUTED = {"4": "203.0.113.", "6": "2001:db8:113::"}
PREFIX = {"4": "/32", "6": "/128"}
REJECTS = {
    "4": ("tcp-reset", "icmp-host-unreachable", "icmp-admin-prohibited"),
    "6": ("tcp-reset", "icmp6-addr-unreachable", "icmp6-adm-prohibited"),
}


@pytest.mark.shows(
    "no-listener", "listens-elsewhere", "firewall-drop-in", "firewall-drop-out", "firewall-reject"
)
@HOW
@VERSION
def test_why_shows_what_the_far_end_and_firewalls_on_this_host_did(
    new_namespace: Callable[[], Namespace], traced: Traced, version: str, how: tuple[object, ...]
) -> None:
    here, there = linked(new_namespace)
    far = f"{NETWORK[version]}2"
    inside = there.serve(LOOPBACK[version])
    good = there.serve(far)
    for port, target in enumerate((("DROP",), ("REJECT",)), 81):
        deny(there, version, "INPUT", port, *target)
        deny(here, version, "OUTPUT", port + 10, *target)
    for port, how_rejected in zip((83, 84, 85), REJECTS[version], strict=True):
        deny(there, version, "INPUT", port, "REJECT", "--reject-with", how_rejected)
    silent = "abandoned" if how else "timed-out"
    ways = how or ("--syn-count", 1)
    expected = {
        good: ("established", "", "", ""),
        9: ("refused", "no-listener", SEEN, there),
        inside: ("refused", "listens-elsewhere", SEEN, there),
        81: (silent, "firewall-drop-in", SEEN, there),
        82: ("refused", "firewall-reject", SEEN, there),
        83: ("refused", "firewall-reject", SEEN, there),
        84: ("unreachable", "firewall-reject", SEEN, there),
        85: ("unreachable", "firewall-reject", SEEN, there),
        91: (silent, "firewall-drop-out", SEEN, here),
        92: ("refused", "firewall-reject", SEEN, here),
    }
    for port, (outcome, kind, confidence, where) in expected.items():
        event = traced.attempt(here, far, port, *ways)
        assert told(event) == (outcome, kind, confidence), event
        if isinstance(where, Namespace):
            assert event["cause"]["where"].startswith(f"network namespace {where.inode}")


@pytest.mark.shows("route", "neighbour", "peer-refused")
@HOW
@VERSION
def test_why_shows_routes_neighbours_and_peers(
    new_namespace: Callable[[], Namespace], traced: Traced, version: str, how: tuple[object, ...]
) -> None:
    here, _ = linked(new_namespace)
    here.peer("--answer", "reset")
    kinds = ("unreachable", "prohibit", "blackhole")
    for last, kind in enumerate(kinds, 1):
        here.ip(f"-{version}", "route", "add", kind, f"{ROUTED[version]}{last}{PREFIX[version]}")
    for last in range(1, 5):
        event = traced.attempt(here, f"{ROUTED[version]}{last}", 80, *how)
        assert told(event) == ("failed", "route", "seen")
        assert event["cause"]["where"].startswith(f"network namespace {here.inode}")
    event = traced.attempt(here, PEER[version], 80, *how)
    assert told(event) == ("refused", "peer-refused", "likely")
    assert event["cause"]["where"] == PEER[version]
    event = traced.attempt(here, f"{NETWORK[version]}9", 80, *how)
    assert event["cause"]["kind"] == "neighbour"
    assert f"{NETWORK[version]}9" in event["cause"]["detail"]
    assert f"network namespace {here.inode}" in event["cause"]["where"]


def test_why_knows_rules_as_they_are_at_each_failure(
    new_namespace: Callable[[], Namespace], traced: Traced
) -> None:
    here, there = linked(new_namespace)
    assert traced.attempt(here, "192.0.2.2", 80)["cause"]["kind"] == "no-listener"
    for number, port in enumerate((81, 82, 83), 1):
        deny(there, "4", "INPUT", port, "REJECT")
        event = traced.attempt(here, "192.0.2.2", port)
        assert told(event) == ("refused", "firewall-reject", SEEN)
        assert f"chain INPUT, rule {number} (handle" in event["cause"]["detail"]


@pytest.mark.shows("closed-by-caller", "no-answer")
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


@pytest.mark.shows("accept-queue-full")
@HOW
@VERSION
def test_why_shows_full_accept_queues(
    namespace: Namespace, traced: Traced, version: str, how: tuple[object, ...]
) -> None:
    loopback = LOOPBACK[version]
    full = namespace.serve(loopback, 0, "--deaf", "--backlog", 0)
    assert traced.attempt(namespace, loopback, full)["outcome"] == "established"
    event = traced.attempt(namespace, loopback, full, *(how or ("--syn-count", 1)))
    assert event["cause"]["kind"] == "accept-queue-full"
    assert event["cause"]["where"].startswith(f"network namespace {namespace.inode}")


@pytest.mark.shows("peer-reset")
@VERSION
def test_why_shows_that_the_peer_reset_a_connection_that_was_not_established(
    namespace: Namespace, traced: Traced, version: str
) -> None:
    namespace.peer("--answer", "open-and-reset")
    event = traced.attempt(namespace, PEER[version], 80)
    assert told(event) == ("failed", "peer-reset", "seen")
    assert event["error"] == "ECONNRESET"
    assert event["cause"]["where"] == PEER[version]


@HOW
@VERSION
def test_why_says_nothing_of_connections_that_are_reset_later(
    namespace: Namespace, traced: Traced, version: str, how: tuple[object, ...]
) -> None:
    port = namespace.serve(LOOPBACK[version], 0, "--reset")
    event = traced.attempt(namespace, LOOPBACK[version], port, *how)
    assert told(event) == ("established", "", "")


@pytest.mark.shows("local-port-exhausted")
@HOW
@VERSION
def test_why_shows_that_no_local_port_is_free(
    namespace: Namespace, traced: Traced, version: str, how: tuple[object, ...]
) -> None:
    loopback = LOOPBACK[version]
    port = namespace.serve(loopback)
    namespace.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40000")
    held = namespace.start("connect", loopback, port, "--kind", version, "--hold")
    held.reports.ready()
    traced.tracer.wait_for(lambda event: event["dst"]["port"] == port)
    event = traced.attempt(namespace, loopback, port, *how)
    assert told(event) == ("failed", "local-port-exhausted", "seen")
    assert event["error"] == "EADDRNOTAVAIL"
    assert event["cause"]["where"].startswith(f"network namespace {namespace.inode}")


@pytest.mark.shows("syn-lost-repeated")
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
    assert told(traced.noted(event)) == ("established", "syn-lost-repeated", SEEN)
    if REASONS:
        assert event["cause"]["where"].startswith(f"network namespace {there.inode}")
        assert "NETFILTER_DROP" in event["cause"]["detail"]


@pytest.mark.shows("syn-lost-repeated")
def test_why_does_not_say_who_lost_a_syn_that_the_kernel_drops_without_a_reason(
    namespace: Namespace, traced: Traced
) -> None:
    server = namespace.start("serve", "127.0.0.1", 0, "--deaf", "--backlog", 0)
    full = server.reports.ready()["port"]
    assert traced.attempt(namespace, "127.0.0.1", full)["outcome"] == "established"
    connecting = namespace.start("connect", "127.0.0.1", full)
    traced.tracer.wait_for(
        lambda event: event["outcome"] == "unanswered" and event["dst"]["port"] == full
    )
    server.process.send_signal(signal.SIGUSR1)
    connecting.finished()
    _, event = traced.tracer.wait_for(
        lambda event: event["outcome"] == "established" and event["dst"]["port"] == full, 2
    )
    assert told(traced.noted(event)) == ("established", "syn-lost-repeated", "likely")
    assert event["cause"]["where"] == ""


@pytest.mark.shows("syn-lost-repeated")
@VERSION
def test_why_shows_that_a_peer_answered_late(
    namespace: Namespace, traced: Traced, version: str
) -> None:
    namespace.peer("--delay", 1500)
    event = traced.attempt(namespace, PEER[version], 80)
    assert told(event) == ("established", "syn-lost-repeated", SEEN)
    assert event["latency_raw"] >= 1_500_000_000
    if REASONS:
        assert event["cause"]["where"] == PEER[version]
        assert event["cause"]["detail"].startswith("1 repeated SYN: ")


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
