"""CRI-O, or any runtime that speaks Kubernetes' Container Runtime Interface, over gRPC.

The interface is runtime.v1: pkg/apis/runtime/v1/api.proto of https://github.com/kubernetes/cri-api
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from ig.container import Change, Container, is_id
from ig.containers import untrusted
from ig.containers.runtimes.grpc_api import Connection, connected
from ig.containers.store import MOST, Seen
from ig.kernel import processes

NAME = "cri-o"
SOCKET = "/run/crio/crio.sock"
POLL_INTERVAL = 1.0
POLL_INTERVAL_WITH_EVENTS = 15.0
"""Seconds between lists: often while no event was ever seen, since many runtimes send none."""
MIN_POLL_INTERVAL = 0.05
"""Seconds between lists at least, however many containers are wanted."""
WANTED = 4096
"""How many ids are remembered that were wanted, so that each makes for one list only."""

_SERVICE = "/runtime.v1.RuntimeService"
_RUNNING = 1  # CONTAINER_RUNNING
_READY = 0  # SANDBOX_READY


class Cri:
    """A runtime behind the CRI: the `Runtime` at the given socket, CRI-O's if None.

    Its events only say that there is something new: what is known comes from lists.
    """

    name = NAME

    def __init__(self, socket: str | None = None) -> None:
        self.socket = (socket or SOCKET).removeprefix("unix://")
        self._news = threading.Event()
        self._ended = threading.Event()
        self._wanted: set[str] = set()

    def watch(self, stopped: Callable[[], bool]) -> Iterator[Change]:
        """Yield the containers, then their changes: see `Runtime.watch`."""
        self._ended.clear()
        with connected(NAME, self.socket) as connection:
            events = _Events(connection, self._news)
            runtime = _own_name(connection)
            try:
                seen = _list_all(connection, runtime)
                yield from (Change("exists", container) for container in seen.values())
                yield Change("synced")
                while not (stopped() or self._ended.wait(MIN_POLL_INTERVAL)):
                    self._news.wait(
                        (POLL_INTERVAL_WITH_EVENTS if events.seen else POLL_INTERVAL)
                        - MIN_POLL_INTERVAL
                    )
                    self._news.clear()
                    now = _list_all(connection, runtime)
                    yield from _differences(seen, now)
                    seen = now
            finally:
                events.cancel()

    def wanted(self, identifier: str) -> None:
        """Have the list asked for at once, the first time that this container is wanted."""
        if identifier not in self._wanted:
            if len(self._wanted) >= WANTED:
                self._wanted.clear()
            self._wanted.add(identifier)
            self._news.set()

    def stop(self) -> None:
        """Make a blocked `watch` in another thread return soon."""
        self._ended.set()
        self._news.set()

    def details(self, container: Container) -> Container:
        """Return the container with its pid and start, and its pod's addresses."""
        from ig.containers.runtimes.messages import cri_pb2 as messages

        with connected(NAME, self.socket) as connection:
            request = messages.StatusRequest(id=container.id, verbose=True)
            if container.sandbox:
                found = connection.ask(
                    f"{_SERVICE}/PodSandboxStatus", request, messages.PodSandboxStatusResponse
                )
                running = found.status.state == _READY
            else:
                found = connection.ask(
                    f"{_SERVICE}/ContainerStatus", request, messages.ContainerStatusResponse
                )
                running = found.status.state == _RUNNING
            sandbox = container.id if container.sandbox else _sandbox(found.info)
            addresses = _addresses(connection, sandbox) if running and sandbox else ()
        pid = untrusted.number(_info(found.info).get("pid")) if running else 0
        return container.copy(
            running=running,
            pid=pid,
            started=processes.started(pid) if pid else 0,
            addresses=addresses,
            netns=processes.network_namespace(pid, container.id, _network_file(found.info)),
        )

    def version(self) -> str:
        """Ask the runtime for its own name and version."""
        from ig.containers.runtimes.messages import cri_pb2 as messages

        with connected(NAME, self.socket) as connection:
            method = f"{_SERVICE}/Version"
            answer = connection.ask(method, messages.Empty(), messages.VersionResponse)
        return untrusted.text(f"{answer.runtime_name} {answer.runtime_version}")


def _own_name(connection: Connection) -> str:
    """Return what the runtime behind the interface calls itself: `cri-o`, `containerd`, …"""
    from ig.containers.runtimes.messages import cri_pb2 as messages

    answer = connection.ask_briefly(
        f"{_SERVICE}/Version", messages.Empty(), messages.VersionResponse, ()
    )
    return untrusted.text(answer.runtime_name) if answer and answer.runtime_name else NAME


class _Events:
    """Listens for events in a thread of its own and sets `news` with each."""

    def __init__(self, connection: Connection, news: threading.Event) -> None:
        from ig.containers.runtimes.messages import cri_pb2 as messages

        self.seen = False
        self._news = news
        self._stream = connection.stream(
            f"{_SERVICE}/GetContainerEvents", messages.Empty(), messages.ContainerEventResponse
        )
        threading.Thread(target=self._listen, name=f"ig-{NAME}-events", daemon=True).start()

    def cancel(self) -> None:
        self._stream.cancel()

    def _listen(self) -> None:
        import grpc

        try:
            for _ in self._stream:
                self.seen = True
                self._news.set()
        except grpc.RpcError:
            pass  # It has no events (containerd before 1.7), or is lost, as the next list shows.
        self.seen = False


