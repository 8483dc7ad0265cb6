"""Turn the records of Docker's HTTP API into containers and changes; none is trusted."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ig.containers import answers
from ig.containers.cgroup import ID
from ig.containers.container import Change, Container

MOST = 16384
"""How many containers one engine is believed to have."""
_LABELS = 8 << 10
_ALL = 32 << 20
"""Bytes of memory: of one container's labels, and of all that one engine told."""

KINDS = {
    "create": "created",
    "start": "started",
    "rename": "renamed",
    "die": "exited",
    "died": "exited",
    "destroy": "removed",
    "remove": "removed",
}
"""What Docker's events are to us; `died` and `remove` are Podman's words."""

_NOT_LABELS = frozenset(
    ("name", "image", "oldName", "exitCode", "execDuration", "containerExitCode", "podId")
)


class Seen:
    """The containers that one engine told of, within bounds of number and memory."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self._known: OrderedDict[str, Container] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._size = 0
        # A thread follows the engine while another asks for details.
        self._lock = threading.Lock()

    def get(self, identifier: str) -> Container | None:
        """Return the container as it was noted last."""
        return self._known.get(identifier)

    def note(self, container: Container) -> Container:
        """Remember the container, and return it as `fitted` does."""
        self._known[container.id] = container
        self._known.move_to_end(container.id)
        self._known[container.id] = container = self.fitted(container)
        return container

    def fitted(self, container: Container) -> Container:
        """Return the container without what there is no room for: labels, or all but its names."""
        container = replace(container, labels=_fitting(container.labels))
        with self._lock:
            others = self._size - self._sizes.get(container.id, 0)
            size = _size(container)
            if others + size > _ALL:
                container = replace(container, image="", labels={}, addresses=(), ports=())
                size = _size(container)
            if container.id in self._known:
                self._sizes[container.id] = size
                self._size = others + size
        return container

    def forget(self, container: Container) -> None:
        """Forget a container that is gone."""
        self._known.pop(container.id, None)
        with self._lock:
            self._size -= self._sizes.pop(container.id, 0)

    def excess(self) -> Iterator[Container]:
        """Forget and yield the oldest of more containers than an engine can have."""
        while len(self._known) > MOST:
            oldest = next(iter(self._known.values()))
            self.forget(oldest)
            yield oldest

    def clear(self) -> None:
        """Forget all: the engine tells anew what it has."""
        self._known.clear()
        with self._lock:
            self._sizes.clear()
            self._size = 0


def _size(container: Container) -> int:
    """Return about how many bytes of memory a container takes by what its runtime told."""
    texts = sum(map(sys.getsizeof, (container.name, container.image)))
    return (
        sum(map(_label_size, container.labels.items()))
        + texts
        + 128 * len(container.addresses)
        + 256 * len(container.ports)
    )


def _label_size(label: tuple[str, str]) -> int:
    return sys.getsizeof(label[0]) + sys.getsizeof(label[1]) + 100


def _fitting(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return the labels that there is room for, of too many the smallest ones."""
    if sum(map(_label_size, labels.items())) <= _LABELS:
        return labels
    found, size = {}, 0
    for label in sorted(labels.items(), key=_label_size):
        size += _label_size(label)
        if size > _LABELS:
            break
        found[label[0]] = label[1]
    return found


def listed(runtime: str, record: object) -> Container | None:
    """Give the container of a record of `/containers/json`; None if it makes no sense."""
    found = answers.mapping(record)
    identifier = answers.text(found.get("Id"))
    if not ID.match(identifier):
        return None
    labels = answers.labels(found.get("Labels"))
    name = _name(found.get("Names"))
    running = found.get("State") in ("running", "paused")
    return Container(
        id=identifier,
        name=name or identifier[:12],
        runtime=runtime,
        image=answers.text(found.get("Image")),
        running=running,
        labels=labels,
        addresses=_addresses(found) if running else (),
        ports=_listed_ports(found.get("Ports")) if running else (),
        **answers.dockers_pod(name, labels),
    )


def told(record: object, seen: Seen) -> Change | None:
    """Return the change that a record of `/events` tells; None if it is none.

    The record has no pid and no addresses, so neither has the container.
    """
    found = answers.mapping(record)
    kind = KINDS.get(answers.text(found.get("Action")))
    actor = answers.mapping(found.get("Actor"))
    identifier = answers.text(actor.get("ID"))
    if kind is None or not ID.match(identifier):
        return None
    attributes = answers.mapping(actor.get("Attributes"))
    known = seen.get(identifier) or _first_told(seen.runtime, identifier, attributes)
    container = replace(
        known,
        name=answers.text(attributes.get("name")).lstrip("/") or known.name,
        image=answers.text(attributes.get("image")) or known.image,
        pid=0,
        addresses=(),
        ports=(),
    )
    container = replace(container, **answers.dockers_pod(container.name, container.labels))
    if kind != "renamed":
        started = answers.number(found.get("timeNano")) if kind == "started" else 0
        container = replace(container, running=kind == "started", started=started)
    return Change(kind, container)


def detailed(container: Container, record: object) -> Container:
    """Give the container with what a record of `/containers/{id}/json` tells of it as it runs."""
    found = answers.mapping(record)
    state = answers.mapping(found.get("State"))
    if state.get("Running") is not True:
        return replace(container, running=False, pid=0, addresses=(), ports=())
    return replace(
        container,
        running=True,
        pid=answers.number(state.get("Pid")),
        started=answers.timestamp(state.get("StartedAt")) or container.started,
        addresses=_addresses(found),
        ports=_inspected_ports(found),
    )


def _first_told(runtime: str, identifier: str, attributes: Mapping[str, Any]) -> Container:
    labels = answers.labels(attributes, _NOT_LABELS)
    return Container(identifier, identifier[:12], runtime, labels=labels)


def _name(names: object) -> str:
    # A container that others link to has names such as `/other/alias` as well.
    for name in names if isinstance(names, list) else ():
        plain = answers.text(name).lstrip("/")
        if plain and "/" not in plain:
            return plain
    return ""


def _addresses(found: Mapping[str, Any]) -> tuple[str, ...]:
    networks = answers.mapping(answers.mapping(found.get("NetworkSettings")).get("Networks"))
    given = [
        answers.address(answers.mapping(network).get(key))
        for network in list(networks.values())[: answers.ADDRESSES]
        for key in ("IPAddress", "GlobalIPv6Address")
    ]
    return tuple(dict.fromkeys(filter(None, given)))


def _listed_ports(records: object) -> tuple[tuple[str, int, int], ...]:
    published = []
    for record in records[: answers.PORTS] if isinstance(records, list) else ():
        port = answers.mapping(record)
        host, inside = answers.port(port.get("PublicPort")), answers.port(port.get("PrivatePort"))
        if host and inside and port.get("Type") == "tcp":
            published.append((answers.address(port.get("IP")), host, inside))
    return tuple(published)


def _inspected_ports(found: Mapping[str, Any]) -> tuple[tuple[str, int, int], ...]:
    published = []
    ports = answers.mapping(answers.mapping(found.get("NetworkSettings")).get("Ports"))
    for inside, bindings in list(ports.items())[: answers.PORTS]:
        number, _, protocol = inside.partition("/")
        for record in bindings[: answers.PORTS] if isinstance(bindings, list) else ():
            binding = answers.mapping(record)
            host = answers.port(binding.get("HostPort"))
            if host and answers.port(number) and protocol == "tcp":
                published.append((answers.address(binding.get("HostIp")), host, int(number)))
    return tuple(published[: answers.PORTS])
