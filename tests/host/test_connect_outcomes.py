"""How attempts end that the caller is told of in another way than by a blocking connect()."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from tests.features import FEATURES
from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer

pytestmark = pytest.mark.interrupts

Start = Callable[..., Tracer]
PYTHON = ("/usr/bin/python3", "-c")
MILLISECOND = 1_000_000


def seen(ig: Tracer, *namespaces: Namespace) -> list[Report]:
    inodes = {namespace.inode for namespace in namespaces}
    return [event for event in ig.stop()[0] if event["netns_id"] in inodes]


def ends(events: list[Report]) -> list[tuple[int, str, str]]:
    return [(event["dst"]["port"], event["outcome"], event["error"]) for event in events]


REJECTED = {
    "4": (
        ("icmp-port-unreachable", "refused", "ECONNREFUSED"),
        ("icmp-admin-prohibited", "unreachable", "EHOSTUNREACH"),
        ("icmp-host-unreachable", "unreachable", "EHOSTUNREACH"),
    ),
    "6": (
        ("icmp6-port-unreachable", "refused", "ECONNREFUSED"),
        ("icmp6-adm-prohibited", "unreachable", "EACCES"),
        ("icmp6-addr-unreachable", "unreachable", "EHOSTUNREACH"),
    ),
}


def reject(namespace: Namespace, chain: str, first: int) -> list[tuple[str, int, str, str]]:
    """Let a firewall answer from port `first` on; give each one's IP version, port and end."""
    made: list[tuple[str, int, str, str]] = []
    for version, table in (("4", "iptables"), ("6", "ip6tables")):
        for kind, outcome, error in REJECTED[version]:
            port = first + len(made)
            rule = ("-p", "tcp", "--dport", port, "-j", "REJECT", "--reject-with", kind)
            namespace.run(table, "-A", chain, *rule)
            made.append((version, port, outcome, error))
    return made


@pytest.mark.needs("traced ICMP errors")
def test_firewalls_icmp_error_ends_an_attempt_as_the_caller_sees_it(
    start_ig: Start, new_namespace: Callable[[], Namespace]
) -> None:
    here, there = new_namespace(), new_namespace()
    here.link(there)
    loopback = ("127.0.0.1", "::1")
    ways = [
        *(
            (reject(here, chain, first), loopback)
            for chain, first in (("INPUT", 81), ("OUTPUT", 91))
        ),
        (reject(there, "INPUT", 101)[:3], ("192.0.2.2", "")),
    ]
    ig = start_ig("trace", "tcpconnect", "--host", "-o", "json", "--latency")
    expected, took = [], {}
    for made, addresses in ways:
        for version, port, outcome, error in made:
            # IPv6 tells nobody before the second SYN; who gives up earlier still learns of it
            gives_up = ("--timeout", 0.1) if version == "6" else ()
            address = addresses[version == "6"]
            options = ("--kind", version, "--nonblocking", *gives_up)
            (attempt,) = here.connect(address, port, *options)
            expected.append((port, outcome, error))
            took[port] = attempt["nanoseconds"]
    here.connect("127.0.0.1", 81)
    *events, blocking = seen(ig, here)
    assert ends(events) == expected
    for event in events:
        most = took[event["dst"]["port"]]
        assert (0 < (event["latency_raw"] or 0) < most) == (event["dst"]["version"] == 4)
    assert ends([blocking]) == [(81, "refused", "ECONNREFUSED")]
    assert (blocking["retransmits"], blocking["latency_raw"] > 900 * MILLISECOND) == (1, True)


def test_firewalls_icmp_error_is_an_answer(start_ig: Start, namespace: Namespace) -> None:
    reject(namespace, "INPUT", 81)
    ig = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    for version, address, port in (("4", "127.0.0.1", 81), ("6", "::1", 84)):
        namespace.connect(address, port, "--kind", version)
    answered = [(port, "refused", "ECONNREFUSED") for port in (81, 84)]
    assert ends(seen(ig, namespace)) == answered


LOSES_THE_LINK = """
import socket, subprocess, sys
address, device, port = sys.argv[1:]
asks, closes = (socket.socket() for _ in range(2))
for each in (asks, closes):
    each.setblocking(False)
    assert each.connect_ex((address, int(port))) == 115
subprocess.run(["ip", "link", "set", device, "down"], check=True)
while not (error := asks.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
    pass
print(error)
"""


