"""containerd, asked through its gRPC API, in all its namespaces.

The API: https://github.com/containerd/containerd/tree/main/api (services/containers,
services/events, services/namespaces, services/tasks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from ig.container import Change, Container, is_id
from ig.containers import untrusted
from ig.containers.runtimes import cri
from ig.containers.runtimes.grpc_api import (
    REQUEST_TIMEOUT,
    Connection,
    Metadata,
    connected,
    unavailable,
)
from ig.containers.store import MOST, Seen
from ig.errors import RuntimeUnavailable
from ig.kernel import processes

NAME = "containerd"
SOCKET = "/run/containerd/containerd.sock"
CRI_NAMESPACE = "k8s.io"

_SERVICES = "/containerd.services"
# RUNNING, PAUSED and PAUSING of api/types/task/task.proto
_RUNNING = frozenset((2, 4, 5))
_TOPICS = (
    "/namespaces/create",
    "/containers/create",
    "/containers/update",
    "/containers/delete",
    "/tasks/start",
    "/tasks/exit",
)


class Containerd:
    """containerd: the `Runtime` at the given socket, of one namespace or all."""

    name = NAME

    def __init__(self, socket: str | None = None, namespace: str | None = None) -> None:
        self.socket = (socket or SOCKET).removeprefix("unix://")
        self.namespaces: set[str] = {namespace} if namespace else set()
        """Where it has containers, as far as it reported: their cgroups are `/NAMESPACE/ID`."""
        self._namespace = namespace
        self._stream: Any = None
        self._stopped = False
        self._seen = Seen(NAME)

    def watch(self, stopped: Callable[[], bool]) -> Iterator[Change]:
        """Yield the containers, then their changes: see `Runtime.watch`."""
        self._stopped = False
        try:
            with connected(NAME, self.socket) as connection:
                yield from self._watched(connection, stopped)
        except RuntimeUnavailable:
            if not self._stopped:
                raise

    def stop(self) -> None:
        """Make a blocked `watch` in another thread return soon."""
        self._stopped = True
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def details(self, container: Container) -> Container:
        """Return the container with its pid, its start and, from its CRI, its pod's addresses."""
        from ig.containers.runtimes.messages import containerd_pb2 as messages

        with connected(NAME, self.socket) as connection:
            task = connection.ask(
                f"{_SERVICES}.tasks.v1.Tasks/Get",
                messages.GetTaskRequest(container_id=container.id),
                messages.GetTaskResponse,
                _in(container.scope),
            ).process
            # containerd itself knows of no addresses.
            asks = _runs(task) and container.scope == CRI_NAMESPACE and container.pod_uid
            addresses = cri.pod_addresses(connection, container) if asks else ()
        running = _runs(task)
        pid = task.pid if running else 0
        start = processes.started(pid) or container.started if running else 0
        return container.copy(
            running=running,
            pid=pid,
            started=start,
            addresses=addresses,
            netns=processes.network_namespace(pid, container.id),
        )

    def version(self) -> str:
        """Ask containerd for its version."""
        from ig.containers.runtimes.messages import containerd_pb2 as messages

        with connected(NAME, self.socket) as connection:
            method = f"{_SERVICES}.version.v1.Version/Version"
            answer = connection.ask(method, messages.Empty(), messages.VersionResponse)
        return untrusted.text(answer.version)

    def _watched(self, connection: Connection, stopped: Callable[[], bool]) -> Iterator[Change]:
        from ig.containers.runtimes.messages import containerd_pb2 as messages

        request = messages.SubscribeRequest(filters=[f'topic=="{topic}"' for topic in _TOPICS])
        # The server starts calls in the order in which it gets them, and each question of the
        # list is a round trip: the subscription is in place before anything is listed.
        stream = connection.stream(
            f"{_SERVICES}.events.v1.Events/Subscribe", request, messages.Envelope
        )
        self._stream = stream
        try:
            if stopped():
                return
            yield from self._list_all(connection)
            yield Change("synced")
            yield from self._read_events(connection, stream)
        finally:
            self._stream = None
            stream.cancel()
        raise unavailable(NAME, self.socket, "it closed the event stream")

    def _list_all(self, connection: Connection) -> Iterator[Change]:
        from ig.containers.runtimes.messages import containerd_pb2 as messages

        self._seen.clear()
        found = connection.ask_items(
            f"{_SERVICES}.namespaces.v1.Namespaces/List", messages.Empty(), messages.Namespace
        )
        names = [untrusted.text(each.name) for each in islice(found, untrusted.NAMESPACES)]
        self.namespaces = {self._namespace} if self._namespace else set(names)
        for namespace in [self._namespace] if self._namespace else names:
            tasks = connection.ask_items(
                f"{_SERVICES}.tasks.v1.Tasks/List",
                messages.Empty(),
                messages.Process,
                _in(namespace),
            )
            # Some versions fill only one of a task's two ids.
            pids = {
                untrusted.text(each.container_id or each.id): each.pid
                for each in islice(tasks, MOST)
                if _runs(each)
            }
            stream = connection.stream(
                f"{_SERVICES}.containers.v1.Containers/ListStream",
                messages.Empty(),
                messages.ContainerResponse,
                _in(namespace),
                REQUEST_TIMEOUT,
            )
            for message in islice(stream, MOST):
                pid = pids.get(message.container.id, 0)
                container = container_of(namespace, message.container)
                found_one = container.copy(running=pid > 0, pid=pid)
                yield from self._seen.noted(Change("exists", found_one))
            stream.cancel()

    def _read_events(self, connection: Connection, stream: Any) -> Iterator[Change]:
        for envelope in stream:
            if not self._namespace or envelope.namespace == self._namespace:
                change = self._change(connection, envelope)
                if change is not None:
                    yield from self._seen.noted(change)

    def _change(self, connection: Connection, envelope: Any) -> Change | None:
        from google.protobuf.message import DecodeError

        from ig.containers.runtimes.messages import containerd_pb2 as messages

        scope, content = untrusted.text(envelope.namespace), envelope.event.value
        if len(self.namespaces) < untrusted.NAMESPACES:
            self.namespaces.add(scope)
        try:
            if envelope.topic in ("/containers/create", "/containers/update"):
                identifier = messages.ContainerEvent.FromString(content).id
                return self._described(connection, scope, identifier, envelope.topic)
            if envelope.topic == "/containers/delete":
                identifier = messages.ContainerEvent.FromString(content).id
                return Change("removed", self._known(scope, identifier))
            if envelope.topic == "/tasks/start":
                start = messages.TaskStart.FromString(content)
                running = self._known(scope, start.container_id).copy(
                    running=True,
                    pid=start.pid,
                    started=max(0, envelope.timestamp.ToNanoseconds()),
                )
                return Change("started", running)
            if envelope.topic == "/tasks/exit":
                end = messages.TaskExit.FromString(content)
                if end.id == end.container_id:  # else it is the end of an exec
                    known = self._known(scope, end.container_id)
                    return Change("exited", known.copy(running=False, pid=0, started=0))
        except DecodeError:
            pass
        return None

    def _described(self, connection: Connection, scope: str, identifier: str, topic: str) -> Change:
        """Ask for what the event of a container leaves out: its labels, hence its name."""
        from ig.containers.runtimes.messages import containerd_pb2 as messages

        answer = connection.ask_briefly(
            f"{_SERVICES}.containers.v1.Containers/Get",
            messages.GetContainerRequest(id=identifier),
            messages.ContainerResponse,
            _in(scope),
        )
        known = self._known(scope, identifier)
        if answer is None:
            container = known
        else:
            container = container_of(scope, answer.container).copy(
                running=known.running,
                pid=known.pid,
                started=known.started,
            )
        if topic == "/containers/create":
            return Change("created", container)
        return Change("updated" if container.name == known.name else "renamed", container)

    def _known(self, scope: str, identifier: str) -> Container:
        found = self._seen.get(untrusted.text(identifier), scope)
        return found or _nameless(scope, untrusted.text(identifier))


