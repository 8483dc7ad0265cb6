"""Have each kind of segment sent again: firewall rules drop them where they arrive, for a while.

`resend.py NEAR FAR PORT`: a client at NEAR, and listeners at FAR. One JSON line when all is closed:
how often the kernel has sent again a SYN, the answer to one, and data of either end (`syn`,
`syn-ack`, `near`, `far`), and of an end of which is not known whether it has connected (`unknown`);
`total` is what it has counted in this network namespace.
"""

import json
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

IP_BIND_ADDRESS_NO_PORT = 24
BYTES = 100_003  # many segments, several of which are sent again at once
UNACKNOWLEDGED, RETRANSMITS = 4, 23  # of the numbers that follow 8 bytes in struct tcp_info
near, far, port = sys.argv[1], sys.argv[2], int(sys.argv[3])


@contextmanager
def losing(*match: object) -> Iterator[None]:
    rule = ["INPUT", "-p", "tcp", *map(str, match), "-j", "DROP"]
    subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-D", *rule], check=True)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        select.select([], [], [], 0.01)


def info(end: socket.socket, place: int) -> int:
    return int(struct.unpack_from("=I", end.getsockopt(6, socket.TCP_INFO, 104), 8 + 4 * place)[0])


def client() -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    made.bind((near, 0))
    return made


def repeated(sender: socket.socket, receiver: socket.socket, direction: str) -> int:
    """Send what is lost at first; return how often it was sent again."""
    before = info(sender, RETRANSMITS)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * BYTES)
    with losing(direction, port):
        sender.sendall(bytes(BYTES))
        until(lambda: info(sender, RETRANSMITS) > before + 1)
    left = BYTES
    while left:
        left -= len(receiver.recv(left))
    until(lambda: info(sender, UNACKNOWLEDGED) == 0)
    return info(sender, RETRANSMITS) - before


def sent_again() -> int:
    names, values = (
        line.split()
        for line in Path("/proc/self/net/snmp").read_text().splitlines()
        if line.startswith("Tcp:")
    )
    return int(values[names.index("RetransSegs")])


began = sent_again()
with socket.create_server((far, port)) as listener:
    with client() as one:
        one.setblocking(False)
        with losing("--dport", port):
            one.connect_ex((far, port))
            until(lambda: info(one, RETRANSMITS) > 0)
        other, _ = listener.accept()
        syns = info(one, RETRANSMITS)
        one.setblocking(True)
        from_near = repeated(one, other, "--dport")
        from_far = repeated(other, one, "--sport")
        other.close()
    so_far = began + syns + from_near + from_far
    with client() as one:
        one.setblocking(False)
        with losing("--sport", port, "--tcp-flags", "SYN,ACK", "SYN,ACK"):
            one.connect_ex((far, port))
            until(lambda: sent_again() > so_far + info(one, RETRANSMITS))
        other, _ = listener.accept()
        syns += info(one, RETRANSMITS)
        answers = info(other, RETRANSMITS)
        other.close()
with socket.create_server((far, port), backlog=0) as listener, client() as one:
    one.connect((far, port))
    other, _ = listener.accept()
    unknown = repeated(other, one, "--sport")
    other.close()
counts = {"syn": syns, "syn-ack": answers, "near": from_near, "far": from_far, "unknown": unknown}
print(json.dumps({**counts, "total": sent_again() - began}), flush=True)
