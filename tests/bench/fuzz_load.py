"""Make random TCP connections, and print what a tracer should report of each.

`fuzz_load.py SEED SECONDS`, in a network namespace of its own, with the distribution's Python and
nothing else. One JSON line a connection: its addresses (`key`), how the connect ends (`outcome`),
whose the two ends are (`connects`, `accepts`: process numbers, 0 if nobody's), what each wrote, and
whether a reset may have cut it short (`reset`). Where the kernel always uses SYN cookies, a late
packet of the client may create the listener's end a second time, if that end never wrote: an
accept() of it is a line with `again`, the process that accepted it.
"""

import ctypes
import errno
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
ESTABLISHED, SYN_SENT, CLOSED = 1, 2, 7  # in struct tcp_info
MOST_OPEN, MOST_WAITING = 60, 40
NOWHERE = 9
libc = ctypes.CDLL(None)


def state(of: socket.socket) -> int:
    return of.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


@dataclass(eq=False)
class End:
    """One end of a connection; `copies` are the descriptors of its socket, none once closed."""

    owner: int
    copies: list[socket.socket]
    written: int = 0
    read: int = 0
    half_closed: bool = False
    deaf: bool = False


@dataclass(eq=False)
class Connection:
    """Both ends, of which the one that accepts may be missing."""

    key: tuple[str, int, int]
    outcome: str
    client: End
    server: End | None = None
    reset: bool = False
    queued: str = "never"
    """Whether the other end was made, though nobody accepted it: `never`, `once`, `perhaps`."""
    again: bool = False

    def ends(self) -> list[End]:
        return [self.client, self.server] if self.server else [self.client]

    def other(self, end: End) -> End | None:
        return self.server if end is self.client else self.client

    def report(self) -> None:
        accepts = self.server.owner if self.server else 0
        ends = {"connects": self.client.owner, "accepts": accepts, "queued": self.queued}
        written = [self.client.written, self.server.written if self.server else 0]
        half = [end.half_closed for end in self.ends()]
        print(
            json.dumps(
                {
                    "key": self.key,
                    "outcome": self.outcome,
                    **ends,
                    "written": written,
                    "half_closed": half,
                    "reset": self.reset,
                }
            )
        )


class Listener:
    """A listening socket, and the connections that wait in its queue."""

    def __init__(self, family: int, address: str) -> None:
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        # Connections of listeners that are gone must not use up the ports in a minute.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 100)
        self.socket.bind((address, 0))
        self.socket.listen(4096)
        self.socket.setblocking(False)
        self.family, self.port = family, self.socket.getsockname()[1]
        self.waiting: dict[tuple[str, int], Connection] = {}

    def has_queued_all(self) -> bool:
        """Wait until the kernel has queued every connection, which it may do after connect()."""
        for _ in range(5000):
            # tcpi_unacked is the length of a listener's queue
            information = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
            if struct.unpack_from("I", information, 24)[0] >= len(self.waiting):
                return True
            time.sleep(0.001)
        return False