def _list_all(connection: Connection, runtime: str) -> dict[str, Container]:
    """Return the pods' pauses and the containers by their ids, as reported by that runtime."""
    from ig.containers.runtimes.messages import cri_pb2 as messages

    nothing = messages.Empty()
    pods = connection.ask_items(f"{_SERVICE}/ListPodSandbox", nothing, messages.PodSandbox)
    seen, found = Seen(runtime), dict[str, Container]()
    for pod in islice(pods, MOST):
        _note(seen, found, _pause(pod, runtime))
    containers = connection.ask_items(f"{_SERVICE}/ListContainers", nothing, messages.Container)
    for record in islice(containers, MOST):
        _note(seen, found, _container(record, found.get(record.pod_sandbox_id), runtime))
    return found


def _note(seen: Seen, found: dict[str, Container], container: Container) -> None:
    if is_id(container.id):
        for change in seen.noted(Change("exists", container)):
            if change.kind == "removed":
                found.pop(change.container.id, None)
            else:
                found[container.id] = change.container


def _pause(pod: Any, runtime: str) -> Container:
    return Container(
        id=untrusted.text(pod.id),
        name=untrusted.text(pod.metadata.name),
        runtime=runtime,
        running=pod.state == _READY,
        labels=untrusted.labels(pod.labels),
        sandbox=True,
        pod_namespace=untrusted.text(pod.metadata.namespace),
        pod_name=untrusted.text(pod.metadata.name),
        pod_uid=untrusted.text(pod.metadata.uid),
    )


def _container(record: Any, pod: Container | None, runtime: str) -> Container:
    name = untrusted.text(record.metadata.name)
    image = record.image.user_specified_image or record.image.image or record.image_ref
    labels = untrusted.labels(record.labels)
    told = {**untrusted.pod(labels, sandbox=False), **(_pod(pod) if pod is not None else {})}
    return Container(
        id=untrusted.text(record.id),
        name=name or untrusted.text(record.id)[:12],
        runtime=runtime,
        image=untrusted.text(image),
        running=record.state == _RUNNING,
        labels=labels,
        **{**told, "pod_container": name},
    )


def _pod(pod: Container) -> dict[str, Any]:
    return {
        "pod_namespace": pod.pod_namespace,
        "pod_name": pod.pod_name,
        "pod_uid": pod.pod_uid,
    }


def _differences(before: dict[str, Container], now: dict[str, Container]) -> Iterator[Change]:
    for identifier, container in before.items():
        if identifier not in now:
            yield Change("removed", container)
    for identifier, container in now.items():
        known = before.get(identifier)
        if known is None:
            yield Change("created", container)
        elif container != known:
            kind = {(False, True): "started", (True, False): "exited"}
            yield Change(kind.get((known.running, container.running), "renamed"), container)


def _info(info: Any) -> dict[str, Any]:
    # What `verbose` adds is JSON of the runtime's own; containerd's and CRI-O's both have `pid`.
    try:
        return dict(untrusted.mapping(json.loads(info["info"])))
    except (KeyError, ValueError, RecursionError):
        return {}


def _network_file(info: Any) -> str:
    """Return where the network namespace is mounted that a pod or a container was made in."""
    specification = untrusted.mapping(_info(info).get("runtimeSpec"))
    namespaces = untrusted.mapping(specification.get("linux")).get("namespaces")
    for each in map(untrusted.mapping, namespaces if isinstance(namespaces, list) else ()):
        if each.get("type") == "network":
            return untrusted.text(each.get("path"))
    return ""


def _sandbox(info: Any) -> str:
    return untrusted.text(_info(info).get("sandboxID"))


def _addresses(connection: Connection, sandbox: str) -> tuple[str, ...]:
    from ig.containers.runtimes.messages import cri_pb2 as messages

    network = connection.ask(
        f"{_SERVICE}/PodSandboxStatus",
        messages.StatusRequest(id=sandbox),
        messages.PodSandboxStatusResponse,
    ).status.network
    given = (network.ip, *(each.ip for each in network.additional_ips[: untrusted.ADDRESSES]))
    return tuple(dict.fromkeys(filter(None, map(untrusted.address, given))))


def pod_addresses(connection: Connection, container: Container) -> tuple[str, ...]:
    """Return the addresses of the pod that a container is of; none where no CRI untrusted."""
    import grpc

    from ig.containers.runtimes.messages import cri_pb2 as messages

    try:
        sandbox = container.id
        if not container.sandbox:
            request = messages.StatusRequest(id=container.id, verbose=True)
            answer = messages.ContainerStatusResponse
            sandbox = _sandbox(connection.ask(f"{_SERVICE}/ContainerStatus", request, answer).info)
        return _addresses(connection, sandbox) if sandbox else ()
    except grpc.RpcError:
        return ()