def container_of(scope: str, record: Any) -> Container:
    """Return the container that a record of that namespace describes, without its process."""
    labels = untrusted.labels(record.labels)
    container = _nameless(scope, untrusted.text(record.id)).copy(
        image=untrusted.text(record.image),
        labels=labels,
    )
    kind = _cri_kind(scope, record, labels)
    if kind:
        pod = untrusted.pod(labels, sandbox=kind == "sandbox")
        # A pause has no name but its pod's.
        name = pod["pod_container"] or pod["pod_name"] or container.name
        return container.copy(name=untrusted.text(name), **pod)
    # nerdctl's ids are hexadecimal. Whoever runs an image by `ctr` has all its labels too.
    if is_id(container.id) and labels.get("nerdctl/namespace") == scope:
        return container.copy(name=untrusted.text(labels.get("nerdctl/name")) or container.name)
    return container


def _cri_kind(scope: str, record: Any, labels: Mapping[str, str]) -> str:
    """Return `container` or `sandbox` for one that containerd's CRI plugin made, "" for others.

    The plugin keeps what it knows of each in an extension, which no image can make, and the kind in
    a label, over that of the image (internal/cri/labels and internal/cri/server).
    """
    kind = labels.get("io.cri-containerd.kind", "")
    made = scope == CRI_NAMESPACE and f"io.cri-containerd.{kind}.metadata" in record.extensions
    return kind if made and kind in ("container", "sandbox") else ""


def _nameless(scope: str, identifier: str) -> Container:
    name = identifier[:12] if is_id(identifier) else identifier
    return Container(identifier, name, NAME, scope=scope)


def _runs(task: Any) -> bool:
    return task.status in _RUNNING


def _in(namespace: str) -> Metadata:
    return (("containerd-namespace", namespace),)
