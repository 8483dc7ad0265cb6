"""Follow an engine that speaks Docker's HTTP API, through the docker SDK, with bounded reads.

The API: https://docs.docker.com/reference/api/engine/ (`/events`, `/containers/json`,
`/containers/{id}/json`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from ig.containers import answers
from ig.containers.container import Change, Container
from ig.containers.engine_records import detailed, listed, told
from ig.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from docker import APIClient
    from requests import Response

PATIENCE = 5
"""Seconds that the engine may take for a next sign of life while it answers a question."""
LONGEST_ANSWER = 30.0
"""Seconds that a whole answer may take."""
LARGEST_ANSWER = 32 << 20
LARGEST_EVENT = 1 << 20
"""Bytes. The list of 1,000 containers with many labels is 4 MB, an event a few KB."""
SILENCE = 600.0
"""Seconds without events after which the engine is asked anew: it could hang, or have lost us."""
PIECE = 65536


class Engine:
    """An engine at one address (`unix://…`, `tcp://…`, or a path)."""

    def __init__(
        self, runtime: str, address: str, events: Sequence[str], patience: int = PATIENCE
    ) -> None:
        self.address = f"unix://{address}" if address.startswith("/") else address
        self.socket = self.address.removeprefix("unix://")
        self._runtime = runtime
        self._kinds = events
        self._patience = patience
        self._stream: Response | None = None
        self._stopped = False

    def watch(self, stopped: Callable[[], bool]) -> Iterator[Change]:
        """Yield what `Runtime.watch` does; ends after long silence, to be called again."""
        self._stopped = False
        with self._client() as client:
            self._ask(client, "/_ping", decode=False)
            filters = {"type": ["container"], "event": list(self._kinds)}
            with self._reply(client, "/events", SILENCE, filters=json.dumps(filters)) as stream:
                self._stream = stream
                try:
                    if not stopped():
                        yield from self._changes(client, stream, stopped)
                finally:
                    self._stream = None

    def stop(self) -> None:
        """Make a blocked `watch` in another thread return soon."""
        self._stopped = True
        stream = self._stream
        if stream is not None:
            # An error is that it has ended meanwhile.
            with suppress(OSError, RuntimeError, ValueError):
                stream.raw.shutdown()

    def details(self, container: Container) -> Container:
        """Give the container as it is now, with its pid, start, addresses and ports."""
        with self._client() as client:
            found = answers.mapping(self._ask(client, f"/containers/{container.id}/json"))
        return detailed(container, found)

    def version(self) -> str:
        """Give the engine's version, as it calls it."""
        with self._client() as client:
            return answers.text(answers.mapping(self._ask(client, "/version")).get("Version"))

    def _changes(
        self, client: APIClient, stream: Response, stopped: Callable[[], bool]
    ) -> Iterator[Change]:
        seen: dict[str, Container] = {}
        records = self._ask(client, "/containers/json", all="1")
        if not isinstance(records, list):
            raise self._unavailable("its list of containers is no list")
        for record in records[: answers.CONTAINERS]:
            container = listed(self._runtime, record)
            if container is not None:
                seen[container.id] = container
                yield Change("exists", container)
        del records
        yield Change("synced")
        for event in self._events(stream):
            if stopped():
                return
            change = told(self._runtime, event, seen)
            if change is not None:
                yield change

    def _events(self, stream: Response) -> Iterator[object]:
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        pending = b""
        while True:
            try:
                piece = stream.raw.read1(PIECE, decode_content=False)
            except ReadTimeoutError:
                return
            except HTTPError:
                piece = b""
            if self._stopped:
                return
            if not piece:
                raise self._unavailable("it ended its stream of events")
            *lines, pending = (pending + piece).split(b"\n")
            if len(pending) > LARGEST_EVENT:
                raise self._unavailable("it sent an event without end")
            for line in lines:
                if line.strip():
                    yield self._decoded(line)

    def _ask(self, client: APIClient, path: str, decode: bool = True, **query: str) -> object:
        deadline = time.monotonic() + LONGEST_ANSWER
        body = bytearray()
        with self._reply(client, path, self._patience, **query) as reply:
            while piece := reply.raw.read1(PIECE, decode_content=False):
                body += piece
                if len(body) > LARGEST_ANSWER or time.monotonic() > deadline:
                    raise self._unavailable(f"its answer to {path} has no end")
        return self._decoded(bytes(body)) if decode else None

    def _decoded(self, body: bytes) -> object:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self._unavailable("its answer is no JSON") from None

    @contextmanager
    def _reply(
        self, client: APIClient, path: str, patience: float, **query: str
    ) -> Iterator[Response]:
        # Paths without a version are the engine's own: nothing to negotiate with old or new ones.
        # Nothing is compressed: what is read is what it costs.
        reply = client.get(
            client.base_url + path,
            params=query,
            headers={"Accept-Encoding": "identity"},
            stream=True,
            allow_redirects=False,
            timeout=(self._patience, patience),
        )
        try:
            if reply.status_code != 200:
                raise self._unavailable(f"it answers {reply.status_code} to {path}")
            yield reply
        finally:
            reply.close()

    @contextmanager
    def _client(self) -> Iterator[APIClient]:
        if self.socket.startswith("/") and not os.path.exists(self.socket):
            raise self._unavailable("there is no such socket")
        if self.address.startswith("ssh://"):
            raise self._unavailable("an engine behind ssh is not this host's")
        from docker import APIClient
        from docker.constants import DEFAULT_DOCKER_API_VERSION
        from docker.errors import DockerException
        from docker.utils import kwargs_from_env
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        try:
            # The environment has the certificates for an engine that is asked over the network.
            tls = None if self.socket.startswith("/") else kwargs_from_env().get("tls")
            client = APIClient(self.address, DEFAULT_DOCKER_API_VERSION, PATIENCE, tls or False)
            with closing(client):
                yield client
        except (DockerException, RequestException, HTTPError, OSError, ValueError) as error:
            raise self._unavailable(reason(error)) from error

    def _unavailable(self, found: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(
            f"{self._runtime} does not answer at {self.socket}",
            found,
            "Check that the engine runs, and that the socket is the right one.",
        )


def reason(error: BaseException) -> str:
    """Give what is at the bottom of an error, in a few printable words."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return "".join(letter if letter.isprintable() else "?" for letter in answers.text(words, 200))
