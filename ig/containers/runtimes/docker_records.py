"""Turn the records of Docker's HTTP API into containers and changes; none is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ig.container import Change, Container, is_id
from ig.containers import untrusted
from ig.containers.store import Seen
from ig.kernel import processes

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

_NOT_IN_EVENTS = {"pid": 0, "addresses": (), "networks": (), "ports": (), "moved": False}
"""What events of a container leave out."""
_NOT_LABELS = frozenset(
    ("name", "image", "oldName", "exitCode", "execDuration", "containerExitCode", "podId")
)


def parse_list_entry(runtime: str, record: object) -> Container | None:
    """Return the container of a record of `/containers/json`; None if it makes no sense."""
    found = untrusted.mapping(record)
    identifier = untrusted.text(found.get("Id"))
    if not is_id(identifier):
        return None
    labels = untrusted.labels(found.get("Labels"))
    name = _name(found.get("Names"))
    running = found.get("State") in ("running", "paused")
    return Container(
        id=identifier,
        name=name or identifier[:12],
        runtime=runtime,
        image=untrusted.text(found.get("Image")),
        running=running,
        labels=labels,
        joined=_joined(found),
        addresses=tuple(_addresses(found)) if running else (),
        networks=tuple(_addresses(found).values()) if running else (),
        ports=_listed_ports(found.get("Ports")) if running else (),
        **untrusted.dockers_pod(name, labels),
    )


def parse_event(record: object, seen: Seen) -> Change | None:
    """Return the change that a record of `/events` describes; None if it is none.

    The record has no pid and no addresses, so neither has the container.
    """
    found = untrusted.mapping(record)
    action = untrusted.text(found.get("Action"))
    if found.get("Type") == "network":
        return _moved(found, seen) if action in MOVES else None
    kind = KINDS.get(action)
    actor = untrusted.mapping(found.get("Actor"))
    identifier = untrusted.text(actor.get("ID"))
    if kind is None or not is_id(identifier):
        return None
    attributes = untrusted.mapping(actor.get("Attributes"))
    known = seen.get(identifier) or _first_report(seen.runtime, identifier, attributes)
    name = untrusted.text(attributes.get("name")).lstrip("/") or known.name
    changes: dict[str, Any] = {
        **_NOT_IN_EVENTS,
        **untrusted.dockers_pod(name, known.labels),
        "name": name,
        "image": untrusted.text(attributes.get("image")) or known.image,
    }
    if kind != "renamed":
        moment = untrusted.number(found.get("timeNano"))
        starts = changes["running"] = kind == "started"
        changes["started"] = moment if starts else 0
        # Docker reports a container's new addresses before it reports its start.
        changes["addressed"] = (
            known.addressed if starts and known.moved else 0 if starts else moment
        )
    return Change(kind, known.copy(**changes))


def condensed(records: Sequence[object], seen: Seen) -> list[object]:
    """Return the records of `/events` without those that the next one of the container repeats.

    A start has all that the creation before it has. A removal replaces the end before it and takes
    over its time, unless that end is the first event of the container.
    """
    kept: list[object] = []
    latest: dict[str, tuple[int, str]] = {}
    for record in records:
        found = untrusted.mapping(record)
        actor = untrusted.mapping(found.get("Actor"))
        kind = KINDS.get(untrusted.text(found.get("Action")), "")
        identifier = untrusted.text(actor.get("ID"))
        if found.get("Type") == "network":
            attributes = untrusted.mapping(actor.get("Attributes"))
            latest.pop(untrusted.text(attributes.get("container")), None)
        else:
            place, before = latest.get(identifier, (0, ""))
            if before == "created" and kind == "started":
                kept[place] = None
            elif before == "ended" and kind == "removed":
                found = {**found, "timeNano": untrusted.mapping(kept[place]).get("timeNano")}
                kept[place] = None
            elif kind == "exited" and (before or seen.get(identifier)):
                kind = "ended"
            latest[identifier] = len(kept), kind
        kept.append(found)
    return [record for record in kept if record]


def _moved(found: Mapping[str, Any], seen: Seen) -> Change | None:
    """Return that a container's addresses have changed, by a record of a network's event."""
    actor = untrusted.mapping(found.get("Actor"))
    attributes = untrusted.mapping(actor.get("Attributes"))
    # Docker's actor is the network, Podman's the container.
    identifier = untrusted.text(attributes.get("container")) or untrusted.text(actor.get("ID"))
    known = seen.get(identifier)
    if known is None or (not known.running and found.get("Action") != "connect"):
        return None
    addressed = untrusted.number(found.get("timeNano"))
    return Change("updated", known.copy(**{**_NOT_IN_EVENTS, "moved": True}, addressed=addressed))


def parse_inspect(container: Container, record: object) -> Container:
    """Return the container with what a record of `/containers/{id}/json` adds while it runs."""
    found = untrusted.mapping(record)
    state = untrusted.mapping(found.get("State"))
    if state.get("Running") is not True:
        return container.copy(**_NOT_IN_EVENTS, running=False)
    pid = untrusted.number(state.get("Pid"))
    file = untrusted.mapping(found.get("NetworkSettings")).get("SandboxKey")
    return container.copy(
        running=True,
        pid=pid,
        started=untrusted.timestamp(state.get("StartedAt")) or container.started,
        addresses=tuple(_addresses(found)),
        networks=tuple(_addresses(found).values()),
        ports=_inspected_ports(found),
        netns=processes.network_namespace(pid, container.id, untrusted.text(file)),
        joined=_joined(found),
        exposed=_exposed(found),
        moved=False,
    )


def _joined(found: Mapping[str, Any]) -> str:
    """Return the id of the container whose network namespace another was started in."""
    mode = untrusted.text(untrusted.mapping(found.get("HostConfig")).get("NetworkMode"))
    identifier = mode.removeprefix("container:")
    return identifier if mode != identifier and is_id(identifier) else ""


def _exposed(found: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the TCP ports that the image and who started it say are listened on."""
    declared = untrusted.mapping(untrusted.mapping(found.get("Config")).get("ExposedPorts"))
    named = (untrusted.text(each).partition("/") for each in list(declared)[: untrusted.PORTS])
    return tuple(untrusted.port(port) for port, _, proto in named if proto == "tcp")


