"""`ig trace tcp`: a connection's end is told once, when it is over, with all that it was."""

from __future__ import annotations

import ctypes
import os
import socket
from collections import Counter
from collections.abc import Callable

import pytest

from tests.host.engine import Engine
from tests.host.namespace import Namespace, Program
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE

Start = Callable[..., Tracer]


@pytest.fixture(scope="module")
def endings() -> tuple[list[Report], list[Report]]:
    """What `endings.py` says of its connections, and the events of its trace."""
    namespace = Namespace()
    namespace.run("sysctl", "-qw", "net.ipv4.tcp_fin_timeout=1")
    tracer = Tracer("trace", "tcp", "--host", "-o", "json")
    try:
        program = namespace.start("endings")
        told = program.finished()
        events = [e for e in tracer.stop()[0] if e["netns_id"] == namespace.inode]
    finally:
        tracer.kill()
        namespace.remove()
    return told, [{**event, "expected_pid": program.pid} for event in events]


def test_closes_are_reported_once_for_each_end_however_it_ended(
    endings: tuple[list[Report], list[Report]],
) -> None:
    told, events = endings
    closes = [event for event in events if event["type"] != "connect" and event["type"] != "accept"]
    for connection in told:
        case, client, server = connection["case"], connection["client"], connection["server"]
        ends = {"client": (client, server), "server": (server, client)}
        for side, other in (("client", "server"), ("server", "client")):
            found = [e for e in closes if (e["src"]["port"], e["dst"]["port"]) == ends[side]]
            assert [(e["type"], e["error"]) for e in found] == [
                ("close", connection["error"][side])
            ], (case, side)
            (close,) = found
            assert close["proc"]["pid"] == close["expected_pid"], (case, side)
            sent, received = connection["sent"][side], connection["sent"][other]
            assert close["sent"] == sent or sent < 0, (case, side)
            if received >= 0 and "unread" not in case:
                assert close["received"] == received, (case, side)
    assert len(closes) == 2 * len(told)


def test_closes_of_half_closed_connections_have_the_time_of_the_whole(
    endings: tuple[list[Report], list[Report]],
) -> None:
    told, events = endings
    said = {connection["case"]: connection for connection in told}
    closes = {e["src"]["port"]: e for e in events if e["type"] == "close"}

    answered = said["answered_after_half_close"]
    times, close = answered["times"], closes[answered["client"]]
    assert times["sent"] < close["timestamp_raw"] < times["reported"]
    assert close["duration_raw"] > close["half_closed_raw"] > times["sent"] - times["half-closed"]

    early = said["closed_after_half_close"]  # and the peer later
    assert closes[early["client"]]["timestamp_raw"] < early["times"]["closed"]
    expired = said["fin_wait_2_timeout"]
    assert closes[expired["client"]]["timestamp_raw"] < expired["times"]["closed"]
    for case in ("shut_down_by_both", "shut_down_both_ways"):
        assert closes[said[case]["client"]]["timestamp_raw"] < said[case]["times"]["reported"]
    whole = said["reset_while_open"]
    assert not closes[whole["client"]]["half_closed_raw"]


@pytest.mark.needs("MPTCP")
@pytest.mark.parametrize(
    ("client", "server", "subflows"),
    [
        pytest.param("tcp", "mptcp", 0),
        pytest.param("mptcp", "tcp", 0),
        pytest.param("mptcp", "mptcp", 1, marks=pytest.mark.needs("MPTCP that counts bytes")),
    ],
)
def test_closes_of_mptcp_connections_are_owned_and_one_for_each_end(
    start_ig: Start,
    new_namespace: Callable[[], Namespace],
    client: str,
    server: str,
    subflows: int,
) -> None:
    here, there = new_namespace(), new_namespace()
    for namespace in (here, there):
        namespace.run("sysctl", "-qw", "net.mptcp.enabled=1")
    address = here.link(there)[1]
    if subflows:
        for namespace in (here, there):
            namespace.ip("mptcp", "limits", "set", "subflow", "2", "add_addr_accepted", "2")
        (device,) = {line.split(":")[1] for line in here.ip("-o", "link").splitlines()} - {" lo"}
        here.ip("addr", "add", "192.0.2.3/24", "dev", device.split("@")[0].strip())
        here.ip("mptcp", "endpoint", "add", "192.0.2.3", "subflow")
    tracer = start_ig("trace", "tcp", "--host", "-o", "json")
    program = here.start("multipath", client, server, address, there.path, subflows)
    (said,) = program.finished()
    tracer.wait_for(lambda e: e["netns_id"] == here.inode and e["type"] == "close")
    tracer.wait_for(lambda e: e["netns_id"] == there.inode and e["type"] == "close")
    namespaces = {here.inode: "client", there.inode: "server"}
    events = [e for e in tracer.stop()[0] if e["netns_id"] in namespaces]
    ports, sent = said["ports"], said["sent"]
    assert Counter(event["type"] for event in events) == {"connect": 1, "accept": 1, "close": 2}
    assert {event["proc"]["pid"] for event in events} == {program.pid}
    for close in (event for event in events if event["type"] == "close"):
        side = namespaces[close["netns_id"]]
        other = "server" if side == "client" else "client"
        assert (close["src"]["port"], close["dst"]["port"]) == (ports[side], ports[other])
        assert (close["sent"], close["received"]) == (sent[side], sent[other]), side
        assert close["duration_raw"] > 0
        assert close["error"] == ""


