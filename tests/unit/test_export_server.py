"""The HTTP server of `ig export`, on loopback: whatever clients send, others are answered."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ig.export.server import (
    _PAUSE,
    MOST_BYTES,
    MOST_CONNECTIONS,
    Page,
    Server,
    listen,
    parse_address,
    text_page,
)
from tests.host.waiting import until

PATIENCE = 30.0
BODY = b"m 1\n" * 500_000
"""More than the buffers of a connection hold."""


PAGES: dict[str, Callable[[], Page]] = {
    "/metrics": lambda: Page(HTTPStatus.OK, "text/plain", BODY),
    "/healthz": lambda: text_page(HTTPStatus.OK, "ok"),
}


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serving() as at:
        yield at


@contextmanager
def serving(timeout: float = PATIENCE) -> Iterator[tuple[str, int]]:
    """Serve the pages meanwhile, and yield where."""
    listener = listen(parse_address("127.0.0.1:0"))
    at = listener.getsockname()
    server = Server(listener, PAGES, timeout)
    server.start()
    yield at
    server.stop()
    assert not server.is_alive()
    assert server.failure is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(at, PATIENCE)


def ask(address: tuple[str, int], request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Return the status line, the headers and the body of the answer."""
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(request)
        answer = b""
        while piece := client.recv(1 << 20):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


def get(address: tuple[str, int], path: str) -> tuple[str, dict[str, str], bytes]:
    return ask(address, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_pages_are_answered_whole_and_the_connection_closed(address: tuple[str, int]) -> None:
    status, headers, body = get(address, "/metrics?a=b")
    assert status == "HTTP/1.1 200 OK"
    assert body == BODY
    assert headers == {
        "Content-Type": "text/plain",
        "Content-Length": str(len(BODY)),
        "Connection": "close",
    }
    assert get(address, "/healthz")[2] == b"ok\n"


def test_head_has_no_body(address: tuple[str, int]) -> None:
    status, headers, body = ask(address, b"HEAD /metrics HTTP/1.0\n\n")
    assert (status, headers["Content-Length"], body) == ("HTTP/1.1 200 OK", str(len(BODY)), b"")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\n\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * MOST_BYTES, 431),
        (b"\0" * 1_000_000, 431),
    ],
)
def test_requests_that_are_no_page_get_their_status(
    address: tuple[str, int], request_: bytes, status: int
) -> None:
    line, headers, _ = ask(address, request_)
    assert line.split(" ")[1] == str(status)
    assert ("Allow" in headers) == (status == 405)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_garbage_is_answered_or_closed(address: tuple[str, int], request_: bytes) -> None:
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
    assert get(address, "/healthz")[2] == b"ok\n"


def test_connections_that_never_ask_give_way_to_those_that_do(address: tuple[str, int]) -> None:
    held = [socket.create_connection(address, PATIENCE) for _ in range(3 * MOST_CONNECTIONS)]
    try:
        for number, each in enumerate(held):
            with_some = b"GET /metrics HTTP/1.1\r\nX: " if number % 2 else b""
            with suppress(OSError):  # closed by now
                each.sendall(with_some)
        for _ in range(3):
            assert get(address, "/healthz")[2] == b"ok\n"
        left = 0
        for each in held:
            each.setblocking(False)
            try:
                left += bool(each.recv(1))
            except BlockingIOError:
                left += 1
            except OSError:
                pass
        assert left <= MOST_CONNECTIONS
    finally:
        for each in held:
            each.close()


def test_connections_that_do_not_ask_or_read_in_time_are_closed() -> None:
    with serving(timeout=0.2) as address, socket.socket() as slow:
        with socket.create_connection(address, PATIENCE) as silent:
            silent.sendall(b"GET /healthz HTTP/1.1\r\n")
            assert silent.recv(1) == b""
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(PATIENCE)
        slow.connect(address)
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        with socket.create_connection(address, PATIENCE) as later:  # which ends after it
            assert later.recv(1) == b""
        with suppress(ConnectionResetError):
            received = 0
            while piece := slow.recv(65536):
                received += len(piece)
            assert received < len(BODY)