def test_link_that_is_lost_makes_the_far_side_unreachable(
    start_ig: Start, new_namespace: Callable[[], Namespace]
) -> None:
    here, there = new_namespace(), new_namespace()
    _, address = here.link(there)
    there.run("iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP")
    device = here.run("ip", "-br", "link", "show", "type", "veth").split("@")[0]
    ig = start_ig("trace", "tcpconnect", "--host", "-o", "json", "--latency")
    assert here.run(*PYTHON, LOSES_THE_LINK, address, device, 80) == "101\n"
    assert ends(seen(ig, here)) == [(80, "unreachable", "ENETUNREACH")] * 2


@pytest.mark.needs("traced repeats of a dropped SYN")
def test_syn_that_this_host_drops_is_unanswered_after_a_second(
    start_ig: Start, namespace: Namespace
) -> None:
    namespace.drop(9)
    ig = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    program = namespace.start("connect", "127.0.0.1", 9)
    (event,) = ig.wait_for(lambda event: event["netns_id"] == namespace.inode)
    assert (event["outcome"], event["retransmits"]) == ("unanswered", 1)
    program.stop()
    assert [event["outcome"] for event in seen(ig, namespace)] == ["unanswered", "abandoned"]


USER_TIMEOUT = """
import errno, socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 80))
def client():
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    return made
connected = client()
connected.connect(("127.0.0.1", 80))
drop = "iptables -I OUTPUT -p tcp --dport 80 -j DROP"
subprocess.run(drop.split(), check=True)
assert client().connect_ex(("127.0.0.1", 80)) == errno.ETIMEDOUT
connected.send(b"x" * 503)
try:
    connected.recv(1)
except TimeoutError:
    print(connected.getsockname()[1])
"""


@pytest.mark.needs("traced repeats of a dropped SYN")
def test_tcp_user_timeout_ends_attempts_and_connections(
    start_ig: Start, namespace: Namespace
) -> None:
    ig = start_ig("trace", "tcp", "--host", "-o", "json")
    port = int(namespace.run(*PYTHON, USER_TIMEOUT))
    events = [event for event in seen(ig, namespace) if event["dst"]["port"] == 80]
    assert [(e["type"], e["outcome"], e["error"]) for e in events] == [
        ("connect", "established", ""),
        ("connect", "unanswered", ""),
        ("connect", "timed-out", "ETIMEDOUT"),
        ("close", "", "ETIMEDOUT"),
    ]
    attempt, *_, close = events
    assert attempt["src"]["port"] == close["src"]["port"] == port
    assert close["sent"] in range(503, 20 * 503, 503)  # each attempt that is dropped
    assert close["duration_raw"] > 500 * MILLISECOND


FAST_OPEN = """
import contextlib, socket, time
TCP_FASTOPEN, TCP_FASTOPEN_CONNECT = 23, 30
open("/proc/sys/net/ipv4/tcp_fastopen", "w").write("3")
server = socket.create_server(("127.0.0.1", 80))
server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
def client():
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    made.connect(("127.0.0.1", 80))
    return made
def wait():
    begun = time.monotonic()
    while time.monotonic() - begun < 0.1:
        pass
first = client()  # gets a cookie
first.send(b"x")
second = client()
wait()
second.send(b"x")
third = client()
server.close()
wait()
with contextlib.suppress(ConnectionRefusedError):
    third.send(b"x")
"""


def test_with_fast_open_the_latency_begins_with_the_syn(
    start_ig: Start, namespace: Namespace
) -> None:
    ig = start_ig("trace", "tcpconnect", "--host", "-o", "json", "--latency")
    namespace.run(*PYTHON, FAST_OPEN)
    events = seen(ig, namespace)
    assert [event["outcome"] for event in events] == ["established"] * 2 + ["refused"]
    assert all(0 < event["latency_raw"] < 100 * MILLISECOND for event in events)


NO_PORT = """
import socket
open("/proc/sys/net/ipv4/ip_local_port_range", "w").write("40000 40000")
server = socket.create_server(("127.0.0.1", 80))
def bound():
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 40000))
    return made
taken = bound()
taken.connect(("127.0.0.1", 80))
def errno(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
FAST_OPEN = 0x20000000
print(errno(socket.socket().sendto, b"x", FAST_OPEN, ("127.0.0.1", 80)))
print(errno(socket.socket().sendmsg, [b"x"], [], FAST_OPEN, ("127.0.0.1", 80)))
print(errno(socket.socket().connect, ("127.0.0.1", 80)))
print(errno(bound().sendto, b"x", FAST_OPEN, ("127.0.0.1", 80)))
"""


