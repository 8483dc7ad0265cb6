"""List and watch the objects of one kind, as the Kubernetes API has it.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/ (efficient detection of
changes). A watch goes on from the version of the last change; where the API has forgotten it (410
Gone), the objects are listed again.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from ig.container import Change, Container
from ig.containers.runtimes import http_api, json_stream
from ig.containers.runtimes.http_api import Reply
from ig.containers.untrusted import mapping, number, text
from ig.errors import IgError, RuntimeUnavailable
from ig.kubernetes.credentials import Credentials
from ig.kubernetes.objects import parse

NAME = "the Kubernetes API"
TIMEOUT = 10.0
"""Seconds that each step of a question takes at most, but for waiting for changes."""
LIST_TIMEOUT = 120.0
"""Seconds that a list takes at most."""
WATCH = (240.0, 480.0)
"""Seconds after which the API is asked to end a watch, by chance, so that not all do at once."""
LATE = 30.0
"""Seconds after which a watch that was not ended is given up."""
KEPT = 300.0
"""Seconds after which what the API could not confirm is dropped, and listed again."""
SHORTEST = 1.0
"""Seconds between watches that end by themselves, at least."""
PAGE = 500
LARGEST = 4 << 20
"""Bytes of an object: of a larger one nothing is known. etcd takes at most 1.5 MiB."""
_PIECE = 1 << 16
_ERROR = 1 << 16  # bytes that are read of an answer that is an error
_GONE = 410
_SELECTORS = {"pods": "status.phase!=Succeeded,status.phase!=Failed"}
_KINDS = {"ADDED": "created", "MODIFIED": "updated", "DELETED": "removed"}
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class _Expired(Exception):
    """The API has forgotten the version from which changes were asked for."""


class Objects:
    """The objects of one kind: what `ig.containers.watcher.Follower` takes for a runtime."""

    name = NAME

    def __init__(self, kind: str, credentials: Credentials, url: str) -> None:
        """`url` is where the API was when the credentials were read first."""
        self.socket = url
        self._kind, self._credentials = kind, credentials
        self._version = ""
        """That of the last change; empty if they are to be listed."""
        self._heard = 0.0
        """When the API answered last, by time.monotonic()."""
        self._any = True
        """Whether the list may be somewhat old, as it may be at first."""
        self._connected: socket.socket | None = None
        self._ended = threading.Event()

    def watch(self, stopped: Callable[[], bool]) -> Iterator[Change]:
        """Yield an `exists` for each object and `synced`, then changes: see `Runtime.watch`.

        Called again after a failure it yields `resumed`, then the changes since. It ends where the
        objects are to be listed again.
        """
        try:
            resuming = bool(self._version) and time.monotonic() - self._heard < KEPT
            if not resuming:
                yield from self._list()
            while not stopped():
                began = time.monotonic()
                yield from self._changes(resuming)
                resuming = False
                self._ended.wait(max(0.0, SHORTEST - (time.monotonic() - began)))
        except _Expired:
            self._version, self._any = "", False
        except (OSError, ValueError) as error:
            raise self._unavailable(http_api.reason(error)) from error

    def stop(self) -> None:
        """Make a blocked `watch` in another thread return soon."""
        self._ended.set()
        connected = self._connected
        if connected is not None:
            # Not TLS's own method, which would have the other thread read what is encrypted.
            with suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def details(self, container: Container) -> Container:
        """Return the container: there is no more to know."""
        return container

    def version(self) -> str:
        """Return nothing: the version of the API is of no use here."""
        return ""

    def _list(self) -> Iterator[Change]:
        query = {"limit": str(PAGE)}
        if self._any:
            query["resourceVersion"] = "0"
        version = following = ""
        ends = time.monotonic() + LIST_TIMEOUT
        while True:
            with self._asked(query, ends - time.monotonic()) as reply:
                found = json_stream.members(partial(reply.read1, _PIECE), LARGEST, "items")
                for name, value in found:
                    if name == "metadata":
                        version = text(mapping(value).get("resourceVersion"))
                        following = text(mapping(value).get("continue"), _PIECE)
                    container = parse(self._kind, value) if name == "items" else None
                    if container is not None and container.running:
                        yield Change("exists", container)
            if not following:
                break
            query, following = {"limit": str(PAGE), "continue": following}, ""
        if not version:
            raise ValueError("its list has no version")
        self._version, self._heard = version, time.monotonic()
        yield Change("synced")

    def _changes(self, resuming: bool) -> Iterator[Change]:
        """Yield changes until the API ends the watch. Raises _Expired."""
        seconds = random.uniform(*WATCH)
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(seconds)),
        }
        with self._asked(query, seconds + LATE) as reply:
            reply.timeout = seconds + LATE
            if resuming:
                yield Change("resumed")
            read = partial(reply.read1, _PIECE)
            for lines in json_stream.lines(read, LARGEST, LARGEST):
                self._heard = time.monotonic()
                for line in lines:
                    yield from self._change(mapping(json_stream.decoded(line)))

    def _change(self, event: Mapping[str, object]) -> Iterator[Change]:
        item = mapping(event.get("object"))
        if event.get("type") == "ERROR":
            self._fail(number(item.get("code")), item)
        kind = _KINDS.get(str(event.get("type")))
        container = parse(self._kind, item) if kind else None
        if kind and container is not None:
            yield Change(kind if container.running else "removed", container)
        # A bookmark has nothing else.
        self._version = text(mapping(item.get("metadata")).get("resourceVersion")) or self._version

    @contextmanager
    def _asked(self, query: dict[str, str], within: float) -> Iterator[Reply]:
        """Ask for the objects; yield the answer, which may take so many seconds as a whole.

        Raises _Expired, RuntimeUnavailable, OSError.
        """
        try:
            access = self._credentials.access()
        except IgError as error:
            raise RuntimeUnavailable(error.failed.rstrip("."), error.found) from error
        selector = _SELECTORS.get(self._kind)
        query = {**query, "fieldSelector": selector} if selector else query
        headers = {"Host": access.address.authority, "Accept": "application/json"}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        with http_api.connection(access.address, TIMEOUT, access.tls, access.server) as connected:
            for option in _KEEPALIVE:
                connected.setsockopt(*option)
            self._connected = connected
            try:
                if self._ended.is_set():
                    raise OSError("stopped")
                path = f"{access.prefix}/api/v1/{self._kind}"
                reply = http_api.ask(connected, path, query, TIMEOUT, within, headers=headers)
                if reply.status != 200:
                    self._fail(reply.status, _status(reply))
                yield reply
            finally:
                self._connected = None

    def _fail(self, code: int, status: Mapping[str, object]) -> None:
        """Raise what an error of the API means."""
        if code == _GONE:
            raise _Expired
        words = {
            401: f"{NAME} refuses the credentials of {self._credentials.place}",
            403: f"{NAME} at {self.socket} does not allow to list and watch {self._kind}",
        }
        message = text(status.get("message"))
        found = (
            f"HTTP {code}: {http_api.reason(ValueError(message))}" if message else f"HTTP {code}"
        )
        raise RuntimeUnavailable(
            words.get(code, f"{NAME} answers with an error at {self.socket}"), found
        )

    def _unavailable(self, found: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(f"{NAME} does not answer at {self.socket}", found)


def _status(reply: Reply) -> Mapping[str, object]:
    """Return the object that says what an error is, {} if there is none."""
    body = b""
    try:
        while len(body) < _ERROR and (piece := reply.read1(_PIECE)):
            body += piece
        return mapping(json_stream.decoded(body))
    except (OSError, ValueError):
        return {}
