"""Docker and Podman, asked through Docker's HTTP API, with bounded reads.

The API: https://docs.docker.com/reference/api/engine/ (`/events`, `/containers/json`,
`/containers/{id}/json`).
"""

from __future__ import annotations

import json
import math
import os
import socket as sockets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice

from ig.container import Change, Container
from ig.containers import untrusted
from ig.containers.runtimes import http_api
from ig.containers.runtimes.docker_records import (
    MOVES,
    condensed,
    parse_event,
    parse_inspect,
    parse_list_entry,
)
from ig.containers.runtimes.http_api import Malformed, Reply
from ig.containers.runtimes.json_stream import decoded, items, lines
from ig.containers.store import MOST, Seen
from ig.errors import RuntimeUnavailable

DOCKER_SOCKET = "/var/run/docker.sock"
PODMAN_SOCKET = "/run/podman/podman.sock"
REQUEST_TIMEOUT = 5
"""Seconds that the engine may take for a next sign of life while it answers a question."""
LONGEST_ANSWER = 30.0
"""Seconds that a whole answer may take, its header too."""
LARGEST_ANSWER = 64 << 20
LARGEST_RECORD = 1 << 20
"""Bytes: of a list, and of an item of it, an event, or another answer. More than that is not read,
or left out. The list of 1,000 containers with many labels is 4 MB, an event a few KB."""
IDLE_TIMEOUT = 600.0
"""Seconds without events after which the engine is asked anew: it could hang, or have lost us."""
CHUNK = 65536
PROMPT = 8
"""How many times changes are read as they come before they are read in batches."""
PERIOD = 2.0
"""Seconds between batches. An engine keeps 1,024 events for a reader that does not read."""


