"""A small HTTP server for pages that programs read: bounded in connections, sizes and time.

It implements GET and HEAD, and answers one request of each connection. Source: RFC 9112.
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from ig.errors import IgError, UsageError
from ig.output.stream import say

MOST_CONNECTIONS = 64
"""A connection beyond these ends the oldest one that has not asked yet, or else the oldest."""
MOST_BYTES = 8192
"""The size of a request."""
TIMEOUT = 10.0
_LINGER = 1.0  # seconds that a client may go on sending after it was answered
_PIECE = 65536
_PAUSE = 0.1  # seconds without accepting, after there was no room for another connection
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BUFFER = 1 << 18  # bytes that the kernel holds of an answer; twice as many by its own count
_BACKLOG = 128
_REMEDY = "Use ADDRESS:PORT, such as 127.0.0.1:9435 or [::1]:9435; 0.0.0.0:9435 for all networks."


class Page(NamedTuple):
    """What is answered."""

    status: HTTPStatus
    content_type: str
    body: bytes


_TEXT = "text/plain; charset=utf-8"


def text_page(status: HTTPStatus, text: str = "") -> Page:
    """Return a page with one line of text, that of the status if none is given."""
    return Page(status, _TEXT, f"{text or status.phrase}\n".encode())


class _Client:
    """One connection: its request, then its answer."""

    def __init__(self, connection: socket.socket, ends: float) -> None:
        self.socket = connection
        self.ends = ends
        self.request = bytearray()
        self.answer: list[memoryview] = []
        self.state = selectors.EVENT_READ
        self.lingers = False


class Server(threading.Thread):
    """Serves the pages of `pages`, by their paths, until `stop`."""

    def __init__(
        self,
        listener: socket.socket,
        pages: Mapping[str, Callable[[], Page]],
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve connections to the listening socket, which it closes at the end.

        A client may take `timeout` seconds to ask, and as many to read.
        """
        super().__init__(name="metrics", daemon=True)
        self.failure: BaseException | None = None
        """The error that ended it, if one did."""
        self.listener, self._pages = listener, pages
        self._timeout, self._clock = timeout, clock
        self._resumes = 0.0
        """When to accept connections again, 0 while they are accepted."""
        self._reported = False
        self._clients: OrderedDict[int, _Client] = OrderedDict()
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._stopping = False
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)  # connections inherit it
        listener.setblocking(False)
        for each in (listener, self._woken):
            self._selector.register(each, selectors.EVENT_READ)

    def stop(self) -> None:
        """End it, and all connections, soon."""
        self._stopping = True
        self._waker.send(b"x")
        self.join(TIMEOUT)

    def run(self) -> None:
        """Serve until `stop`; what ends it otherwise is in `failure`."""
        try:
            while not self._stopping:
                self._serve()
        except BaseException as error:  # for the main thread, which ends with it
            self.failure = error
        finally:
            for client in list(self._clients.values()):
                self._close(client)
            self.listener.close()
            self._selector.close()

    def _serve(self) -> None:
        now = self._clock()
        if self._resumes and self._resumes <= now:
            self._resumes = 0.0
            self._selector.register(self.listener, selectors.EVENT_READ)
        ends = [each.ends for each in self._clients.values()]
        next_end = min([*ends, self._resumes or now + TIMEOUT])
        for key, _ in self._selector.select(max(next_end - now, 0.0)):
            if key.fileobj is self.listener:
                self._accept()
            elif key.fileobj is not self._woken:
                self._try(key.fd)
        # After what they had sent by then: it was in time, also where a page took long.
        for client in [each for each in self._clients.values() if each.ends <= now]:
            self._close(client)

    def _try(self, descriptor: int) -> None:
        client = self._clients.get(descriptor)
        if client is None:  # closed a moment ago
            return
        try:
            self._advance(client)
        except BlockingIOError:
            pass  # the descriptor was another's a moment ago
        except OSError:  # it is gone
            self._close(client)

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._pause(error)
            return  # else it was closed again already
        connection.setblocking(False)
        self._make_room(MOST_CONNECTIONS - 1)
        client = self._clients[connection.fileno()] = _Client(
            connection, self._clock() + self._timeout
        )
        self._selector.register(connection, client.state)

    def _make_room(self, most: int) -> None:
        while len(self._clients) > most:
            clients = list(self._clients.values())
            self._close(next((each for each in clients if not each.answer), clients[0]))

    def _pause(self, error: OSError) -> None:
        """Accept none for a moment; the oldest client that has not asked makes room."""
        if not self._reported:
            self._reported = True
            say(f"warning: connections to /metrics have to wait: {error.strerror}")
        silent = (each for each in self._clients.values() if not (each.answer or each.lingers))
        if client := next(silent, None):
            self._close(client)
        self._resumes = self._clock() + _PAUSE
        self._selector.unregister(self.listener)

    def _advance(self, client: _Client) -> None:
        if client.lingers:
            if not client.socket.recv(_PIECE):
                self._close(client)
        elif client.answer:
            first = client.answer[0]
            client.answer[0] = rest = first[client.socket.send(first[:_PIECE]) :]
            if not rest:
                del client.answer[0]
            if not client.answer:
                self._linger(client)
        else:
            piece = client.socket.recv(_PIECE)
            client.request += piece[: MOST_BYTES + 1]
            page = self._asked(client.request)
            if page is not None:
                self._watch(client, selectors.EVENT_WRITE, self._timeout)
                # Not joined: a page that many read is in memory once.
                parts = [_head(page), *([] if client.request[:5] == b"HEAD " else [page.body])]
                client.answer = [memoryview(part) for part in parts if part]
            elif not piece:
                self._close(client)

    def _linger(self, client: _Client) -> None:
        """Read what the client still sends: closed before, it would lose the end of the answer."""
        client.lingers = True
        client.socket.shutdown(socket.SHUT_WR)
        self._watch(client, selectors.EVENT_READ, _LINGER)

    def _watch(self, client: _Client, state: int, seconds: float) -> None:
        client.ends = self._clock() + seconds
        self._selector.modify(client.socket, state)

    def _asked(self, request: bytearray) -> Page | None:
        """Return the answer to a request, None while it is not complete."""
        head, end, _ = bytes(request).replace(b"\r\n", b"\n").partition(b"\n\n")
        if len(request) > MOST_BYTES:
            return text_page(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        line = head.partition(b"\n")[0].split(b" ")
        if not end:
            # No more is waited for of what is not HTTP.
            wrong = b"\n" in head and (len(line) != 3 or not line[2].startswith(b"HTTP/1."))
            return text_page(HTTPStatus.BAD_REQUEST) if wrong else None
        if len(line) != 3 or not line[2].startswith(b"HTTP/1."):
            return text_page(HTTPStatus.BAD_REQUEST)
        page = self._pages.get(line[1].partition(b"?")[0].decode("latin-1"))
        if page is None:
            return text_page(HTTPStatus.NOT_FOUND)
        if line[0] not in (b"GET", b"HEAD"):
            return text_page(HTTPStatus.METHOD_NOT_ALLOWED)
        return page()

    def _close(self, client: _Client) -> None:
        del self._clients[client.socket.fileno()]
        self._selector.unregister(client.socket)
        with suppress(OSError):
            client.socket.close()


def _head(page: Page) -> bytes:
    lines = [
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(page.body)}",
        "Connection: close",
    ]
    if page.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


class Address(NamedTuple):
    """An IP address and a TCP port."""

    ip: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        """Return it as users type it."""
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


def parse_address(text: str) -> Address:
    """Return an address and a port. Raises UsageError, also where the address is left out."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text.strip())
    try:
        if match and int(match[3]) < 65536:
            return Address(ip_address(match[1] or match[2]), int(match[3]))
    except ValueError:
        pass
    found = "The address is missing." if text.lstrip()[:1] == ":" else ""
    raise UsageError(f"Invalid address {text[:64]!r}.", found, _REMEDY)


def listen(address: Address) -> socket.socket:
    """Return a socket that listens there; port 0 is any that is free. Raises IgError."""
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((str(address.ip), address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise IgError(
            f"Cannot listen on {address}.",
            error.strerror or str(error),
            "Use --prometheus with another address or port.",
        ) from error
    return listener