PIDFD_GETFD = 438


def disconnect(pid: int) -> None:
    """Disconnect the only TCP connection of a process, from here."""
    process = os.pidfd_open(pid)
    for name in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            taken = ctypes.CDLL(None).syscall(PIDFD_GETFD, process, int(name), 0)
            with socket.socket(fileno=taken) as connection:
                unspecified = bytes(16)  # AF_UNSPEC
                assert ctypes.CDLL(None).connect(connection.fileno(), unspecified, 16) == 0
    os.close(process)


def test_closes_without_a_known_process_are_their_socket_s_containers(
    ig: Start, engine: Engine
) -> None:
    server, port = engine.serve("server")
    client = engine.program("client", "connect", server.address, port, "--hold")
    deaf = engine.program("deaf", "serve", "0.0.0.0", "--deaf")
    deaf_port = deaf.reports.ready()["port"]
    client.reports.ready()
    tracer = ig("trace", "tcp")
    addresses = {client.address, server.address, deaf.address}
    disconnect(client.pid)  # older than the trace
    engine.connect(client, deaf.address, deaf_port)
    deaf.signal("SIGKILL")  # with a connection that was never accepted
    wanted = {
        (client.name, "close", port, ""),
        (server.name, "close", port, "ECONNRESET"),
        (deaf.name, "unknown", deaf_port, ""),
    }
    tracer.wait_for(lambda event: event["type"] == "unknown")
    events = [e for e in tracer.stop()[0] if not e["proc"]["pid"] and e["src"]["addr"] in addresses]
    ports = {port, deaf_port}
    found = [
        (
            event["runtime"]["containerName"],
            event["type"],
            *(ports & {event["src"]["port"], event["dst"]["port"]}),
            event["error"],
        )
        for event in events
    ]
    assert sorted(found) == sorted(wanted)
    assert {event["proc"]["comm"] for event in events} == {""}


MANY = """
import os, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, 20_000))
read, write = os.pipe()
for _ in range(4):
    done, told = os.pipe()
    if not os.fork():
        os.close(write)
        listener = socket.create_server(("127.0.0.1", 0), backlog=20_000)
        held = [socket.create_connection(listener.getsockname()) for _ in range(16_500)]
        os.write(told, b"x")
        os.read(read, 1)
        os._exit(0)
    os.close(told)
    assert os.read(done, 1)
print('{"ready": true}', flush=True)
os.read(0, 1)
"""


def test_closes_have_room_beside_many_connections_that_are_not_wanted(
    ig: Start, engine: Engine, namespace: Namespace
) -> None:
    server, port = engine.serve("server")
    client = engine.idle("client")
    tracer = ig("trace", "tcp", "-c", client.name, "-c", server.name)
    namespace.run("sysctl", "-qw", "net.core.somaxconn=20000")
    Program(namespace.command("/usr/bin/python3", "-c", MANY)).reports.ready(10 * PATIENCE)
    made = engine.connect(client, server.address, port, "--count", 101)
    assert len(made) == 101
    tracer.wait_for(lambda event: event["type"] == "close", 2 * len(made))
    events, said, _ = tracer.stop()
    assert "lost" not in said
    assert Counter((e["type"], e["runtime"]["containerName"]) for e in events) == {
        ("connect", client.name): 101,
        ("accept", server.name): 101,
        ("close", client.name): 101,
        ("close", server.name): 101,
    }


def test_closes_of_another_port_s_connections_are_not_shown_for_their_own_port(
    start_ig: Start, namespace: Namespace
) -> None:
    script = (
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 40000))\n"
        "client = socket.create_connection(('127.0.0.1', 40000), None, ('127.0.0.1', 40001))\n"
        "client.close()\n"
    )
    tracer = start_ig("trace", "tcp", "--host", "--port", 40001, "-o", "json")
    namespace.run("/usr/bin/python3", "-c", script)
    events = [e for e in tracer.stop()[0] if e["netns_id"] == namespace.inode]
    assert [(e["type"], e["src"]["port"]) for e in events] == [("unknown", 40000)]


UNCONFIRMED = """
import select, socket, subprocess
FAST_OPEN = 0x20000000
open("/proc/sys/net/ipv4/tcp_fastopen", "w").write(str(0x207))  # needs no cookie
listener = socket.create_server(("127.0.0.1", 80))
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
subprocess.run("iptables -A INPUT -p tcp --dport 80 ! --syn -j DROP".split(), check=True)
client = socket.socket()
client.sendto(b"x" * 503, FAST_OPEN, ("127.0.0.1", 80))
select.select([], [client], [])
subprocess.run("iptables -F INPUT".split(), check=True)
listener.close()
select.select([client], [], [])
print(client.getsockname()[1])
"""


def test_closes_of_fast_open_connections_that_wait_for_the_last_ack_are_shown(
    start_ig: Start, namespace: Namespace
) -> None:
    tracer = start_ig("trace", "tcp", "--host", "-o", "json")
    port = int(namespace.run("/usr/bin/python3", "-c", UNCONFIRMED))
    events = [e for e in tracer.stop()[0] if e["netns_id"] == namespace.inode]
    assert [
        (e["type"], e["src"]["port"], e["sent"], e["received"], e["error"]) for e in events
    ] == [
        ("connect", port, 0, 0, ""),
        ("unknown", 80, 0, 503, ""),
        ("close", port, 503, 0, "ECONNRESET"),
    ]
