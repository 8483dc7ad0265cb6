"""Engines that misbehave: a real socket, a real client, and answers that no engine should give."""

from __future__ import annotations

import gc
import json
import queue
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ig.container import Change, Container
from ig.containers.index import Index
from ig.containers.runtimes import docker_api
from ig.containers.runtimes.docker_api import LARGEST_RECORD, Engine
from ig.containers.store import MOST
from ig.errors import RuntimeUnavailable
from tests.host.serving import end_serving
from tests.host.waiting import PATIENCE

ID = "a" * 64
OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[socket.socket, str], None]


def send(connection: socket.socket, body: bytes) -> None:
    """Answer with one body."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def chunk(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


class BadEngine:
    """Listens on a unix socket and lets a test answer every request by its path."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answer = answer
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError, IndexError):
            while request := connection.recv(65536):
                self._answer(connection, request.split()[1].decode().partition("?")[0])

    def close(self) -> None:
        end_serving(self._listener, self._thread, self._open)


Serve = Callable[..., Engine]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    engines: list[BadEngine] = []

    def start(answer: Answer, timeout: int = int(PATIENCE)) -> Engine:
        path = tmp_path / "engine.sock"
        engines.append(BadEngine(path, answer))
        return Engine("docker", str(path), ("create",), timeout=timeout)

    yield start
    for engine in engines:
        engine.close()


def running(listed: bytes, events: bytes = b"", ends: bool = False) -> Answer:
    """Answer as an engine does, with this list and these events."""

    def answer(connection: socket.socket, path: str) -> None:
        if path == "/_ping":
            send(connection, b"OK")
        elif path == "/events":
            connection.sendall(OK + (chunk(events) if events else b"") + (b"0\r\n\r\n" * ends))
        else:
            send(connection, listed)

    return answer


def watched(engine: Engine) -> list[Change]:
    """Return what the engine tells until it is found out."""
    with closing(engine.watch(lambda: False)) as changes:  # type: ignore[type-var]
        return list(changes)


def watched_until_end(engine: Engine) -> list[Change]:
    """Return the changes of containers that the engine tells until it ends its events."""
    changes: list[Change] = []
    with pytest.raises(RuntimeUnavailable, match="closed the event stream"):
        changes += (each for each in engine.watch(lambda: False) if each.container.id)
    return changes


@pytest.mark.parametrize(
    "listed",
    [b"", b"no JSON", b"{}", b'"text"', b"[" * 100_000, b"\xff\xfe", b"[" + b"9" * 100_000],
)
def test_list_that_is_none_is_an_unavailable_engine(serve: Serve, listed: bytes) -> None:
    with pytest.raises(RuntimeUnavailable):
        watched(serve(running(listed)))


@pytest.mark.parametrize(
    "said",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200\r\n" * 500,
    ],
)
def test_answer_that_is_no_http_is_an_unavailable_engine(serve: Serve, said: bytes) -> None:
    def answer(connection: socket.socket, _path: str) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_RDWR)

    with pytest.raises(RuntimeUnavailable):
        watched(serve(answer))


def test_engine_that_never_answers_is_given_up(serve: Serve) -> None:
    with pytest.raises(RuntimeUnavailable, match="timed out"):
        watched(serve(lambda _connection, _path: None, timeout=1))


def endless(head: bytes, piece: bytes) -> Answer:
    """Say the same to every question, without end."""

    def answer(connection: socket.socket, _path: str) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    return answer


def zipped(head: bytes) -> Answer:
    """Say to every question what is small until it is decompressed."""

    def answer(connection: socket.socket, _path: str) -> None:
        press = zlib.compressobj(1, wbits=31)
        body = b"".join(press.compress(BIG) for _ in range(256)) + press.flush()
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + b"Content-Encoding: gzip\r\n" + length)
        connection.sendall(body)

    return answer


