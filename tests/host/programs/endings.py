"""End TCP connections in every way, one after the other, and print what their closes should say.

One JSON line a connection: its `case`, the ports of the side that connected (`client`) and of the
one that accepted (`server`), and for each side what it `sent`, and the `error` that it ended with.
"""

import ctypes
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
CLOSED = 7  # in struct tcp_info
MANY = 1_000_003
listener = socket.create_server(("127.0.0.1", 0))


class Pair:
    """A connection's two sides, and what their closes should say."""

    def __init__(self) -> None:
        self.client = socket.create_connection(listener.getsockname())
        self.server, _ = listener.accept()
        self.ports = self.client.getsockname()[1], self.server.getsockname()[1]
        self.sent = {"client": 0, "server": 0}
        self.error = {"client": "", "server": ""}
        self.times: dict[str, int] = {}

    def mark(self, name: str) -> None:
        """Take the time of what happens."""
        self.times[name] = time.clock_gettime_ns(time.CLOCK_REALTIME)

    def send(self, side: str, size: int) -> None:
        """Send from one side and read it all on the other."""
        source, target = (self.client, self.server)[:: 1 if side == "client" else -1]
        self.sent[side] += size
        while size:
            part = source.send(b"x" * min(size, 65536))
            size -= part
            while part:
                part -= len(target.recv(part))

    def ended(self, side: socket.socket) -> None:
        """Wait until the kernel has ended a side's connection."""
        while side.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != CLOSED:
            select.select([], [], [], 0.001)

    def report(self, case: str) -> None:
        """Close what is open yet, and print."""
        self.mark("reported")
        self.client.close()
        self.server.close()
        client, server = self.ports
        told = {"case": case, "client": client, "server": server, "times": self.times}
        print(json.dumps({**told, "sent": self.sent, "error": self.error}), flush=True)


def answered_after_half_close(pair: Pair) -> None:
    pair.send("client", 11)
    pair.client.shutdown(socket.SHUT_WR)
    pair.mark("half-closed")
    assert pair.server.recv(1) == b""
    pair.send("server", MANY)
    pair.mark("sent")
    pair.server.close()
    assert pair.client.recv(1) == b""
    pair.ended(pair.client)


def reset_after_half_close(pair: Pair) -> None:
    pair.send("client", 11)
    pair.client.shutdown(socket.SHUT_WR)
    pair.send("server", 4099)
    pair.server.setsockopt(*RESET)
    pair.server.close()
    pair.ended(pair.client)
    pair.error["client"] = "ECONNRESET"


def reset_after_the_last_fin_was_sent(pair: Pair) -> None:
    pair.client.shutdown(socket.SHUT_WR)
    assert pair.server.recv(1) == b""
    pair.client.setsockopt(*RESET)
    pair.server.setblocking(False)
    try:  # more than fits, so that the FIN has to wait
        while True:
            pair.sent["server"] += pair.server.send(b"x" * 65536)
    except BlockingIOError:
        pass
    pair.server.shutdown(socket.SHUT_WR)
    pair.client.close()
    pair.ended(pair.server)
    pair.error["server"] = "ECONNRESET"
    pair.sent = {"client": 0, "server": -1}  # some of it


def shut_down_by_both(pair: Pair) -> None:
    pair.send("server", 503)
    pair.server.shutdown(socket.SHUT_WR)
    pair.send("client", 1009)
    pair.client.shutdown(socket.SHUT_WR)
    pair.ended(pair.client)
    pair.ended(pair.server)


def shut_down_both_ways(pair: Pair) -> None:
    pair.send("client", 1009)
    pair.client.shutdown(socket.SHUT_RDWR)
    pair.server.shutdown(socket.SHUT_RDWR)
    pair.ended(pair.client)
    pair.ended(pair.server)


def closed_after_half_close(pair: Pair) -> None:
    """The peer has not closed: the owner's close is reported nevertheless."""
    pair.client.shutdown(socket.SHUT_WR)
    pair.send("server", 1009)
    pair.client.close()
    pair.mark("closed")


def reset_by_the_owner_after_half_close(pair: Pair) -> None:
    pair.client.shutdown(socket.SHUT_WR)
    pair.send("server", 1009)
    pair.client.setsockopt(*RESET)
    pair.client.close()
    pair.ended(pair.server)
    pair.error["server"] = "EPIPE"


def closed_with_data_unread_after_half_close(pair: Pair) -> None:
    pair.client.shutdown(socket.SHUT_WR)
    pair.sent["server"] = pair.server.send(b"unread")
    select.select([pair.client], [], [])
    pair.client.close()
    pair.ended(pair.server)
    pair.error["server"] = "EPIPE"


def receiving_shut_down(pair: Pair) -> None:
    pair.client.shutdown(socket.SHUT_RD)
    pair.send("client", 1009)
    pair.client.close()
    pair.server.close()


def reset_while_open(pair: Pair) -> None:
    pair.send("client", 1009)
    pair.client.setsockopt(*RESET)
    pair.client.close()
    pair.ended(pair.server)
    pair.error["server"] = "ECONNRESET"


def disconnected(pair: Pair) -> None:
    pair.send("client", 1009)
    unspecified = bytes(16)  # AF_UNSPEC
    assert ctypes.CDLL(None).connect(pair.client.fileno(), unspecified, 16) == 0
    pair.ended(pair.server)
    pair.error["server"] = "ECONNRESET"


def half_closed_in_a_child_that_is_killed(pair: Pair) -> None:
    child = os.fork()
    if not child:
        pair.client.shutdown(socket.SHUT_WR)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert pair.server.recv(1) == b""
    pair.send("server", 1009)


def held_in_close_wait(pair: Pair) -> None:
    pair.send("client", 1009)
    pair.client.close()
    assert pair.server.recv(1) == b""


def unread_until_the_user_timeout(pair: Pair) -> None:
    """The peer's window stays closed for longer than TCP_USER_TIMEOUT allows."""
    pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    pair.client.setblocking(False)
    try:
        while True:
            pair.client.send(b"x" * 65536)
    except BlockingIOError:
        pair.sent["client"] = -1  # as much as there was room for
    pair.ended(pair.client)
    pair.error["client"] = "ETIMEDOUT"


def fin_wait_2_timeout(pair: Pair) -> None:
    """The kernel waits tcp_fin_timeout for the peer's FIN, and resets what comes later."""
    pair.client.close()
    pair.mark("closed")
    assert pair.server.recv(1) == b""
    client, server = pair.ports
    while f":{client:04X} 0100007F:{server:04X}" in Path("/proc/net/tcp").read_text():
        select.select([], [], [], 0.01)
    pair.server.send(b"late")
    pair.sent["server"] = -1
    pair.ended(pair.server)
    pair.error["server"] = "EPIPE"


CASES: list[Callable[[Pair], None]] = [
    answered_after_half_close,
    reset_after_half_close,
    reset_after_the_last_fin_was_sent,
    shut_down_by_both,
    shut_down_both_ways,
    closed_after_half_close,
    reset_by_the_owner_after_half_close,
    closed_with_data_unread_after_half_close,
    receiving_shut_down,
    reset_while_open,
    disconnected,
    half_closed_in_a_child_that_is_killed,
    held_in_close_wait,
    unread_until_the_user_timeout,
    fin_wait_2_timeout,
]

if __name__ == "__main__":
    for case in CASES:
        pair = Pair()
        case(pair)
        pair.report(case.__name__)
