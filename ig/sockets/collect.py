"""Collect the current sockets and their owners."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import compress
from typing import Any

from ig.container import HOST, Container
from ig.errors import UsageError
from ig.gadget import Batch
from ig.kernel import netns, netns_finder
from ig.kernel.cgroupfs import Cgroups
from ig.kernel.netns import Namespace
from ig.sockets import proc
from ig.sockets.owner import NOBODY, Known, NamespaceOwners, Owners
from ig.sockets.proc import (
    ALL_STATES,
    CLOSE,
    INFO,
    LISTEN,
    STATES,
    SYN_RECV,
    UDP_STATES,
    Fields,
    empty,
    extend,
)
from ig.sockets.reader import Reader
from ig.sockets.sides import Side

Wants = Callable[[Container], bool]
Say = Callable[[str], None]


PROCESS_FIELDS = ("pid", "comm", "processes")
_UDP_STATES = {name.lower(): 1 << number for number, name in UDP_STATES.items()}
_TCP_STATES = {name.lower(): 1 << number for number, name in STATES.items()}
_OTHER_NAMES = {  # as `ss` writes them
    "estab": "established",
    "fin_wait_1": "fin_wait1",
    "fin_wait_2": "fin_wait2",
    "listening": "listen",
    "closed": "close",
    "unconn": "inactive",
}


def collect(
    options: Mapping[str, Any],
    known: Known,
    wants: Wants,
    say: Say,
    more: Sequence[str] = (),
    *,
    side: Side | None = None,
    find: Callable[[], netns.Found] = netns_finder.find,
) -> Batch:
    """Return the sockets of the wanted containers (of the host if HOST is wanted), unsorted.

    `options` are the gadget's: proto, state, listening, port, info, processes. `more` are the
    fields besides those that are always there. With a `side`, TCP connections of the other one may
    be left out. `say` gets a line for each limitation; `find` finds the network namespaces. Raises
    UsageError for a state or protocol that does not exist.
    """
    wanted = asked(options)
    ports = frozenset(options.get("port") or ())
    found = find()
    processes = bool(options.get("processes"))
    more = (*more, *(INFO if options.get("info") else ()))
    batch = _Rows(wanted, more, processes)
    left_out = 0
    with Cgroups() as cgroups:
        for line in _limits(found, cgroups):
            say(line)
        owners = Owners(known, cgroups)
        namespace_owners = owners.of_namespaces(found, netns.host())
        reader = Reader(_with_listeners(wanted), more, side)
        spaces = [
            namespace
            for namespace in found.namespaces.values()
            if any(map(wants, namespace_owners[namespace.id].owners))
            or (namespace.id == netns.own() and not found.complete)
        ]

        def read(space: Namespace, entered: bool) -> tuple[Namespace, Fields]:
            _, sockets = reader.read(space, entered)
            return space, _on(ports, sockets) if ports else sockets

        for namespace, sockets in netns.visit(spaces, read):
            residents = namespace_owners[namespace.id]
            held = proc.holders(namespace.pids, set(sockets["ino"]) - {0}) if processes else None
            whose = owners.of_sockets(sockets, residents, namespace, held)
            chosen, its = _attributed(sockets, whose, residents, wants)
            if len(its) < len(whose):
                left_out += _times(None, whose) - _times(NOBODY, its)
            batch.add(namespace, chosen, its, cgroups, held)
    for line in reader.warnings():
        say(line)
    if left_out and not (options.get("filter") or options.get("port")):
        say(
            f"{left_out} sockets without a known owner are not shown: they may belong to another "
            "container in the network namespace. Use --host without -c to show them."
        )
    return Batch(batch.fields, batch.owners)


def _times(wanted: object, values: Iterable[object]) -> int:
    """Return how often the very object is among the values; list.count() would compare fields."""
    return list(map(id, values)).count(id(wanted))


def _limits(found: netns.Found, cgroups: Cgroups) -> Iterator[str]:
    """Yield a warning for each limitation of this process's namespaces and privileges."""
    if not found.complete:
        yield (
            "warning: not running as root: containers and network namespaces of other users are "
            "not shown."
        )
    if not found.all_processes:
        yield (
            "warning: ig runs in its own PID namespace: processes outside of it, so most "
            "containers and their sockets, are not visible. Run it in the host's PID namespace "
            "(docker run --pid=host)."
        )
    if not cgroups.complete:
        yield (
            "warning: ig runs in its own cgroup namespace: the owner of a socket is known only if "
            "a process outside of it holds the socket. Run it in the host's cgroup namespace "
            "(docker run --cgroupns=host), or with CAP_SYS_ADMIN."
        )


