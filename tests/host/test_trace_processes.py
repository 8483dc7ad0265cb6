"""What events say of processes and addresses that need a second look to be told rightly."""

from __future__ import annotations

import json
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host.namespace import Namespace, Program
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import until

Start = Callable[..., Tracer]
PYTHON = ("/usr/bin/python3", "-c")

LINK_LOCAL = """
import socket, sys
device = sys.argv[1]
zone = socket.if_nametoindex(device)
server = socket.socket(socket.AF_INET6)
server.bind(("fe80::1", 80, 0, zone))
server.listen()
client = socket.socket(socket.AF_INET6)
client.connect(("fe80::1", 80, 0, zone))
accepted, _ = server.accept()
client.close()
accepted.close()
assert socket.socket(socket.AF_INET6).connect_ex(("fe80::1", 81, 0, 0)) == 22
assert socket.socket(socket.AF_INET6).connect_ex(("::1", 82)) == 111
"""


def zones(event: Report) -> tuple[str, ...]:
    return tuple(event[end].get("zone", "none") for end in ("src", "dst"))


def test_link_local_address_is_shown_with_its_interface(
    start_ig: Start, new_namespace: Callable[[], Namespace]
) -> None:
    here, there = new_namespace(), new_namespace()
    here.link(there)
    device = here.run("ip", "-br", "link", "show", "type", "veth").split("@")[0]
    here.ip("addr", "add", "fe80::1/64", "dev", device, "nodad")
    where = ("--host", "-F", f"netns=={here.inode}")
    ig = start_ig("trace", "tcp", *where, "-o", "json")
    table = start_ig("trace", "tcp", *where, "-o", "columns=type,src,dst.addr,dst.zone")
    bind = start_ig("trace", "bind", *where, "-o", "json")
    binds = start_ig("trace", "bind", *where, "-o", "columns=addr")
    here.run(*PYTHON, LINK_LOCAL, device)
    events = ig.stop()[0]
    found = {(event["type"], event["dst"]["port"] == 80, *zones(event)) for event in events[:4]}
    both = (device, device)
    assert found == {
        ("connect", True, *both),
        ("accept", False, *both),
        ("close", True, *both),
        ("close", False, *both),
    }
    assert {event["dst"]["addr"] for event in events[:4]} == {"fe80::1"}
    assert [zones(event) for event in events[4:]] == [("none", "none")] * 2
    (bound,) = bind.stop()[0]
    assert bound["addr"]["zone"] == device
    assert bound["addr"]["addr"] == "fe80::1"
    for tracer, text in ((table, f"[fe80::1%{device}]:80"), (binds, f"fe80::1%{device}")):
        tracer.stop()
        assert any(text in line for line in tracer.reports.lines), tracer.reports.lines


THREAD = """
import socket, threading
open("/proc/self/comm", "w").write("java")
server = socket.create_server(("127.0.0.1", 80))
def work():
    open(f"/proc/self/task/{threading.get_native_id()}/comm", "w").write("worker-7")
    socket.socket().bind(("127.0.0.1", 8080))
    client = socket.create_connection(("127.0.0.1", 80))
    server.accept()
threads = threading.Thread(target=work)
threads.start()
threads.join()
"""


def test_pcomm_is_the_processs_name_and_comm_the_threads(
    start_ig: Start, namespace: Namespace
) -> None:
    where = ("--host", "-o", "json", "-F", f"netns=={namespace.inode}", "-F", "pcomm==java")
    tracers = [start_ig("trace", gadget, *where) for gadget in ("tcp", "bind")]
    namespace.run(*PYTHON, THREAD)
    tcp, bind = (tracer.stop()[0] for tracer in tracers)
    names = {(event["proc"]["comm"], event["proc"]["pcomm"]) for event in tcp}
    assert {event["type"] for event in tcp} >= {"connect", "accept"}
    assert names == {("worker-7", "java")}
    assert [event["proc"]["comm"] for event in bind] == ["java", "worker-7"]


CLOSED_AT_ONCE = """
import contextlib, os, socket, threading
COUNT = 499
server = socket.create_server(("127.0.0.1", 80), backlog=COUNT + 1)
clients = [socket.create_connection(("127.0.0.1", 80)) for _ in range(COUNT)]
with socket.socket() as free:
    descriptor = free.fileno()
done = False
def close():
    while not done:
        with contextlib.suppress(OSError):
            os.close(descriptor)
closing = threading.Thread(target=close)
closing.start()
for _ in range(COUNT):
    server._accept()
done = True
closing.join()
"""


def test_accept_is_reported_or_counted_if_another_thread_closes_its_socket_at_once(
    start_ig: Start, namespace: Namespace
) -> None:
    where = ("--host", "-o", "json", "-F", f"netns=={namespace.inode}")
    ig = start_ig("trace", "tcp", "--accept-only", *where)
    namespace.run(*PYTHON, CLOSED_AT_ONCE)
    events, said, _ = ig.stop()
    causes = json.loads(said.splitlines()[-1])["causes"] if said else {}
    assert len(events) + sum(causes.values()) == 499
    assert len(causes) <= 1


FLIPPED = """
import ctypes, socket, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
server = socket.create_server(("127.0.0.1", 8101))
packed = struct.pack("=H", 2) + struct.pack("!H4s8x", 8101, b"")
address = ctypes.create_string_buffer(packed, 16)
word = ctypes.c_uint32.from_buffer(address, 4)
served = int.from_bytes(socket.inet_aton("127.0.0.1"), "little")
nowhere = int.from_bytes(socket.inet_aton("192.0.2.1"), "little")
done = False
def flip():
    while not done:
        word.value = served
        word.value = nowhere
flipping = threading.Thread(target=flip)
flipping.start()
failed = 0
for _ in range(2001):
    with socket.socket() as client:
        if libc.connect(client.fileno(), address, 16):
            assert ctypes.get_errno() == 101
            failed += 1
done = True
flipping.join()
print(failed)
"""


def test_address_of_a_call_that_failed_is_that_which_the_kernel_read(
    start_ig: Start, namespace: Namespace
) -> None:
    ig = start_ig("trace", "tcpconnect", "--host", "-o", "json", "-F", f"netns=={namespace.inode}")
    failed = int(namespace.run(*PYTHON, FLIPPED))
    events = ig.stop()[0]
    assert len(events) == 2001
    unrouted = [event["dst"] for event in events if event["error"] == "ENETUNREACH"]
    assert len(unrouted) == failed
    assert {(end["addr"], end["port"]) for end in unrouted} <= {("192.0.2.1", 8101)}


def i386_program() -> bytes:
    """Return a program that waits for a signal: pause() again and again."""
    code = bytes.fromhex("b81d000000cd80ebf7")
    base, header = 0x08048000, 52 + 32
    size = header + len(code)
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    elf = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + header, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<8I", 1, 0, base, base, size, size, 5, 4096)
    return identity + elf + segment + code


@pytest.mark.skipif(platform.machine() != "x86_64", reason="i386 programs")
def test_32_bit_programs_are_said_to_be_seen_in_part(start_ig: Start, tmp_path: Path) -> None:
    program = tmp_path / "waits"
    program.write_bytes(i386_program())
    program.chmod(0o755)
    try:
        running = Program([str(program)])
    except OSError:
        pytest.skip("this kernel runs no i386 programs")
    until(lambda: os.readlink(f"/proc/{running.pid}/exe") == str(program), "it to be executed")
    assert "32-bit processes" in start_ig("trace", "bind", "-o", "json").stop()[1]
