"""`ig trace tcpconnect`: one event an attempt, with its true outcome."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE
from tests.host.watched import WatchedNamespace

pytestmark = pytest.mark.interrupts

Start = Callable[..., Tracer]
Watch = Callable[..., WatchedNamespace]


def seen_from(events: list[Report], namespace: Namespace) -> list[Report]:
    return [event for event in events if event["netns_id"] == namespace.inode]


def traced(start_ig: Start, *options: object) -> Tracer:
    return start_ig("trace", "tcpconnect", "--host", "-o", "json", *options)


def outcomes(events: list[Report]) -> list[str]:
    return [str(event["outcome"]) for event in events]


TOO_MANY = """
import os, resource, socket
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held, read, write, left = [], *os.pipe(), 70_001
while left > most - 99 and os.fork():
    left -= most - 99
for number in range(min(left, most - 99)):
    held.append(socket.socket())
    held[-1].setblocking(False)
    held[-1].connect_ex((f"127.0.0.{1 + number % 4}", 4243))
os.close(write)
os.read(read, 1)
"""


@pytest.mark.anywhere
def test_what_the_map_of_attempts_has_no_room_for_is_counted(
    start_ig: Start, namespace: Namespace
) -> None:
    # Nobody else's: the kernel has room for so many of all. The first test, before shared traces.
    namespace.drop(4243)
    # None may time out before the last begins, which takes minutes on a busy machine.
    many = ("net.ipv4.tcp_syn_retries=20", "net.ipv4.ip_local_port_range=1024 65535")
    namespace.run("sysctl", "-qw", *many)
    only = ("--port", 4243, "-F", f"netns=={namespace.inode}")
    # With --latency each attempt is one event, and all of these fit into the pipe.
    tracer = start_ig("trace", "tcpconnect", "--latency", "--host", "-o", "csv=outcome", *only)
    namespace.run("/usr/bin/python3", "-c", TOO_MANY, seconds=10 * PATIENCE)
    tracer.process.send_signal(signal.SIGINT)
    _, said, _ = tracer.finished(10 * PATIENCE)
    found = re.findall(r"(\d+) events lost so far: (.*)", said)
    lost = {cause: int(count) for count, cause in found}
    assert lost["too many connects were waiting for an answer"] > 0
    name, *told = map(str.strip, tracer.reports.lines)
    assert name == "outcome"
    assert set(told) <= {"abandoned", "unreachable"}
    assert len(told) + sum(lost.values()) == 70_001


@pytest.mark.parametrize("kind", ["4", "6", "mapped"])
def test_established_connect_is_reported_once_with_its_true_ends(
    watch: Watch, namespace: Namespace, kind: str
) -> None:
    address = "::1" if kind == "6" else "127.0.0.1"
    port = namespace.serve("::" if kind == "6" else "127.0.0.1")
    ig = watch("trace", "tcpconnect", "--latency")
    connect = (address, port, "--kind", kind, "--count", 7)
    made = namespace.connect(*connect) + namespace.connect(*connect, "--nonblocking")
    events = ig.events()
    assert [event["src"]["port"] for event in events] == [each["source_port"] for each in made]
    for event, report in zip(events, made, strict=True):
        assert event["outcome"] == "established"
        assert event["type"] == "connect"
        assert event["src"]["addr"] == address
        assert event["dst"] == {
            "addr": address,
            "port": port,
            "proto": "TCP",
            "version": 6 if kind == "6" else 4,
            "name": "",
            "namespace": "",
            "kind": "raw",
        }
        assert event["proc"]["pid"] == report["pid"]
        assert event["proc"]["tid"] == report["tid"]
        assert event["proc"]["creds"] == {"uid": report["uid"], "gid": report["gid"]}
        assert event["proc"]["parent"]["pid"] == report["parent"]
        assert event["proc"]["mntns_id"] == report["mntns"]
        assert 0 < event["latency_raw"] <= report["nanoseconds"]
        assert event["timestamp_raw"] >= report["started"] - 20_000_000


def test_connects_of_many_threads_are_each_reported(watch: Watch, namespace: Namespace) -> None:
    port = namespace.serve()
    ig = watch("trace", "tcpconnect")
    made = namespace.connect("127.0.0.1", port, "--threads", 5, "--count", 17)
    events = ig.events()
    assert len(events) == 85
    assert {(event["proc"]["tid"], event["src"]["port"]) for event in events} == {
        (each["tid"], each["source_port"]) for each in made
    }


@pytest.mark.parametrize(("kind", "address"), [("4", "127.0.0.1"), ("6", "::1")])
def test_refused_connect_is_reported_once(
    watch: Watch, namespace: Namespace, kind: str, address: str
) -> None:
    ig = watch("trace", "tcpconnect")
    connect = (address, 9, "--kind", kind, "--count", 5)
    made = namespace.connect(*connect) + namespace.connect(*connect, "--nonblocking")
    events = ig.events()
    assert outcomes(events) == ["refused"] * len(made) == ["refused"] * 10
    assert {(event["error"], event["error_raw"]) for event in events} == {("ECONNREFUSED", 111)}


def test_asking_again_after_a_refused_attempt_is_no_second_attempt(
    watch: Watch, namespace: Namespace
) -> None:
    ig = watch("trace", "tcpconnect")
    asks_twice = (
        "import select, socket\n"
        "s = socket.socket()\n"
        "s.setblocking(False)\n"
        "assert s.connect_ex(('127.0.0.1', 9)) == 115\n"
        "select.select([], [s], [])\n"
        "assert s.connect_ex(('127.0.0.1', 9)) == 111\n"
    )
    namespace.run("/usr/bin/python3", "-c", asks_twice)
    assert outcomes(ig.events()) == ["refused"]


def test_connecting_a_connected_socket_is_no_second_attempt(
    watch: Watch, namespace: Namespace
) -> None:
    port = namespace.serve()
    ig = watch("trace", "tcpconnect")
    connects_twice = (
        "import socket\n"
        f"s = socket.create_connection(('127.0.0.1', {port}))\n"
        f"assert s.connect_ex(('127.0.0.1', {port})) == 106\n"
    )
    namespace.run("/usr/bin/python3", "-c", connects_twice)
    assert outcomes(ig.events()) == ["established"]


def test_connection_of_a_socket_to_itself_is_one_event(watch: Watch, namespace: Namespace) -> None:
    ig = watch("trace", "tcpconnect")
    connects_to_itself = (
        "import socket\n"
        "s = socket.socket()\n"
        "s.bind(('127.0.0.1', 4242))\n"
        "s.connect(('127.0.0.1', 4242))\n"
    )
    namespace.run("/usr/bin/python3", "-c", connects_to_itself)
    assert outcomes(ig.events()) == ["established"]


def test_attempt_without_an_answer_times_out(watch: Watch, namespace: Namespace) -> None:
    namespace.drop(9)
    ig = watch("trace", "tcpconnect", "--latency")
    namespace.connect("127.0.0.1", 9, "--syn-count", 1)
    (event,) = ig.events()
    assert (event["outcome"], event["error"]) == ("timed-out", "ETIMEDOUT")
    assert (event["latency"], event["latency_raw"]) == (None, None)


@pytest.mark.parametrize("option", [(), ("--failures",)])
def test_without_latency_an_unanswered_attempt_is_shown_after_a_second_and_at_its_end(
    start_ig: Start, namespace: Namespace, option: Sequence[str]
) -> None:
    namespace.peer("--answer", "nothing")
    ig = traced(start_ig, *option)
    namespace.connect("198.51.100.2", 80, "--syn-count", 1)
    first, last = seen_from(ig.stop()[0], namespace)
    assert [first["outcome"], last["outcome"]] == ["unanswered", "timed-out"]
    assert [first["update"], last["update"]] == [False, True]
    assert [first["latency"], last["latency"]] == [None, None]
    assert 900_000_000 < first["waited_raw"] < last["waited_raw"]
    assert first["timestamp_raw"] < last["timestamp_raw"]
    assert first["src"] == last["src"]


def test_failures_have_the_end_of_what_went_unanswered_also_if_it_is_good(
    start_ig: Start, namespace: Namespace
) -> None:
    namespace.peer("--delay", 1500)
    tracers = [traced(start_ig, "--failures", *more) for more in ((), ("-L",))]
    namespace.connect("198.51.100.2", 80)
    failures, at_the_end = (seen_from(each.stop()[0], namespace) for each in tracers)
    assert outcomes(failures) == ["unanswered", "established"]
    assert [event["update"] for event in failures] == [False, True]
    assert at_the_end == []


def test_most_events_are_the_most_attempts(start_ig: Start, namespace: Namespace) -> None:
    namespace.peer("--answer", "nothing")
    chosen = ("-F", f"netns=={namespace.inode}", "--max-events", 2)
    ig = traced(start_ig, *chosen)
    namespace.connect("198.51.100.2", 80, "--syn-count", 1)
    namespace.connect("127.0.0.1", 9, "--count", 3)
    assert outcomes(ig.finished()[0]) == ["unanswered", "timed-out", "refused"]


def test_what_an_attempt_waited_is_there_with_and_without_an_answer(
    watch: Watch, namespace: Namespace
) -> None:
    namespace.peer("--delay", 50)
    ig = watch("trace", "tcpconnect", "--latency")
    namespace.connect("198.51.100.2", 80)
    namespace.connect("127.0.0.1", 9)
    namespace.connect("198.51.100.2", 80, "--nonblocking", "--timeout", 0.02)
    answered, refused, abandoned = ig.events()
    assert answered["waited_raw"] == answered["latency_raw"] > 49_000_000
    assert refused["waited_raw"] == refused["latency_raw"] > 0
    assert abandoned["latency_raw"] is None
    assert abandoned["waited_raw"] > 19_000_000


def test_with_latency_the_repeated_syns_are_counted_and_the_end_awaited(
    watch: Watch, namespace: Namespace
) -> None:
    peer = namespace.peer("--answer", "nothing")
    ig = watch("trace", "tcpconnect", "--latency")
    namespace.connect("198.51.100.2", 80, "--syn-count", 1)
    (event,) = ig.events()
    syns = [report for report in peer.reports.objects if "ready" not in report]
    assert (event["outcome"], event["retransmits"]) == ("timed-out", len(syns) - 1)


def test_unreachable_host_is_reported(watch: Watch, namespace: Namespace) -> None:
    namespace.peer("--answer", "unreachable")
    ig = watch("trace", "tcpconnect")
    namespace.connect("198.51.100.2", 80)
    (event,) = ig.events()
    assert event["outcome"] == "unreachable"
    assert event["error"] in ("EHOSTUNREACH", "ENETUNREACH")


def test_no_route_fails_before_any_syn(watch: Watch, namespace: Namespace) -> None:
    ig = watch("trace", "tcpconnect")
    namespace.connect("192.0.2.1", 80, "--count", 3)
    namespace.connect("2001:db8::1", 80, "--kind", "6", "--count", 2)
    events = ig.events()
    assert outcomes(events) == ["failed"] * 5
    assert {event["error"] for event in events} == {"ENETUNREACH"}
    assert [event["dst"]["addr"] for event in events] == ["192.0.2.1"] * 3 + ["2001:db8::1"] * 2
    assert {event["dst"]["port"] for event in events} == {80}


def test_no_free_port_fails_with_what_connect_returned(
    start_ig: Start, namespace: Namespace
) -> None:
    port = namespace.serve()
    ig = traced(start_ig)
    takes_the_only_port = (
        "import socket\n"
        "open('/proc/sys/net/ipv4/ip_local_port_range', 'w').write('40000 40000')\n"
        f"a = socket.create_connection(('127.0.0.1', {port}))\n"
        f"assert socket.socket().connect_ex(('127.0.0.1', {port})) == 99\n"
    )
    namespace.run("/usr/bin/python3", "-c", takes_the_only_port)
    events = seen_from(ig.stop()[0], namespace)
    assert [(event["outcome"], event["error"]) for event in events] == [
        ("established", ""),
        ("failed", "EADDRNOTAVAIL"),
    ]


def test_attempt_that_the_caller_gave_up_is_abandoned(watch: Watch, namespace: Namespace) -> None:
    namespace.peer("--answer", "nothing")
    ig = watch("trace", "tcpconnect", "--latency")
    namespace.connect("198.51.100.2", 80, "--nonblocking", "--timeout", 0.1, "--count", 3)
    events = ig.events()
    assert outcomes(events) == ["abandoned"] * 3


def test_attempt_whose_caller_was_killed_is_abandoned(
    start_ig: Start, namespace: Namespace
) -> None:
    namespace.peer("--answer", "nothing")
    ig = traced(start_ig, "--latency")
    options = ("--hold", "--nonblocking", "--timeout", 0.1)
    program = namespace.start("connect", "198.51.100.2", 80, *options)
    program.reports.ready()
    program.stop()
    ig.wait_for(lambda event: event["netns_id"] == namespace.inode)
    assert outcomes(seen_from(ig.stop()[0], namespace)) == ["abandoned"]


def test_latency_is_what_the_far_side_took(watch: Watch, namespace: Namespace) -> None:
    namespace.peer("--delay", 100)
    ig = watch("trace", "tcpconnect", "--latency")
    (attempt,) = namespace.connect("198.51.100.2", 80)
    (event,) = ig.events()
    assert event["outcome"] == "established"
    assert 99_000_000 < event["latency_raw"] < attempt["nanoseconds"]


def test_min_leaves_out_what_was_faster(start_ig: Start, namespace: Namespace) -> None:
    port = namespace.serve()
    namespace.peer("--delay", 60)
    ig = traced(start_ig, "--min", "30ms")
    namespace.connect("127.0.0.1", port, "--count", 3)
    namespace.connect("198.51.100.2", 80)
    (event,) = seen_from(ig.stop()[0], namespace)
    assert event["dst"]["addr"] == "198.51.100.2"


def test_udp_and_unix_sockets_are_no_tcp(
    watch: Watch, namespace: Namespace, tmp_path: Path
) -> None:
    ig = watch("trace", "tcpconnect")
    namespace.connect("127.0.0.1", 9, "--kind", "udp", "--count", 3)
    namespace.connect(str(tmp_path / "nothing"), 0, "--kind", "unix")
    namespace.connect("127.0.0.1", 9)
    assert outcomes(ig.events()) == ["refused"]


@pytest.mark.parametrize("what", ["pid", "port"])
def test_kernel_filters_by_process_and_port(
    start_ig: Start, namespace: Namespace, what: str
) -> None:
    program = namespace.start("connect", "127.0.0.1", 9, "--count", 3, "--on-signal")
    program.reports.ready()
    wanted = program.pid if what == "pid" else 9
    ig = traced(start_ig, f"--{what}", wanted)
    namespace.connect("127.0.0.1", 10, "--count", 2)
    program.process.send_signal(10)
    program.finished()
    events = seen_from(ig.stop()[0], namespace)
    assert [event["dst"]["port"] for event in events] == [9, 9, 9]