def listing(piece: bytes, count: int, first: bytes = b"[", last: bytes = b"7]") -> Answer:
    """Answer as an engine does whose list is of one record `count` times, then end its events."""

    def answer(connection: socket.socket, path: str) -> None:
        if path != "/containers/json":
            running(b"", ends=True)(connection, path)
            return
        size = len(first) + len(piece) * count + len(last)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + first)
        for _ in range(count):
            connection.sendall(piece)
        connection.sendall(last)

    return answer


def flood(events: Iterable[bytes]) -> Answer:
    """Answer as an engine does that has nothing and says all this as events, then ends."""

    def answer(connection: socket.socket, path: str) -> None:
        if path != "/events":
            running(b"[]")(connection, path)
            return
        connection.sendall(OK)
        for event in events:
            connection.sendall(chunk(event))
        connection.sendall(b"0\r\n\r\n")

    return answer


def created(number: int, labels: int, length: int, fill: str = "v") -> bytes:
    attributes = {f"{number}.{n}": fill * length for n in range(labels)}
    actor = {"ID": f"{number:064x}", "Attributes": {"name": f"n{number}", **attributes}}
    event = {"Action": "create", "Type": "container", "Actor": actor}
    return json.dumps(event).encode() + b"\n"


def record(number: int, **more: object) -> bytes:
    return json.dumps({"Id": f"{number:064x}", "State": "running", **more}).encode()


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n"
BIG = bytes(1 << 20).replace(b"\0", b" ")
PORTS = [{"IP": "::", "PrivatePort": n, "PublicPort": n, "Type": "tcp"} for n in range(1, 1025)]
NETWORKS = {str(n): {"IPAddress": f"10.1.0.{n}"} for n in range(64)}
OVERSIZED: dict[str, Answer] = {
    "a redirect, a body without end": endless(REDIRECT + b"\r\n", BIG),
    "a redirect, chunks without end": endless(
        REDIRECT + b"Transfer-Encoding: chunked\r\n\r\n", chunk(BIG)
    ),
    "a redirect, gzip": zipped(REDIRECT),
    "an error, a body without end": endless(b"HTTP/1.1 500 Oh\r\n\r\n", BIG),
    "gzip": zipped(b"HTTP/1.1 200 OK\r\n"),
    "headers without end": endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 9999),
    "a header without end": endless(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536),
    "continue without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    "a status without end": endless(b"", b"HTTP/1.1" * 9999),
    "blanks without end": endless(OK, chunk(BIG)),
    "one chunk without end": endless(OK + b"f" * 15 + b"\r\n", BIG),
    "a chunk of less than nothing": endless(OK + b"-1\r\n", BIG),
    "a chunk's size without end": endless(OK, b"0" * 65536),
    "trailers without end": endless(OK + b"0\r\n", b"X: y\r\n" * 9999),
    "less than nothing": endless(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", BIG),
    "lines without end": endless(OK, chunk(b"[]\n" * 9999)),
    "no lines": endless(OK, chunk(b"[]," * 9999)),
    "a list of nothings": listing(b"{}," * 100_000, 110),
    "a list of empty lists": listing(b"[]," * 100_000, 110),
    "a list of numbers": listing(b"7," * 100_000, 160),
    "one record of nothings": listing(b"{}," * 100_000, 110, b"[[", b"{}]]"),
    "one record of pairs": listing(b'{"":1},' * 100_000, 40, b"[[", b"{}]]"),
    "one record of one text": listing(b"x" * 100_000, 330, b'[{"Id":"', b'"}]'),
    "a list of wide texts": listing('"\U0001f600",'.encode() * 100_000, 40),
    "depth": listing(b"[" * 100_000, 300),
    "depth of objects": listing(b'{"":' * 100_000, 80),
    "a long number": listing(b"9" * 100_000, 300),
    "a long fraction": listing(b"9" * 100_000, 300, b"[0."),
    "labels": flood(created(n, 1, 900_000) for n in range(200)),
    "many labels": flood(created(n, 240, 4000) for n in range(300)),
    "tiny labels": flood(created(n, 256, 1) for n in range(4000)),
    "wide labels": flood(created(n, 256, 100, "\U0001f600") for n in range(600)),
    "many containers": flood(created(n, 0, 0) for n in range(40_000)),
    "labels of nothings": flood([b'{"Actor":[' + b"{}," * 340_000 + b"7]}\n"] * 20),
    "many ports": flood([]),
}


