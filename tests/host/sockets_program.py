"""Opens a socket in every state that can be reached on loopback, says `ready`, ends with its input.

Run in a network namespace of its own: `unshare --net python3 sockets_program.py [WHAT]`.
"""

import contextlib
import socket
import subprocess
import sys

KEEP: list[socket.socket] = []
LO4, LO6 = "127.0.0.1", "::1"


def kept(sock):
    KEEP.append(sock)
    return sock


def listener(address, port, *, v6only=None, backlog=16, defer=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = kept(socket.socket(family))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if v6only is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    if defer:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, defer)
    sock.bind((address, port))
    sock.listen(backlog)
    return sock


def pair(server, address):
    client = kept(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
    client.connect((address, server.getsockname()[1]))
    accepted, _ = server.accept()
    return client, kept(accepted)


def fill(sock):
    """Send until the peer takes no more, so that what follows is stuck behind it."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 16))


def tcp():
    any4 = listener("0.0.0.0", 8004)
    only6 = listener("::", 8006, v6only=1)
    dual = listener("::", 8046, v6only=0)
    listener("::", 8004, v6only=1)
    pair(any4, LO4), pair(only6, LO6), pair(dual, LO6), pair(dual, LO4)  # ESTABLISHED
    for server, address in ((any4, LO4), (only6, LO6), (dual, LO4)):
        active, passive = pair(server, address)  # TIME_WAIT
        active.close()
        assert passive.recv(1) == b""
        passive.close()
    half, _ = pair(any4, LO4)  # FIN_WAIT2 and CLOSE_WAIT
    half.shutdown(socket.SHUT_WR)
    orphan, _ = pair(any4, LO4)  # the same, with nobody who holds it
    orphan.close()
    stuck, _ = pair(any4, LO4)  # FIN_WAIT1
    fill(stuck)
    stuck.shutdown(socket.SHUT_WR)
    last, peer = pair(any4, LO4)  # LAST_ACK and FIN_WAIT2
    fill(last)
    peer.shutdown(socket.SHUT_WR)
    last.shutdown(socket.SHUT_WR)
    both, other = pair(any4, LO4)  # CLOSING
    fill(both)
    both.shutdown(socket.SHUT_WR)
    other.shutdown(socket.SHUT_WR)
    half_open(LO4, 8010)
    half_open(LO6, 8011)
    unanswered(8012)
    marked = listener(LO4, 8013)
    marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 42)
    bound = kept(socket.socket())
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    bound.bind((LO4, 8014))
    bound.listen()


def half_open(address, port):
    """Leave a connection in SYN_RECV: its server waits for data before it is one."""
    listener(address, port, defer=60)
    client = kept(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
    client.connect((address, port))


def unanswered(port):
    """Leave a connection in SYN_SENT: the queue of its server is full."""
    server = listener(LO4, port, backlog=0)
    first = kept(socket.socket())
    first.connect(server.getsockname())
    second = kept(socket.socket())
    second.setblocking(False)
    second.connect_ex(server.getsockname())


def udp():
    for family, address in ((socket.AF_INET, LO4), (socket.AF_INET6, LO6)):
        one, two = (kept(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(2))
        one.bind((address, 9000))
        two.connect((address, 9000))
    anyone = kept(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    anyone.bind(("", 9001))
    dual = kept(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    dual.bind(("::", 9002))
    mapped = kept(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    mapped.connect(("::ffff:127.0.0.1", 9001))


def many(count):
    server = listener(LO4, 8000, backlog=64)
    for _ in range(count // 2):
        pair(server, LO4)


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if what.isdecimal():
        many(int(what))
    if what in ("all", "tcp"):
        tcp()
    if what in ("all", "udp"):
        udp()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
