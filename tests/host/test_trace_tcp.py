"""`ig trace tcp`: connects, accepts and closes, each once and under its true owner."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.features import preempts_programs
from tests.host.engine import Engine
from tests.host.namespace import Namespace
from tests.host.reports import Report, most_lost
from tests.host.tracer import Tracer
from tests.host.waiting import EMULATED, until
from tests.host.watched import WatchedNamespace

Start = Callable[..., Tracer]
Watch = Callable[..., WatchedNamespace]

PAIR = """
import json, os, socket, struct
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
def report(**what):
    print(json.dumps({"pid": os.getpid(), "client": client_port, "server": server_port, **what}))
client_port, server_port = client.getsockname()[1], listener.getsockname()[1]
"""


def traced(start_ig: Start, namespace: Namespace, script: str, *options: str) -> list[Report]:
    """Run a Python script in the namespace; give the events, its own line as the first."""
    tracer = start_ig("trace", "tcp", "--host", "-o", "json", *options)
    said = namespace.run("/usr/bin/python3", "-c", script)
    events = [e for e in tracer.stop()[0] if e["netns_id"] == namespace.inode]
    return [json.loads(said or "{}"), *events]


def watched(watch: Watch, namespace: Namespace, script: str) -> list[Report]:
    """Do the same by the trace without options that tests share."""
    watching = watch("trace", "tcp")
    said = namespace.run("/usr/bin/python3", "-c", script)
    return [json.loads(said or "{}"), *watching.events()]


def ends(event: Report) -> tuple[str, int, int]:
    return event["type"], event["src"]["port"], event["dst"]["port"]


# The storms are first: the trace that the other tests share would read their events too.
@pytest.mark.parametrize(("threads", "count"), [(1, 101), (20, 100 if EMULATED else 500)])
def test_nothing_is_lost_between_threads_of_two_containers(
    ig: Start, engine: Engine, threads: int, count: int
) -> None:
    server, port = engine.serve("server")
    client = engine.idle("client")
    tracer = ig("trace", "tcp", "--port", port)
    engine.connect(client, server.address, port, "--threads", threads, "--count", count)
    total = threads * count
    made = Counter(
        {
            ("connect", client.name): total,
            ("accept", server.name): total,
            ("close", client.name): total,
            ("close", server.name): total,
        }
    )
    # On a busy machine an attempt may be unanswered for a second, and is shown again at its end.
    until(
        lambda: (
            sum(not event.get("update") for event in tracer.events) + most_lost(tracer.stderr)
            >= made.total()
        ),
        "all events",
    )
    events, said, _ = tracer.stop()
    once = [event for event in events if not event.get("update")]
    found = Counter((event["type"], event["runtime"]["containerName"]) for event in once)
    assert not found - made
    assert (made - found).total() <= most_lost(said)
    assert preempts_programs() or "lost" not in said


def test_all_that_is_on_its_way_at_the_end_is_reported(
    start_ig: Start, namespace: Namespace
) -> None:
    script = (
        "import os, socket, struct\n"
        "listener = socket.create_server(('127.0.0.1', 0), backlog=4096)\n"
        "if not os.fork():\n"
        "    for _ in range(4001): os.close(listener._accept()[0])\n"
        "    os._exit(0)\n"
        "address, reset = listener.getsockname(), struct.pack('ii', 1, 0)\n"
        "for _ in range(4001):\n"
        "    with socket.socket() as client:\n"
        "        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)\n"
        "        client.connect(address)\n"
        "os.wait()\n"
    )
    _, *events = traced(start_ig, namespace, script)
    told = Counter(event["type"] for event in events)
    assert told == {"connect": 4001, "accept": 4001, "close": 8002}


def test_connection_is_connected_accepted_and_closed_at_both_ends(
    watch: Watch, namespace: Namespace
) -> None:
    script = PAIR + (
        "client.sendall(b'x' * 1009)\n"
        "got = 0\n"
        "while got < 1009: got += len(server.recv(2000))\n"
        "server.sendall(b'y' * 503)\n"
        "got = 0\n"
        "while got < 503: got += len(client.recv(2000))\n"
        "report(fd=client.fileno(), listener=listener.fileno(), accepted=server.fileno())\n"
        "client.close(); server.close()\n"
    )
    said, *events = watched(watch, namespace, script)
    client, server = said["client"], said["server"]
    assert sorted(map(ends, events)) == [
        ("accept", server, client),
        ("close", *sorted((client, server))),
        ("close", *sorted((client, server), reverse=True)),
        ("connect", client, server),
    ]
    assert {event["proc"]["pid"] for event in events} == {said["pid"]}
    by = {(event["type"], event["src"]["port"]): event for event in events}
    assert by["connect", client]["fd"] == said["fd"]
    assert by["accept", server]["fd"] == said["listener"]
    assert by["accept", server]["accept_fd"] == said["accepted"]
    for port, sent, received in ((client, 1009, 503), (server, 503, 1009)):
        closed = by["close", port]
        assert (closed["sent"], closed["received"]) == (sent, received)
        assert closed["duration_raw"] > 0
        assert (closed["fd"], closed["accept_fd"]) == (-1, -1)


@pytest.mark.parametrize(
    "end",
    [
        "client.shutdown(socket.SHUT_WR); client.close()",  # half-closed first
        "client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
        "client.close()",  # reset
        "pid = os.fork() or (client.close(), server.close(), os._exit(0))\n"
        "client.close(); os.waitpid(pid, 0)",  # the child's copies close first
    ],
    ids=["half-close", "reset", "fork"],
)
def test_each_end_is_closed_once_under_its_owner(
    watch: Watch, namespace: Namespace, end: str
) -> None:
    said, *events = watched(watch, namespace, f"{PAIR}report()\n{end}\nserver.close()\n")
    closes = [event for event in events if event["type"] == "close"]
    assert sorted(event["src"]["port"] for event in closes) == sorted(
        (said["client"], said["server"])
    )
    assert {event["proc"]["pid"] for event in closes} == {said["pid"]}


def test_connection_closed_in_another_process_is_its_makers(
    watch: Watch, namespace: Namespace
) -> None:
    script = PAIR + (
        "report()\n"
        "import sys; sys.stdout.flush()\n"
        "ready, go = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.close(go); os.read(ready, 1); client.close(); server.close(); os._exit(0)\n"
        "os.close(ready); client.close(); server.close(); os.close(go); os.wait()\n"
    )
    said, *events = watched(watch, namespace, script)
    closes = [event for event in events if event["type"] == "close"]
    assert [event["proc"]["pid"] for event in closes] == [said["pid"]] * 2


def test_connection_that_was_passed_to_another_process_is_its_makers(
    watch: Watch, namespace: Namespace
) -> None:
    script = (
        "import os, socket\n"
        "here, there = socket.socketpair()\n"
        "if os.fork() == 0:\n"
        "    here.close()\n"
        "    passed = socket.recv_fds(there, 9, 2)[1]\n"
        "    there.recv(9)\n"
        "    for descriptor in passed: os.close(descriptor)\n"
        "    os._exit(0)\n"
        "there.close()\n"
        f"{PAIR}"
        "report()\n"
        "socket.send_fds(here, [b'x'], [client.fileno(), server.fileno()])\n"
        "client.close(); server.close(); here.close(); os.wait()\n"
    )
    said, *events = watched(watch, namespace, script)
    closes = [event for event in events if event["type"] == "close"]
    assert [event["proc"]["pid"] for event in closes] == [said["pid"]] * 2


def test_reset_before_the_accept_is_the_accepters_close(watch: Watch, namespace: Namespace) -> None:
    script = (
        "import socket, struct\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(listener.getsockname())\n"
        "client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
        "client.close()\n"
        "listener.accept()\n"
    )
    _, *events = watched(watch, namespace, script)
    assert [event["type"] for event in events] == ["connect", "close", "accept", "close"]
    assert all(event["proc"]["pid"] for event in events)


def test_what_nobody_accepted_ends_as_unknown(start_ig: Start, namespace: Namespace) -> None:
    script = (
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(listener.getsockname())\n"
        "listener.close()\n"
    )
    _, *events = traced(start_ig, namespace, script)
    (unknown,) = [event for event in events if event["type"] == "unknown"]
    assert unknown["proc"]["pid"] == 0
    assert unknown["dst"]["port"] != 0


def test_ipv4_client_of_a_dual_stack_listener_is_ipv4(
    start_ig: Start, namespace: Namespace
) -> None:
    script = (
        "import socket\n"
        "listener = socket.create_server(('::', 0), family=socket.AF_INET6, "
        "dualstack_ipv6=True)\n"
        "client = socket.create_connection(('127.0.0.1', listener.getsockname()[1]))\n"
        "listener.accept()\n"
    )
    _, *events = traced(start_ig, namespace, script, "--accept-only")
    (accepted,) = events
    assert (accepted["src"]["addr"], accepted["dst"]["addr"]) == ("127.0.0.1", "127.0.0.1")
    assert accepted["src"]["version"] == 4


def test_only_failures_are_shown_if_asked(start_ig: Start, namespace: Namespace) -> None:
    script = PAIR + (
        "socket.socket().connect_ex(('127.0.0.1', 9))\n"
        "idle = socket.socket()\n"
        "try: idle.accept()\n"
        "except OSError: report(fd=idle.fileno())\n"
    )
    said, *events = traced(start_ig, namespace, script, "--failure-only")
    assert [(event["type"], event["error"]) for event in events] == [
        ("connect", "ECONNREFUSED"),
        ("accept", "EINVAL"),
    ]
    assert events[1]["fd"] == said["fd"]


def test_connection_older_than_the_trace_is_no_other_process_s(
    start_ig: Start, namespace: Namespace
) -> None:
    port = namespace.serve()
    program = namespace.start("connect", "127.0.0.1", port, "--hold")
    program.reports.ready()
    tracer = start_ig("trace", "tcp", "--host", "-o", "json")
    program.process.terminate()
    tracer.wait_for(lambda e: e["netns_id"] == namespace.inode, 2)
    closes = [e for e in tracer.stop()[0] if e["netns_id"] == namespace.inode]
    assert [event["type"] for event in closes] == ["close", "close"]
    for event in closes:
        assert (event["proc"]["pid"], event["proc"]["comm"]) == (0, "")
        assert not event["duration_raw"]


def test_only_the_chosen_containers_end_of_a_connection_is_shown(ig: Start, engine: Engine) -> None:
    server, port = engine.serve("server")
    client = engine.idle("client")
    tracer = ig("trace", "tcp", "-c", server.name, "--port", port)
    made = engine.connect(client, server.address, port, "--count", 101)
    tracer.wait_for(lambda event: event["type"] == "close", len(made))
    events = tracer.stop()[0]
    assert Counter(event["type"] for event in events) == {"accept": 101, "close": 101}
    assert {event["proc"]["pid"] for event in events} == {server.pid}


def test_user_filter_holds_for_closes_too(start_ig: Start, namespace: Namespace) -> None:
    script = PAIR + "report()\nclient.close(); server.close()\n"
    assert traced(start_ig, namespace, script, "--uid", "4242")[1:] == []
    said, *events = traced(
        start_ig, namespace, f"import os; os.setuid(4242)\n{script}", "--uid=4242"
    )
    assert Counter(event["type"] for event in events) == {"connect": 1, "accept": 1, "close": 2}
    assert {event["proc"]["pid"] for event in events} == {said["pid"]}


def test_server_with_many_threads_in_accept_loses_nothing(
    start_ig: Start, namespace: Namespace
) -> None:
    server = namespace.start("serve", "127.0.0.1", 0, "--acceptors", 100)
    port = server.reports.ready()["port"]
    tracer = start_ig("trace", "tcp", "--host", "--accept-only", "-o", "json")
    made = namespace.connect("127.0.0.1", port, "--threads", 20, "--count", 53)

    def accepted() -> list[Report]:
        return [event for event in tracer.events if event["netns_id"] == namespace.inode]

    until(lambda: len(accepted()) + most_lost(tracer.stderr) >= len(made), "all accepts")
    _, said, _ = tracer.stop()
    events = accepted()
    ports = Counter(event["dst"]["port"] for event in events)
    clients = Counter(each["source_port"] for each in made)
    assert not ports - clients
    assert (clients - ports).total() <= most_lost(said)
    assert preempts_programs() or not most_lost(said)
    assert {event["proc"]["pid"] for event in events} == {server.pid}
    assert len({event["proc"]["tid"] for event in events}) > 1


def test_threads_that_waited_in_accept_before_the_trace_began_are_seen(
    start_ig: Start, namespace: Namespace
) -> None:
    # One thread closes each connection before it accepts the next, which may get its address.
    servers = {
        namespace.start("serve", "127.0.0.1", 0, "--acceptors", 7): 19,
        namespace.start("serve", "127.0.0.1", 0, "--in-turn"): 23,
    }
    ports = {server: server.reports.ready()["port"] for server in servers}

    def waiting() -> bool:
        threads = [each for s in servers for each in Path(f"/proc/{s.pid}/task").glob("*/syscall")]
        calls = [each.read_text().split()[0] for each in threads]
        return sum(map(calls.count, ("43", "288", "202", "242"))) == 8  # accept(), accept4()

    until(waiting, "eight threads to wait in accept()")
    tracer = start_ig("trace", "tcp", "--host", "-o", "json")
    connected = {
        server: namespace.connect("127.0.0.1", ports[server], "--count", count)
        for server, count in servers.items()
    }
    pids = {server.pid for server in servers}
    with suppress(TimeoutError):  # what is missing is told below
        tracer.wait_for(lambda e: e["type"] == "close" and e["proc"]["pid"] in pids, 19 + 23)
    everything, said, _ = tracer.stop()
    events = [e for e in everything if e["netns_id"] == namespace.inode]
    for server, reports in connected.items():
        own = [e for e in events if e["proc"]["pid"] == server.pid]
        for kind in ("accept", "close"):
            told = sorted(e["dst"]["port"] for e in own if e["type"] == kind)
            assert told == sorted(report["source_port"] for report in reports), (kind, said)
    assert all(e["fd"] > 0 for e in events if e["type"] == "accept")


def test_what_is_written_and_still_to_be_sent_counts_as_sent(
    watch: Watch, namespace: Namespace
) -> None:
    script = PAIR + (
        "server.setblocking(False)\n"
        "written = 0\n"
        "try:\n"
        "    while True: written += server.send(b'x' * 100_003)\n"
        "except BlockingIOError: pass\n"
        "server.close()\n"
        "while client.recv(1 << 20): pass\n"
        "client.close()\n"
        "report(written=written)\n"
    )
    said, *events = watched(watch, namespace, script)
    closes = {event["src"]["port"]: event for event in events if event["type"] == "close"}
    assert closes[said["server"]]["sent"] == said["written"]
    assert closes[said["client"]]["received"] == said["written"]


def test_classic_view_is_flat(start_ig: Start, namespace: Namespace) -> None:
    tracer = start_ig("tcptracer", "--host", "-o", "json")
    namespace.connect("127.0.0.1", 9, "--count", 3)
    tracer.wait_for(lambda event: event["dport"] == 9, 3)
    event = next(e for e in tracer.stop()[0] if e["dport"] == 9)
    assert list(event) == [
        *("type", "node", "namespace", "pod", "container", "pid", "comm", "ipversion"),
        *("saddr", "daddr", "sport", "dport", "operation"),
    ]
    assert (event["type"], event["operation"], event["ipversion"]) == ("normal", "connect", 4)


@pytest.mark.anywhere
def test_connects_only_and_accepts_only_exclude_each_other(start_ig: Start) -> None:
    tracer = start_ig("trace", "tcp", "--accept-only", "--connect-only", ready=False)
    _, said, code = tracer.finished()
    assert code == 2
    assert "--connect-only and --accept-only are mutually exclusive" in said


@pytest.mark.anywhere
@pytest.mark.parametrize(
    "line",
    [
        "tcptracer -A -o custom-columns=pid,comm -t 0.1",
        "run trace_tcp:latest --containername test-trace-tcp -t 0.1",
        "trace tcp -c test-trace-tcp -t=0.1",
    ],
)
def test_command_lines_that_people_know_work(start_ig: Start, line: str) -> None:
    assert start_ig(*line.split()).finished()[2] == 0
