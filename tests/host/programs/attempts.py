"""Make TCP connects that end in odd ways, one after the other, and print what each caller was told.

One JSON line a case: its name, the `port` that it connects to, and the `errors` of its calls in
their order, empty for success. Run in a network namespace in which segments to UNANSWERED are
dropped, those to RESET are answered by a firewall's reset.
"""

import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

UNANSWERED, RESET = map(int, sys.argv[1:])
SYN_SENT = 2  # in struct tcp_info
libc = ctypes.CDLL(None, use_errno=True)
port = 0
errors: list[str] = []


def told(error: int | None) -> None:
    errors.append(errno.errorcode[error] if error else "")


def opened(to: int, blocking: bool = False) -> socket.socket:
    """Return a socket that has begun to connect."""
    made = socket.socket()
    made.setblocking(blocking)
    made.connect_ex(("127.0.0.1", to))
    return made


def connect(address: bytes, size: int | None = None) -> None:
    """Connect to an address as it is, well-formed or not."""
    with socket.socket() as made:
        failed = libc.connect(made.fileno(), address, len(address) if size is None else size)
        told(ctypes.get_errno() if failed else 0)


def error_of(made: socket.socket) -> None:
    told(made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def user_timeout() -> None:
    with socket.socket() as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100)
        told(made.connect_ex(("127.0.0.1", UNANSWERED)))


def destroyed() -> None:
    with opened(UNANSWERED) as made:
        source = f"sport = {made.getsockname()[1]}"
        subprocess.run(["ss", "-K", "-tn", source], check=True, stdout=subprocess.DEVNULL)
        error_of(made)


def shut_down_by_a_thread() -> None:
    with socket.socket() as made:
        call = threading.Thread(target=lambda: told(made.connect_ex(("127.0.0.1", UNANSWERED))))
        call.start()
        while made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != SYN_SENT:
            pass
        made.shutdown(socket.SHUT_RDWR)
        call.join()


def disconnected() -> None:
    with opened(UNANSWERED) as made:
        told(libc.connect(made.fileno(), bytes(16), 16))


def closed_by_exec() -> None:
    child = os.fork()
    if not child:
        opened(UNANSWERED)
        os.execvp("true", ["true"])
    os.waitpid(child, 0)


def reset_by_a_firewall() -> None:
    with socket.socket() as made:
        told(made.connect_ex(("127.0.0.1", RESET)))


def to_port_0() -> None:
    with socket.socket() as made:
        told(made.connect_ex(("127.0.0.1", 0)))


def broadcast() -> None:
    connect(struct.pack("=HH4B8x", socket.AF_INET, socket.htons(UNANSWERED), 255, 255, 255, 255))


def multicast() -> None:
    connect(struct.pack("=HH4B8x", socket.AF_INET, socket.htons(UNANSWERED), 224, 0, 0, 1))


def malformed() -> None:
    address = struct.pack("=HH4B8x", socket.AF_INET, socket.htons(UNANSWERED), 127, 0, 0, 1)
    connect(address, 0)
    connect(address, 1)
    connect(address, 15)
    connect(address, 129)
    connect(address, -1)
    connect(struct.pack("=H14x", 250))
    connect(struct.pack("=H26x", socket.AF_INET6))
    told(0 if not libc.connect(socket.socket().fileno(), 8, 16) else ctypes.get_errno())


def answered_before_data() -> None:
    """TCP_DEFER_ACCEPT: the server has a connection only once there is data."""
    global port
    with socket.socket() as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # its FIN counts as data
        with server.accept()[0] as accepted:
            assert not accepted.recv(9)
        with socket.create_connection(("127.0.0.1", port)) as client:
            told(0)
            client.send(b"data")
            with server.accept()[0] as accepted:
                assert accepted.recv(9) == b"data"


CASES: dict[Callable[[], None], int] = {
    user_timeout: UNANSWERED,
    destroyed: UNANSWERED,
    shut_down_by_a_thread: UNANSWERED,
    disconnected: UNANSWERED,
    closed_by_exec: UNANSWERED,
    reset_by_a_firewall: RESET,
    to_port_0: 0,
    broadcast: UNANSWERED,
    multicast: UNANSWERED,
    malformed: UNANSWERED,
    answered_before_data: 0,
}

if __name__ == "__main__":
    for number, case in enumerate(CASES):
        port, errors = CASES[case], []
        name = f"case-{number}"
        with open("/proc/self/comm", "w") as comm:
            comm.write(name)
        case()
        line = {"case": case.__name__, "comm": name, "port": port, "errors": errors}
        print(json.dumps(line), flush=True)