def test_fast_open_without_a_free_port_fails_as_the_call_does(
    start_ig: Start, namespace: Namespace
) -> None:
    ig = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    assert namespace.run(*PYTHON, NO_PORT).split() == ["99"] * 4
    failed = [(80, "failed", "EADDRNOTAVAIL")] * 4
    assert ends(seen(ig, namespace)) == [(80, "established", ""), *failed]


RESTORED = """
import socket
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
server = socket.create_server(("127.0.0.1", 80))
made = socket.socket()
for option, value in ((TCP_REPAIR, 1), (TCP_REPAIR_QUEUE, 2), (TCP_QUEUE_SEQ, 1000)):
    made.setsockopt(socket.IPPROTO_TCP, option, value)
made.bind(("127.0.0.1", 4000))
made.connect(("127.0.0.1", 80))
made.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)
assert made.getpeername() == ("127.0.0.1", 80)
socket.create_connection(("127.0.0.1", 80))
"""


def test_connection_that_is_restored_is_no_attempt(start_ig: Start, namespace: Namespace) -> None:
    ig = start_ig("trace", "tcp", "--host", "-o", "json")
    namespace.run(*PYTHON, RESTORED)
    events = seen(ig, namespace)
    clients = [
        (event["type"], event["src"]["port"] == 4000)
        for event in events
        if event["dst"]["port"] == 80
    ]
    assert sorted(clients) == [("close", False), ("close", True), ("connect", False)]


ASKS_AGAIN = """
import resource, select, socket
COUNT = 19_901
resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + 99, COUNT + 99))
made = [socket.socket() for _ in range(COUNT)]
for each in made:
    each.setblocking(False)
    assert each.connect_ex(("127.0.0.1", 9)) in (111, 115)
for each in made:
    assert each.connect_ex(("127.0.0.1", 9)) in (103, 111)
"""


def test_attempts_are_reported_once_however_many_callers_ask_again(
    start_ig: Start, namespace: Namespace
) -> None:
    ig = start_ig("trace", "tcpconnect", "--host", "-o", "json", "--port", 9)
    namespace.run(*PYTHON, ASKS_AGAIN)
    events = seen(ig, namespace)
    assert {event["outcome"] for event in events} == {"refused"}
    assert len(events) == 19_901


EACH_WAY = """
import json, os, socket, subprocess, sys
from ig.bpf.loader import Loading
from ig.bpf.session import Source

source = Source(Loading("tcp.c", dict(each.split("=") for each in sys.argv[1:])).result())
icmp, no_port, restored = (socket.socket() for _ in range(3))
server = socket.create_server(("127.0.0.1", 80))
icmp.setblocking(False)
icmp.connect_ex(("127.0.0.1", 81))
icmp.close()
for option, value in ((19, 1), (20, 2), (21, 1000)):
    restored.setsockopt(socket.IPPROTO_TCP, option, value)
restored.bind(("127.0.0.1", 4000))
restored.connect(("127.0.0.1", 80))
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as ports:
    ports.write("40000 40000")
taken = socket.create_connection(("127.0.0.1", 80))
try:
    no_port.sendto(b"x", 0x20000000, ("127.0.0.1", 80))
except OSError as failed:
    error = failed.errno
places = [source.fields.index(name) for name in ("type", "outcome", "error", "dport")]
latency = source.fields.index("latency")
records = [record for record in source.records() if record[places[0]] == 1]
known = [bool(record[latency]) for record in records]
print(json.dumps([[[record[place] for place in places] for record in records], known]))
source.close()
"""
CONNECT, ESTABLISHED, REFUSED, FAILED = 1, 1, 2, 5


@pytest.mark.parametrize("way", ["LATENCY=0", "PREEMPTIBLE=1"])
def test_attempts_end_alike_however_programs_are_attached(namespace: Namespace, way: str) -> None:
    reject(namespace, "INPUT", 81)
    macros = ("TRACE_CONNECT=1", "TRACE_CLOSE=1", way)
    events, known = json.loads(namespace.run(sys.executable, "-c", EACH_WAY, *macros))
    assert events == [
        [CONNECT, REFUSED, 111, 81],
        [CONNECT, ESTABLISHED, 0, 80],
        [CONNECT, FAILED, 99, 80],
    ]
    assert known == [FEATURES["traced ICMP errors"](), True, False]