@pytest.fixture(scope="module", autouse=True)
def _sizes() -> None:
    """Make what is sent of ports and addresses once."""
    body = b",".join(
        record(n, Ports=PORTS, NetworkSettings={"Networks": NETWORKS}) for n in range(900)
    )
    OVERSIZED["many ports"] = running(b"[" + body + b"]", ends=True)


def peak() -> int:
    """Return the largest resident size since it was last asked for, in bytes."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.parametrize("kind", OVERSIZED)
def test_answer_of_any_kind_takes_bounded_memory(
    serve: Serve, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_api, "LONGEST_ANSWER", 0.5)
    engine = serve(OVERSIZED[kind])
    ends = time.monotonic() + 1
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    index = Index([engine], lambda _: None)
    with suppress(RuntimeUnavailable):
        index.begin("docker")
        for change in engine.watch(lambda: time.monotonic() > ends):
            index.apply("docker", change)
    with suppress(RuntimeUnavailable):
        engine.details(Container(ID, "", "docker"))
    grown = peak() - before
    # The engine of this test is in the same process; `ig` takes some 40 MB before it asks.
    assert grown < 150 << 20, f"{grown >> 20} MB"


def test_header_that_trickles_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_api, "LONGEST_ANSWER", 0.5)
    ends = threading.Event()

    def answer(connection: socket.socket, _path: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not ends.wait(0.01):
            connection.sendall(b"y")

    with pytest.raises(RuntimeUnavailable, match="timed out"):
        watched(serve(answer))
    ends.set()


def test_record_that_is_too_large_hides_no_other(serve: Serve) -> None:
    large = record(1, Labels={"x": "y" * 2 * LARGEST_RECORD})
    body = b"[" + b",".join([record(0), large, record(2)]) + b"]"
    events = b"".join([created(3, 1, 2 * LARGEST_RECORD), created(4, 1, 1)])
    changes = watched_until_end(serve(running(body, events, ends=True)))
    told = [int(change.container.id, 16) for change in changes if change.container.id]
    assert told == [0, 2, 4]


def test_small_labels_stay_where_there_is_no_room_for_all(serve: Serve) -> None:
    labels = {f"a{n}": "v" * 4000 for n in range(99)} | {"tier": "front"}
    body = b"[" + record(0, Labels=labels) + b"]"
    changes = watched_until_end(serve(running(body, ends=True)))
    assert changes[0].container.labels["tier"] == "front"
    assert sum(map(len, changes[0].container.labels.values())) < 10_000


def test_containers_beyond_the_most_are_the_oldest_that_are_forgotten(serve: Serve) -> None:
    events = [created(number, 0, 0) for number in range(MOST + 7)]
    changes = watched_until_end(serve(flood([b"".join(events)])))
    gone = [int(each.container.id, 16) for each in changes if each.kind == "removed"]
    assert gone == list(range(7))


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("npipe:////./pipe/docker_engine", "unknown scheme npipe://"),
        ("fd://3", "unknown scheme fd://"),
        ("ssh://host", "ssh:// is not supported"),
        ("unix://", "path of a socket"),
        ("tcp://", "expected tcp://HOST:PORT"),
        ("tcp://[::1", "Invalid IPv6 URL"),
        ("tcp://h:99999", "out of range"),
        ("tcp://h:a:b", "Port could not be"),
        ("tcp://" + "h" * 99 + ":1", "label too long"),
        ("tcp://127.0.0.1:9/x", "expected tcp://HOST:PORT"),
        ("://", "unknown scheme"),
    ],
)
def test_address_that_makes_no_sense_is_an_unavailable_engine(address: str, found: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=found):
        watched(Engine("docker", address, ()))


def test_socket_that_may_not_be_reached_is_not_called_missing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(RuntimeUnavailable, match=r"refused|denied"):
        watched(Engine("docker", str(file), ()))
    with pytest.raises(RuntimeUnavailable, match="Not a directory"):
        watched(Engine("docker", f"{file}/engine.sock", ()))


def test_answer_without_end_is_cut_off(serve: Serve) -> None:
    def answer(connection: socket.socket, path: str) -> None:
        if path != "/containers/json":
            running(b"")(connection, path)
            return
        connection.sendall(OK)
        while True:
            connection.sendall(chunk(b" " * 65536))

    with pytest.raises(RuntimeUnavailable, match="too large"):
        watched(serve(answer))


@pytest.mark.parametrize("piece", [chunk(b" " * 65536), b"f" * 65536])
def test_event_without_end_is_cut_off(serve: Serve, piece: bytes) -> None:
    def answer(connection: socket.socket, path: str) -> None:
        running(b"[]")(connection, path)
        while path == "/events":
            connection.sendall(piece)

    with pytest.raises(RuntimeUnavailable):
        watched(serve(answer))


def test_events_that_make_no_sense_are_passed_over(serve: Serve) -> None:
    good = {"Action": "create", "Actor": {"ID": ID, "Attributes": {"name": "web"}}}
    bad: list[object] = [[], None, 1, {"Action": []}, {"Action": "create", "Actor": {"ID": 7}}]
    lines = b"\n".join(json.dumps(event).encode() for event in [*bad, good]) + b"\n"
    engine = serve(running(b'[{"Id": 5}, 7, {"Id": "system.slice"}]', lines))
    changes = engine.watch(lambda: False)
    assert next(changes) == Change("synced")
    told = next(changes)
    assert (told.kind, told.container.name) == ("created", "web")
    changes.close()  # type: ignore[attr-defined]


def test_engine_that_ends_its_events_is_unavailable(serve: Serve) -> None:
    with pytest.raises(RuntimeUnavailable, match="closed the event stream"):
        watched(serve(running(b"[]", ends=True)))


def test_watch_that_waits_for_events_can_be_stopped(serve: Serve) -> None:
    engine = serve(running(b"[]"))
    changes = engine.watch(lambda: False)
    assert next(changes) == Change("synced")
    threading.Timer(0.1, engine.stop).start()
    assert list(changes) == []


def ending(header: bytes, body: bytes, closes: bool = True) -> Answer:
    """Answer as an engine does that has sent these events, and may have ended, before it lists."""
    asked, sent = threading.Event(), threading.Event()

    def answer(connection: socket.socket, path: str) -> None:
        if path == "/events":
            connection.sendall(header)
            asked.wait(PATIENCE)
            connection.sendall(body)
            if closes:
                connection.shutdown(socket.SHUT_RDWR)
            sent.set()
            return
        if path == "/containers/json":
            asked.set()
            sent.wait(PATIENCE)
        running(b"[]")(connection, path)

    return answer


ENDS = {
    "in order": (OK, chunk(created(7, 0, 0)) + b"0\r\n\r\n"),
    "in order, with more behind": (OK, chunk(created(7, 0, 0)) + b"0\r\n\r\nmore"),
    "of HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\n", created(7, 0, 0)),
    "between chunks": (OK, chunk(created(7, 0, 0))),
    "within a line's end": (OK, chunk(created(7, 0, 0))[:-1]),
    "before a line's end": (OK, chunk(created(7, 0, 0))[:-2]),
    "within a size": (OK, chunk(created(7, 0, 0)) + b"1"),
    "within a chunk": (OK, chunk(created(7, 0, 0)) + b"100\r\n{"),
    "after what is no chunk": (OK, chunk(created(7, 0, 0)) + b"no\r\n\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_end_of_the_stream_loses_no_event_that_was_read_before(
    serve: Serve, end: str, batches: bool
) -> None:
    engine = serve(ending(*ENDS[end]))
    engine.batch(batches)
    names: list[str] = []

    def watch() -> None:
        with pytest.raises(RuntimeUnavailable, match=r"closed the event stream"):
            names.extend(each.container.name for each in engine.watch(lambda: False))
        names.append("ended")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert names == ["", "n7", "ended"]
    assert not engine.catch_up(PATIENCE)


def test_event_is_applied_before_the_end_of_its_chunks_line_is_followed_by_more(
    serve: Serve,
) -> None:
    event = created(7, 0, 0)
    # The reader receives this many bytes at once: the line's end comes by itself.
    whole = docker_api.CHUNK - len(b"ffff\r\n")
    body = chunk(event + b" " * (whole - len(event) - 1) + b"\n")
    engine = serve(ending(OK, body, closes=False))
    engine.batch(True)
    names: queue.Queue[str] = queue.Queue()

    def watch() -> None:
        for each in engine.watch(lambda: False):
            names.put(each.container.name)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    assert [names.get(timeout=PATIENCE) for _ in range(2)] == ["", "n7"]
    engine.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_no_socket_is_an_unavailable_engine(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no such socket"):
        watched(Engine("docker", str(tmp_path / "none.sock"), ()))


class Watch:
    """An engine's changes, watched in a thread as a trace does; `send` has it report creations."""

    def __init__(self, serve: Serve) -> None:
        self.names: queue.Queue[str] = queue.Queue()
        self._streams: queue.Queue[socket.socket] = queue.Queue()
        self.engine = serve(self._answer)
        self.engine.batch(True)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._stream = self._streams.get(timeout=PATIENCE)
        assert self.names.get(timeout=PATIENCE) == ""

    def _answer(self, connection: socket.socket, path: str) -> None:
        running(b"[]")(connection, path)
        if path == "/events":
            self._streams.put(connection)

    def _run(self) -> None:
        for change in self.engine.watch(lambda: False):
            self.names.put(change.container.name)

    def send(self, *numbers: int) -> None:
        self._stream.sendall(b"".join(chunk(created(number, 0, 0)) for number in numbers))

    def read(self, count: int) -> list[str]:
        return [self.names.get(timeout=PATIENCE) for _ in range(count)]


