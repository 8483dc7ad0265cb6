"""Turn the records of Docker's HTTP API into containers and changes; none is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ig.containers import answers
from ig.containers.cgroup import ID
from ig.containers.container import Change, Container

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


def told(runtime: str, record: object, seen: dict[str, Container]) -> Change | None:
    """Give the change that a record of `/events` tells, and note it in `seen`; None if it is none.

    The record has no pid and no addresses, so neither has the container.
    """
    found = answers.mapping(record)
    kind = KINDS.get(answers.text(found.get("Action")))
    actor = answers.mapping(found.get("Actor"))
    identifier = answers.text(actor.get("ID"))
    if kind is None or not ID.match(identifier):
        return None
    attributes = answers.mapping(actor.get("Attributes"))
    known = seen.get(identifier) or _first_told(runtime, identifier, attributes)
    container = replace(
        known,
        name=answers.text(attributes.get("name")).lstrip("/") or known.name,
        image=answers.text(attributes.get("image")) or known.image,
    )
    container = replace(container, **answers.dockers_pod(container.name, container.labels))
    if kind != "renamed":
        started = answers.number(found.get("timeNano")) if kind == "started" else 0
        container = replace(
            container, running=kind == "started", started=started, pid=0, addresses=(), ports=()
        )
    if kind == "removed":
        seen.pop(identifier, None)
    else:
        seen[identifier] = container
        answers.bounded(seen)
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