def asked(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the requested states of each protocol, as bits. Raises UsageError."""
    names = [_state_name(state) for state in options.get("state") or ()]
    chosen = {"TCP": ALL_STATES, "UDP": ALL_STATES}
    if options.get("listening"):
        chosen = {"TCP": 1 << LISTEN, "UDP": 1 << CLOSE}
    elif names:
        chosen["TCP"] = sum(_TCP_STATES.get(name, 0) for name in set(names))
        chosen["UDP"] = sum(_UDP_STATES.get(name, 0) for name in set(names))
    proto = (options.get("proto") or "all").upper()
    both = [name for name in chosen if options.get(name.lower())]
    if proto not in (*chosen, "ALL"):
        raise UsageError(f"Unknown protocol {proto.lower()!r}.", "Known protocols: tcp, udp, all")
    if proto != "ALL":
        both.append(proto)
    return {name: states for name, states in chosen.items() if name in both or not both}


def _on(ports: AbstractSet[int], sockets: Fields) -> Fields:
    """Return the sockets that have one of the ports at either end."""
    ends = zip(sockets["sport"], sockets["dport"], strict=True)
    keep = [near in ports or far in ports for near, far in ends]
    return {name: list(compress(values, keep)) for name, values in sockets.items()}


def _state_name(state: str) -> str:
    name = state.strip().lower().replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    if name not in _TCP_STATES and name not in _UDP_STATES:
        known = ", ".join([*_TCP_STATES, *_UDP_STATES])
        raise UsageError(f"Unknown state {state!r}.", f"Known states: {known}")
    return name


def _with_listeners(wanted: Mapping[str, int]) -> dict[str, int]:
    """Add the listeners, by which half-open connections are attributed."""
    half_open = 1 << SYN_RECV
    return {
        proto: states | (1 << LISTEN if proto == "TCP" and states & half_open else 0)
        for proto, states in wanted.items()
    }


def _attributed(
    sockets: Fields, whose: list[Container | None], residents: NamespaceOwners, wants: Wants
) -> tuple[Fields, list[Container]]:
    """Return the wanted sockets and owners; without an owner if all possible owners are wanted."""
    only = whose[0] if len(set(map(id, whose))) == 1 else None
    if only is not None and only is not NOBODY:  # as in most namespaces
        kept = len(whose) if wants(only) else 0
        sockets = sockets if kept else {name: [] for name in sockets}
        return {**sockets, "shared": [False] * kept}, [only] * kept
    owners = [NOBODY if owner is None else owner for owner in whose]
    distinct = dict(zip(map(id, owners), owners, strict=True))
    verdict = {key: wants(owner) for key, owner in distinct.items()}
    verdict[id(NOBODY)] = all(map(wants, residents.owners)) and (residents.complete or wants(HOST))
    if not all(verdict[key] for key in distinct):
        keep = [verdict[id(owner)] for owner in owners]
        owners = list(compress(owners, keep))
        sockets = {name: list(compress(values, keep)) for name, values in sockets.items()}
    return {**sockets, "shared": [owner is NOBODY for owner in owners]}, owners


class _Rows:
    """The rows of all namespaces, with the additional columns of shown rows."""

    def __init__(self, wanted: Mapping[str, int], more: Sequence[str], processes: bool) -> None:
        self.fields: Fields = empty(more)
        self.fields.pop("ifindex")
        self.fields |= {name: [] for name in ("state", "interface", "shared", "netns_id")}
        if processes:
            self.fields |= {name: [] for name in PROCESS_FIELDS}
        self.owners: list[Container] = []
        self._wanted = wanted

    def add(
        self,
        namespace: Namespace,
        sockets: Fields,
        owners: list[Container],
        cgroups: Cgroups,
        held: proc.Holders | None,
    ) -> None:
        """Append the sockets of one namespace."""
        if self._wanted != _with_listeners(self._wanted):
            tcp = self._wanted["TCP"]
            keep = [
                proto != "TCP" or tcp >> state & 1
                for proto, state in zip(sockets["proto"], sockets["state_raw"], strict=True)
            ]
            owners = list(compress(owners, keep))
            sockets = {name: list(compress(values, keep)) for name, values in sockets.items()}
        paths = {each: cgroups.path(each) or "" for each in set(sockets["cgroup"])}
        sockets["cgroup"] = list(map(paths.__getitem__, sockets["cgroup"]))
        sockets["netns_id"] = [namespace.id] * len(owners)
        if held is not None:
            _add_processes(sockets, held)
        extend(self.fields, sockets)
        self.owners += owners


def _add_processes(sockets: Fields, holders: proc.Holders) -> None:
    held = [holders.get(inode, ()) for inode in sockets["ino"]]
    sockets["processes"] = held
    sockets["pid"] = [each[0][0] if each else 0 for each in held]
    sockets["comm"] = [each[0][1] if each else "" for each in held]
