"""Engines that misbehave: a real socket, a real client, and answers that no engine should give."""

from __future__ import annotations

import json
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ig.containers.container import Change
from ig.containers.engine_api import LARGEST_ANSWER, Engine
from ig.errors import RuntimeUnavailable

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
        threading.Thread(target=self._serve, daemon=True).start()

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
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


Serve = Callable[[Answer], Engine]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    engines: list[BadEngine] = []

    def start(answer: Answer) -> Engine:
        path = tmp_path / "engine.sock"
        engines.append(BadEngine(path, answer))
        return Engine("docker", str(path), ("create",), patience=1)

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
    """Give what the engine tells until it is found out."""
    with closing(engine.watch(lambda: False)) as changes:  # type: ignore[type-var]
        return list(changes)


@pytest.mark.parametrize(
    "listed",
    [b"", b"no JSON", b"{}", b'"text"', b"[" * 100_000, b"\xff\xfe", b"[" + b"9" * 100_000],
)
def test_a_list_that_is_none_is_an_unavailable_engine(serve: Serve, listed: bytes) -> None:
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
def test_an_answer_that_is_no_http_is_an_unavailable_engine(serve: Serve, said: bytes) -> None:
    def answer(connection: socket.socket, _path: str) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_RDWR)

    with pytest.raises(RuntimeUnavailable):
        watched(serve(answer))


def test_an_engine_that_never_answers_is_given_up(serve: Serve) -> None:
    with pytest.raises(RuntimeUnavailable, match="timed out"):
        watched(serve(lambda _connection, _path: None))


def test_an_answer_without_end_is_cut_off(serve: Serve) -> None:
    def answer(connection: socket.socket, path: str) -> None:
        if path != "/containers/json":
            running(b"")(connection, path)
            return
        connection.sendall(OK)
        while True:
            connection.sendall(chunk(b" " * 65536))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RuntimeUnavailable, match="no end"):
        watched(serve(answer))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 4 * LARGEST_ANSWER


@pytest.mark.parametrize("piece", [chunk(b" " * 65536), b"f" * 65536])
def test_an_event_without_end_is_cut_off(serve: Serve, piece: bytes) -> None:
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


def test_an_engine_that_ends_its_events_is_unavailable(serve: Serve) -> None:
    with pytest.raises(RuntimeUnavailable, match="ended"):
        watched(serve(running(b"[]", ends=True)))


def test_a_watch_that_waits_for_events_can_be_stopped(serve: Serve) -> None:
    engine = serve(running(b"[]"))
    changes = engine.watch(lambda: False)
    assert next(changes) == Change("synced")
    threading.Timer(0.1, engine.stop).start()
    assert list(changes) == []


def test_no_socket_is_an_unavailable_engine(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no such socket"):
        watched(Engine("docker", str(tmp_path / "none.sock"), ()))
