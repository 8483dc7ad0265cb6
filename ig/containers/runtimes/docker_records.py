"""Turn the records of Docker's HTTP API into containers and changes; none is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ig.containers import answers, processes
from ig.containers.cgroup import ID
from ig.containers.container import Change, Container
from ig.containers.store import Seen

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
MOVES = ("connect", "disconnect")
"""Events of networks that give a container another address, or take one away."""

_UNTOLD = {"pid": 0, "addresses": (), "networks": (), "ports": (), "moved": False}
"""What events of a container leave out."""
_NOT_LABELS = frozenset(
    ("name", "image", "oldName", "exitCode", "execDuration", "containerExitCode", "podId")
)


def listed(runtime: str, record: object) -> Container | None:
    """Return the container of a record of `/containers/json`; None if it makes no sense."""
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
        joined=_joined(found),
        addresses=tuple(_addresses(found)) if running else (),
        networks=tuple(_addresses(found).values()) if running else (),
        ports=_listed_ports(found.get("Ports")) if running else (),
        **answers.dockers_pod(name, labels),
    )


def told(record: object, seen: Seen) -> Change | None:
    """Return the change that a record of `/events` tells; None if it is none.

    The record has no pid and no addresses, so neither has the container.
    """
    found = answers.mapping(record)
    action = answers.text(found.get("Action"))
    if found.get("Type") == "network":
        return _moved(found, seen) if action in MOVES else None
    kind = KINDS.get(action)
    actor = answers.mapping(found.get("Actor"))
    identifier = answers.text(actor.get("ID"))
    if kind is None or not ID.match(identifier):
        return None
    attributes = answers.mapping(actor.get("Attributes"))
    known = seen.get(identifier) or _first_told(seen.runtime, identifier, attributes)
    name = answers.text(attributes.get("name")).lstrip("/") or known.name
    changes: dict[str, Any] = {
        **_UNTOLD,
        **answers.dockers_pod(name, known.labels),
        "name": name,
        "image": answers.text(attributes.get("image")) or known.image,
    }
    if kind != "renamed":
        moment = answers.number(found.get("timeNano"))
        starts = changes["running"] = kind == "started"
        changes["started"] = moment if starts else 0
        # Docker tells of a container's new addresses before it tells of its start.
        changes["addressed"] = (
            known.addressed if starts and known.moved else 0 if starts else moment
        )
    return Change(kind, known.copy(**changes))


def _moved(found: Mapping[str, Any], seen: Seen) -> Change | None:
    """Return that a container's addresses have changed, by a record of a network's event."""
    actor = answers.mapping(found.get("Actor"))
    attributes = answers.mapping(actor.get("Attributes"))
    # Docker's actor is the network, Podman's the container.
    identifier = answers.text(attributes.get("container")) or answers.text(actor.get("ID"))
    known = seen.get(identifier)
    if known is None or (not known.running and found.get("Action") != "connect"):
        return None
    addressed = answers.number(found.get("timeNano"))
    return Change("updated", known.copy(**{**_UNTOLD, "moved": True}, addressed=addressed))


def detailed(container: Container, record: object) -> Container:
    """Return the container with what a record of `/containers/{id}/json` tells of it as it runs."""
    found = answers.mapping(record)
    state = answers.mapping(found.get("State"))
    if state.get("Running") is not True:
        return container.copy(**_UNTOLD, running=False)
    pid = answers.number(state.get("Pid"))
    file = answers.mapping(found.get("NetworkSettings")).get("SandboxKey")
    return container.copy(
        running=True,
        pid=pid,
        started=answers.timestamp(state.get("StartedAt")) or container.started,
        addresses=tuple(_addresses(found)),
        networks=tuple(_addresses(found).values()),
        ports=_inspected_ports(found),
        netns=processes.network_namespace(pid, container.id, answers.text(file)),
        joined=_joined(found),
        exposed=_exposed(found),
        moved=False,
    )


def _joined(found: Mapping[str, Any]) -> str:
    """Return the id of the container whose network namespace another was started in."""
    mode = answers.text(answers.mapping(found.get("HostConfig")).get("NetworkMode"))
    identifier = mode.removeprefix("container:")
    return identifier if mode != identifier and ID.match(identifier) else ""


def _exposed(found: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the TCP ports that the image and who started it say are listened on."""
    declared = answers.mapping(answers.mapping(found.get("Config")).get("ExposedPorts"))
    named = (answers.text(each).partition("/") for each in list(declared)[: answers.PORTS])
    return tuple(answers.port(port) for port, _, proto in named if proto == "tcp")


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


def _addresses(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the network of each address that a record tells."""
    networks = answers.mapping(answers.mapping(found.get("NetworkSettings")).get("Networks"))
    given: dict[str, str] = {}
    for name, record in list(networks.items())[: answers.ADDRESSES]:
        network = answers.mapping(record)
        for key in ("IPAddress", "GlobalIPv6Address"):
            address = answers.address(network.get(key))
            if address:
                given[address] = answers.text(network.get("NetworkID")) or answers.text(name)
    return given


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