class Pace:
    """When to read changes: as they come; in batches while they keep coming; at once if needed.

    Each time that a thread wakes up to read one change costs more than the change.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due = -math.inf
        """When changes may be read next; in the past while some may still be read as they come."""
        self._resting = False
        self._needed = False
        self._working = False
        """Whether changes are being read and applied."""

    def rest(self) -> None:
        """Return when the next changes are to be read; those before have been applied."""
        with self._changed:
            self._working = False
            self._resting = True
            self._changed.notify_all()
            while not self._needed and (left := self._due - time.monotonic()) > 0:
                self._changed.wait(left)
            self._resting = False

    def begin(self) -> None:
        """Note that changes have been read and are about to be applied."""
        with self._changed:
            self._working = True
            if not self._needed:
                self._due = max(self._due, time.monotonic() - PROMPT * PERIOD) + PERIOD
            self._needed = False

    def end(self) -> None:
        """Note that no changes are read any more."""
        with self._changed:
            self._working = self._needed = False
            self._changed.notify_all()

    def need(self) -> None:
        """Have changes read at once."""
        with self._changed:
            self._needed = True
            self._changed.notify_all()

    def catch_up(self, stream: sockets.socket | None, seconds: float) -> bool:
        """Return whether there are changes; wait that long until they are applied."""
        with self._changed:
            if not self._working:
                if not self._resting or stream is None or not http_api.readable(stream):
                    return False
                self._needed = self._working = True
                self._changed.notify_all()
            self._changed.wait_for(lambda: not self._working, seconds)
            return True


class Engine:
    """An engine at one address (`unix://…`, `tcp://…`, or a path): a `Runtime`."""

    def __init__(
        self, runtime: str, address: str, events: Sequence[str], timeout: int = REQUEST_TIMEOUT
    ) -> None:
        """Ask the engine there; `events` are the actions of containers that it is listened to."""
        self.name = runtime
        path = address.removeprefix("unix://")
        self.socket = address if path == address or not path else f"/{path.lstrip('/')}"
        self._address = address
        self._kinds = events
        self._timeout = timeout
        self._seen = Seen(runtime)
        self._stream: sockets.socket | None = None
        self._stopped = False
        self._pace = Pace()
        self._batches = False

    def batch(self, batches: bool) -> None:
        """Read changes in batches from now on while they keep coming, or each as it comes."""
        # What has come over TLS may be in memory already, where no poll sees it.
        self._batches = batches and self.socket.startswith("/")

    def catch_up(self, seconds: float) -> bool:
        """Return whether there were changes to read; wait that long until they are applied."""
        return self._batches and self._pace.catch_up(self._stream, seconds)

    def watch(self, stopped: Callable[[], bool]) -> Iterator[Change]:
        """Yield what `Runtime.watch` does; ends after long silence, to be called again."""
        self._stopped = False
        with self._asked("/_ping"):
            pass
        filters = {"type": ["container", "network"], "event": [*self._kinds, *MOVES]}
        with self._asked("/events", IDLE_TIMEOUT, filters=json.dumps(filters)) as stream:
            if not stopped():
                yield from self._list_all()
                yield Change("synced")
                yield from self._changes(stream, stopped)

    def stop(self) -> None:
        """Make a blocked `watch` in another thread return soon."""
        self._stopped = True
        self._pace.need()
        stream = self._stream
        if stream is not None:
            # An error is that it has ended meanwhile. Not TLS's own method, which would have the
            # other thread read what is encrypted.
            with suppress(OSError):
                sockets.socket.shutdown(stream, sockets.SHUT_RDWR)

    def details(self, container: Container) -> Container:
        """Return the container as it is now, with its pid, start, addresses and ports."""
        found = untrusted.mapping(self._answer(f"/containers/{container.id}/json"))
        return self._seen.fitted(parse_inspect(container, found))

    def version(self) -> str:
        """Return the engine's version, as it calls it."""
        return untrusted.text(untrusted.mapping(self._answer("/version")).get("Version"))

    def _list_all(self) -> Iterator[Change]:
        self._seen.clear()
        with self._asked("/containers/json", all="1") as reply:
            for record in islice(self._records(reply), MOST):
                container = parse_list_entry(self.name, record)
                if container is not None:
                    yield from self._seen.noted(Change("exists", container))

    def _records(self, reply: Reply) -> Iterator[object]:
        size = 0

        def read() -> bytes:
            nonlocal size
            piece = _read(reply, CHUNK)
            size += len(piece)
            if size > LARGEST_ANSWER:
                raise self._unavailable("its list of containers is too large")
            return piece

        try:
            yield from items(read, LARGEST_RECORD)
        except ValueError:
            raise self._unavailable("its list of containers is not a JSON array") from None

    def _changes(self, stream: Reply, stopped: Callable[[], bool]) -> Iterator[Change]:
        for events in self._events(stream):
            for event in events:
                if stopped():
                    return
                change = parse_event(event, self._seen)
                if change is not None:
                    yield from self._seen.noted(change)

    def _events(self, stream: Reply) -> Iterator[Sequence[object]]:
        """Yield the events as they are read; of a batch, those that make a difference."""

        def read() -> bytes:
            if self._batches and not stream.ready():
                self._pace.rest()
            try:
                piece = stream.read1(CHUNK)
            except TimeoutError:
                return b""
            except Malformed:  # it ended within a piece
                piece = b""
            if self._stopped:
                return b""
            if not piece:
                raise self._unavailable("it closed the event stream")
            self._pace.begin()
            while self._batches and len(piece) < CHUNK and (more := stream.received(CHUNK)):
                piece += more
            return piece

        try:
            for batch in lines(read, LARGEST_RECORD, LARGEST_ANSWER):
                events = list(map(decoded, batch))
                yield condensed(events, self._seen) if self._batches else events
        except ValueError:
            raise self._unavailable("it sent an event that is not JSON or is too large") from None
        finally:
            self._pace.end()

    def _answer(self, path: str) -> object:
        """Return what the engine answers to a question, decoded."""
        with self._asked(path) as reply:
            body = _read(reply, LARGEST_RECORD + 1)
        if len(body) > LARGEST_RECORD:
            raise self._unavailable(f"its answer to {path} is too large")
        try:
            return decoded(body)
        except ValueError:
            raise self._unavailable("its answer is not JSON") from None

    @contextmanager
    def _asked(self, path: str, silence: float = 0.0, **query: str) -> Iterator[Reply]:
        """Ask, and yield the answer; with `silence`, a stream that may be silent for so long.

        Raises RuntimeUnavailable, also for what goes wrong while the answer is read.
        """
        # Paths without a version are the engine's own: nothing to negotiate with old or new ones.
        within = float("inf") if silence else LONGEST_ANSWER
        try:
            address = http_api.parse(self._address)
        except ValueError as error:
            raise self._unavailable(http_api.reason(error)) from None
        try:
            with http_api.connection(address, self._timeout) as connected:
                reply = http_api.ask(connected, path, query, silence or self._timeout, within)
                if reply.status != 200:
                    raise self._unavailable(f"it answered {path} with status {reply.status}")
                self._stream = connected if silence else self._stream
                yield reply
        except OSError as error:
            raise self._unavailable(http_api.reason(error)) from error
        finally:
            self._stream = None if silence else self._stream

    def _unavailable(self, found: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(
            f"{self.name} does not answer at {self.socket}",
            found,
            "Check that the engine is running and that the socket is correct.",
        )


class Docker(Engine):
    """A Docker engine: the `Runtime` at the given socket, DOCKER_HOST, or Docker's usual one."""

    def __init__(self, socket: str | None = None) -> None:
        events = ("create", "start", "rename", "die", "destroy")
        super().__init__("docker", socket or os.environ.get("DOCKER_HOST") or DOCKER_SOCKET, events)


class Podman(Engine):
    """Podman's service: the `Runtime` at the given socket, or the rootful one."""

    def __init__(self, socket: str | None = None) -> None:
        events = ("create", "start", "rename", "die", "died", "remove")
        super().__init__("podman", socket or PODMAN_SOCKET, events)


def _read(reply: Reply, most: int) -> bytes:
    """Return `most` bytes, fewer at the end; no more is read, whatever sizes are announced."""
    body = bytearray()
    while len(body) < most and (piece := reply.read1(min(CHUNK, most - len(body)))):
        body += piece
    return bytes(body)