def test_changes_are_read_in_batches_while_they_keep_coming(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_api, "PERIOD", 3600.0)
    watch = Watch(serve)
    for number in range(docker_api.PROMPT + 1):
        watch.send(number)
        watch.read(1)
    watch.send(100, 101)
    watch.send(102)
    assert watch.engine.catch_up(PATIENCE)
    assert watch.names.qsize() == 3
    assert not watch.engine.catch_up(PATIENCE)
    watch.send(103)
    assert watch.engine.catch_up(PATIENCE)
    assert watch.names.qsize() == 4
    watch.engine.stop()
    watch.thread.join(PATIENCE)
    assert not watch.thread.is_alive()


def test_changes_that_keep_coming_are_read_without_anybody_asking(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_api, "PERIOD", 0.1)
    watch = Watch(serve)
    for number in range(3 * docker_api.PROMPT):
        watch.send(number)
    assert len(watch.read(3 * docker_api.PROMPT)) == 3 * docker_api.PROMPT
    watch.engine.stop()
    watch.thread.join(PATIENCE)


def test_end_of_an_engine_that_is_read_in_batches_keeps_nobody_waiting(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_api, "PERIOD", 0.1)
    engine = serve(running(b"[]", created(1, 0, 0), ends=True))
    engine.batch(True)
    assert len(watched_until_end(engine)) == 1
    assert not engine.catch_up(PATIENCE)