def _first_report(runtime: str, identifier: str, attributes: Mapping[str, Any]) -> Container:
    labels = untrusted.labels(attributes, _NOT_LABELS)
    return Container(identifier, identifier[:12], runtime, labels=labels)


def _name(names: object) -> str:
    # A container that others link to has names such as `/other/alias` as well.
    for name in names if isinstance(names, list) else ():
        plain = untrusted.text(name).lstrip("/")
        if plain and "/" not in plain:
            return plain
    return ""


def _addresses(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the network of each address in a record."""
    networks = untrusted.mapping(untrusted.mapping(found.get("NetworkSettings")).get("Networks"))
    given: dict[str, str] = {}
    for name, record in list(networks.items())[: untrusted.ADDRESSES]:
        network = untrusted.mapping(record)
        for key in ("IPAddress", "GlobalIPv6Address"):
            address = untrusted.address(network.get(key))
            if address:
                given[address] = untrusted.text(network.get("NetworkID")) or untrusted.text(name)
    return given


def _listed_ports(records: object) -> tuple[tuple[str, int, int], ...]:
    published = []
    for record in records[: untrusted.PORTS] if isinstance(records, list) else ():
        port = untrusted.mapping(record)
        host, inside = (
            untrusted.port(port.get("PublicPort")),
            untrusted.port(port.get("PrivatePort")),
        )
        if host and inside and port.get("Type") == "tcp":
            published.append((untrusted.address(port.get("IP")), host, inside))
    return tuple(published)


def _inspected_ports(found: Mapping[str, Any]) -> tuple[tuple[str, int, int], ...]:
    published = []
    ports = untrusted.mapping(untrusted.mapping(found.get("NetworkSettings")).get("Ports"))
    for inside, bindings in list(ports.items())[: untrusted.PORTS]:
        number, _, protocol = inside.partition("/")
        for record in bindings[: untrusted.PORTS] if isinstance(bindings, list) else ():
            binding = untrusted.mapping(record)
            host = untrusted.port(binding.get("HostPort"))
            if host and untrusted.port(number) and protocol == "tcp":
                published.append((untrusted.address(binding.get("HostIp")), host, int(number)))
    return tuple(published[: untrusted.PORTS])