def test_readers_that_do_not_read_do_not_delay_others(address: tuple[str, int]) -> None:
    slow = [socket.create_connection(address, PATIENCE) for _ in range(MOST_CONNECTIONS)]
    for each in slow:
        each.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert get(address, "/healthz")[2] == b"ok\n"
    assert get(address, "/metrics")[2] == BODY
    for each in slow:
        each.close()


def test_requests_in_pieces_are_answered(address: tuple[str, int]) -> None:
    with socket.create_connection(address, PATIENCE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /healthz HTTP/1.1\r\n\r\n":
            client.sendall(bytes([byte]))
        assert b"ok" in client.recv(65536) + client.recv(65536)


def test_server_takes_many_clients_at_once(address: tuple[str, int]) -> None:
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(get(address, "/healthz")[2]))
        for _ in range(31)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [b"ok\n"] * 31


def test_clients_in_time_are_answered_however_long_another_page_took() -> None:
    """The clock is the test's: a page takes longer than clients may."""
    now = 1000.0
    listener = listen(parse_address("127.0.0.1:0"))
    address = listener.getsockname()
    with (
        socket.create_connection(address, PATIENCE) as early,
        socket.create_connection(address, PATIENCE) as late,
    ):

        def slow() -> Page:
            nonlocal now
            late.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            now += 1000
            return text_page(HTTPStatus.OK, "slow")

        # Both are accepted before the first one asks: connections are in order.
        early.sendall(b"GET /slow HTTP/1.1\r\n")
        server = Server(listener, {**PAGES, "/slow": slow}, clock=lambda: now)
        server.start()
        until(lambda: len(server._clients) == 2, "both connections to be accepted")
        early.sendall(b"\r\n")
        answers = [client.makefile("rb").read() for client in (early, late)]
        server.stop()
    assert [answer.rpartition(b"\r\n")[2] for answer in answers] == [b"slow\n", b"ok\n"]


class Counting(socket.socket):
    """A listener that counts how often a connection was asked of it."""

    accepts = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.accepts += 1
        return super().accept()


@contextmanager
def no_more_files() -> Iterator[None]:
    """Have no descriptor left above those in use."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_connections_wait_without_a_descriptor_left_and_those_that_asked_are_answered(
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = listen(parse_address("127.0.0.1:0"))
    listener = Counting(fileno=made.detach())
    address = listener.getsockname()
    server = Server(listener, PAGES)
    server.start()
    with socket.socket() as reader, socket.socket() as silent, socket.socket() as waiting:
        for each in (reader, silent, waiting):
            each.settimeout(PATIENCE)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(address)
        reader.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        silent.connect(address)
        until(lambda: len(server._clients) == 2, "both connections to be accepted")
        until(lambda: any(each.answer for each in server._clients.values()), "an answer begun")
        with no_more_files():
            waiting.connect(address)
            waiting.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert silent.recv(1) == b""
            assert waiting.makefile("rb").read().endswith(b"ok\n")
            assert reader.makefile("rb").read().endswith(BODY)
    server.stop()
    assert capfd.readouterr().err.count("have to wait: Too many open files") == 1


def test_server_without_a_descriptor_left_waits_before_it_tries_again() -> None:
    made = listen(parse_address("127.0.0.1:0"))
    listener = Counting(fileno=made.detach())
    server = Server(listener, PAGES)
    with socket.socket() as waiting:
        waiting.settimeout(PATIENCE)
        with no_more_files():
            server.start()
            began = time.monotonic()
            waiting.connect(listener.getsockname())
            until(lambda: listener.accepts > 1, "a second attempt to accept")
            accepts, lasted = listener.accepts, time.monotonic() - began
        waiting.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert waiting.makefile("rb").read().endswith(b"ok\n")
    server.stop()
    assert accepts <= 2 + lasted / _PAUSE