class Fuzz:
    """The program's state, and one method for each thing that it may do next."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.open: list[Connection] = []
        self.ports = 10_000
        self.round = 1
        families = [
            (socket.AF_INET, "127.0.0.1"),
            (socket.AF_INET6, "::1"),
            (socket.AF_INET6, "::"),
        ]
        self.listeners = [Listener(*self.random.choice(families)) for _ in range(4)]
        self.child, self.hold = 0, -1
        self.made = 0
        self.cookies = Path("/proc/sys/net/ipv4/tcp_syncookies").read_text().strip() == "2"

    def steps(self) -> dict[str, int]:
        """Return what may be done next, and how often of all."""
        return {
            "connect": 20,
            "connect_by_fast_open": 3,
            "connect_by_a_child_that_is_killed": 1,
            "connect_nowhere": 2,
            "connect_to_itself": 1,
            "connect_to_a_full_queue": 1,
            "accept": 25,
            "accept_by_a_child": 1,
            "send": 40,
            "receive": 40,
            "shut_down": 12,
            "close": 30,
            "reset_it": 5,
            "copy": 6,
            "hold_or_let_go": 1,
            "disconnect": 3,
            "close_a_listener": 1,
        }

    def run(self, seconds: float) -> None:
        names, weights = zip(*self.steps().items(), strict=True)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            getattr(self, self.random.choices(names, weights)[0])()
        self.finish()

    def finish(self) -> None:
        for listener in self.listeners:
            self.refuse_all(listener)
        for connection in list(self.open):
            for end in connection.ends():
                while end.copies:
                    self.close_copy(connection, end)
        self.let_go()

    def source(self, family: int) -> tuple[str, int]:
        """Return an address and a port that nothing had before."""
        self.ports += 1
        if self.ports > 60_000:
            self.ports, self.round = 10_001, self.round + 1
        return (
            ("::1" if self.round == 1 else f"fd00::{self.round:x}", self.ports)
            if (family == socket.AF_INET6)
            else (f"127.0.0.{self.round}", self.ports)
        )

    def client_of(self, listener: Listener) -> tuple[socket.socket, tuple[str, int], str]:
        """Return a bound socket, its address as it is reported, and where it can connect."""
        made = socket.socket(listener.family, socket.SOCK_STREAM)
        mapped = listener.family == socket.AF_INET6 and listener.socket.getsockname()[0] == "::"
        if mapped and self.random.random() < 0.5:
            made.close()
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        target = "127.0.0.1" if made.family == socket.AF_INET else "::1"
        address = self.source(made.family)
        made.bind(address)
        made.setblocking(False)
        return made, address, target

    def some_listener(self) -> Listener | None:
        free = [each for each in self.listeners if len(each.waiting) < MOST_WAITING]
        return self.random.choice(free) if free and len(self.open) < MOST_OPEN else None

    def connected(self, made: socket.socket) -> None:
        assert select.select([], [made], [], 5)[1]
        assert not made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def connect(self) -> None:
        if not (listener := self.some_listener()):
            return
        made, address, target = self.client_of(listener)
        made.connect_ex((target, listener.port))
        self.connected(made)
        self.add(listener, address, made)

    def add(self, listener: Listener, address: tuple[str, int], made: socket.socket) -> Connection:
        self.made += 1
        key = (*address, listener.port)
        connection = Connection(key, "established", End(os.getpid(), [made]))
        listener.waiting[address] = connection
        self.open.append(connection)
        return connection

    def connect_by_fast_open(self) -> None:
        if not (listener := self.some_listener()):
            return
        made, address, target = self.client_of(listener)
        size = self.random.randrange(1, 1000)
        made.setblocking(True)
        sent = made.sendto(b"x" * size, socket.MSG_FASTOPEN, (target, listener.port))
        made.setblocking(False)
        self.connected(made)
        self.add(listener, address, made).client.written = sent

    def connect_by_a_child_that_is_killed(self) -> None:
        if not (listener := self.some_listener()):
            return
        made, address, target = self.client_of(listener)
        child = os.fork()
        if not child:
            made.connect_ex((target, listener.port))
            self.connected(made)
            made.send(b"x" * 100)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        connection = self.add(listener, address, made)
        connection.client.owner, connection.client.written = child, 100

    def connect_nowhere(self) -> None:
        address = self.source(socket.AF_INET)
        with socket.socket() as made:
            made.bind(address)
            assert made.connect_ex(("127.0.0.1", NOWHERE))
        self.made += 1
        Connection((*address, NOWHERE), "refused", End(os.getpid(), [])).report()

    def connect_to_itself(self) -> None:
        address = self.source(socket.AF_INET)
        with socket.socket() as made:
            made.bind(address)
            made.connect(address)
            made.send(b"x" * 503)
            half_closed = self.random.random() < 0.5
            if half_closed:
                made.shutdown(socket.SHUT_WR)
            while made.recv(503) and half_closed:
                pass
        self.made += 1
        end = End(os.getpid(), [], written=503, half_closed=half_closed)
        itself = Connection((*address, address[1]), "established", end, server=end)
        itself.report()

    def connect_to_a_full_queue(self) -> None:
        clients = []
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            for _ in range(4):
                address = self.source(socket.AF_INET)
                made = socket.socket()
                made.bind(address)
                made.setblocking(False)
                made.connect_ex(("127.0.0.1", port))
                clients.append((address, made))
        for address, made in clients:
            outcome = "established" if state(made) in (ESTABLISHED, CLOSED) else "abandoned"
            if made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
                outcome = "refused"  # a SYN that was repeated came after the listener's end
            made.close()
            self.made += 1
            key, end = (*address, port), End(os.getpid(), [])
            queued = "perhaps" if outcome == "established" else "never"
            Connection(key, outcome, end, reset=True, queued=queued).report()

    def waiting(self, listener: Listener, peer: tuple[str, int], accepts: int) -> Connection | None:
        """Return the connection that was accepted; None, and report it, if it was created again."""
        address = (peer[0].removeprefix("::ffff:"), peer[1])
        if self.cookies and address not in listener.waiting:
            print(json.dumps({"key": (*address, listener.port), "again": accepts}))
            return None
        return listener.waiting.pop(address)

    def accept(self) -> None:
        listener = self.random.choice(self.listeners)
        if not listener.waiting:
            return
        made, peer = listener.socket.accept()
        made.setblocking(False)
        if not (connection := self.waiting(listener, peer[:2], os.getpid())):
            made.close()
            return
        connection.server = End(os.getpid(), [made])
        if connection not in self.open:
            self.open.append(connection)

    def accept_by_a_child(self) -> None:
        listener = self.random.choice(self.listeners)
        if not listener.waiting:
            return
        read, write = os.pipe()
        child = os.fork()
        if not child:
            _, peer = listener.socket.accept()
            os.write(write, json.dumps(peer[:2]).encode())
            os._exit(0)
        os.waitpid(child, 0)
        host, port = json.loads(os.read(read, 1000))
        os.close(read)
        os.close(write)
        if not (connection := self.waiting(listener, (host, port), child)):
            return
        connection.server = End(child, [])
        if connection.client.written:
            connection.reset = True
        self.ended(connection)

    def some_end(self) -> tuple[Connection, End] | tuple[None, None]:
        if not self.open:
            return None, None
        connection = self.random.choice(self.open)
        ends = [end for end in connection.ends() if end.copies]
        return (connection, self.random.choice(ends)) if ends else (None, None)

    def send(self) -> None:
        connection, end = self.some_end()
        if not connection or not end or end.half_closed:
            return
        size = self.random.choice((1, 100, 1460, 70_000))
        try:
            sent = end.copies[-1].send(b"x" * size, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            connection.reset = True
            return
        end.written += sent
        other = connection.other(end)
        if other and (not other.copies or other.deaf):
            connection.reset = True

    def receive(self) -> None:
        connection, end = self.some_end()
        if connection and end:
            self.drain(connection, end)

    def drain(self, connection: Connection, end: End) -> None:
        other = connection.other(end)
        while other and end.read < other.written:
            try:
                select.select([end.copies[-1]], [], [], 5)
                got = len(end.copies[-1].recv(1 << 20))
            except OSError:
                got = 0
            if not got:
                connection.reset = True
                return
            end.read += got

    def shut_down(self) -> None:
        connection, end = self.some_end()
        if not connection or not end:
            return
        how = self.random.choice((socket.SHUT_WR, socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR))
        other = connection.other(end)
        if how != socket.SHUT_WR:
            if other and (end.read < other.written):
                connection.reset = True
            if other is None:
                how = socket.SHUT_WR
            else:
                end.deaf = True
        try:
            end.copies[-1].shutdown(how)
        except OSError:
            return
        if how != socket.SHUT_RD:
            end.half_closed = True

    def close(self) -> None:
        connection, end = self.some_end()
        if connection and end:
            self.close_copy(connection, end)

    def close_copy(self, connection: Connection, end: End) -> None:
        other = connection.other(end)
        if len(end.copies) == 1 and self.random.random() < 0.8:
            self.drain(connection, end)
        if other and end.read < other.written:
            connection.reset = True
        end.copies.pop(self.random.randrange(len(end.copies))).close()
        self.ended(connection)

    def reset_it(self) -> None:
        connection, end = self.some_end()
        if connection and end:
            connection.reset = True
            end.copies[-1].setsockopt(*RESET)
            while end.copies:
                end.copies.pop().close()
            self.ended(connection)

    def copy(self) -> None:
        connection, end = self.some_end()
        if connection and end and len(end.copies) < 3:
            end.copies.append(end.copies[0].dup())

    def hold_or_let_go(self) -> None:
        """Let a child have copies of everything for a while."""
        if self.child:
            self.let_go()
            return
        read, self.hold = os.pipe()
        self.child = os.fork()
        if not self.child:
            os.close(self.hold)
            os.read(read, 1)
            os._exit(0)
        os.close(read)

    def let_go(self) -> None:
        if self.child:
            os.close(self.hold)
            os.waitpid(self.child, 0)
            self.child = 0

    def disconnect(self) -> None:
        """AF_UNSPEC ends a connection; the one that connected may connect again."""
        connection, end = self.some_end()
        if not connection or not end:
            return
        connection.reset = True
        if state(end.copies[0]) == CLOSED or libc.connect(end.copies[0].fileno(), bytes(16), 16):
            return
        copies, end.copies = end.copies, []
        self.ended(connection)
        same = [each for each in self.listeners if each.port != connection.key[2]]
        same = [each for each in same if each.family == copies[0].family]
        if end is not connection.client or not same or connection.again:
            for each in copies:
                each.close()
            return
        listener = self.random.choice(same)
        target = "127.0.0.1" if copies[0].family == socket.AF_INET else "::1"
        copies[0].connect_ex((target, listener.port))
        self.connected(copies[0])
        made = self.add(listener, connection.key[:2], copies[0])
        made.client.copies, made.again = copies, True

    def close_a_listener(self) -> None:
        at = self.random.randrange(len(self.listeners))
        listener = self.listeners[at]
        address = listener.socket.getsockname()[0]
        self.refuse_all(listener)
        self.listeners[at] = Listener(listener.family, address)

    def refuse_all(self, listener: Listener) -> None:
        """Let all that wait in a queue end unaccepted, once no child has the listener too."""
        self.let_go()
        # What was created again is in the queue, too, and makes it longer.
        queued = "once" if listener.has_queued_all() and not self.cookies else "perhaps"
        listener.socket.close()
        waiting, listener.waiting = list(listener.waiting.values()), {}
        for connection in waiting:
            connection.queued, connection.reset = queued, True
            self.ended(connection)

    def ended(self, connection: Connection) -> None:
        """Print what is known of a connection that has ended on both sides."""
        waits = any(connection in each.waiting.values() for each in self.listeners)
        if waits or any(end.copies for end in connection.ends()):
            return
        if connection in self.open:
            self.open.remove(connection)
        connection.report()


if __name__ == "__main__":
    fuzz = Fuzz(int(sys.argv[1]))
    fuzz.run(float(sys.argv[2]))
    print(json.dumps({"ready": True, "made": fuzz.made}))
