"""Take stock of the sockets that exist now, and say whose each is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

from ig.containers.container import Container
from ig.errors import UsageError
from ig.gadget import Batch, Column
from ig.kernel import netns, procfs
from ig.kernel.cgroups import Cgroups
from ig.kernel.netns import Namespace
from ig.kernel.sockets import (
    ALL_STATES,
    INFO,
    LISTEN,
    STATES,
    SYN_RECV,
    UDP_STATES,
    Fields,
    empty,
    extend,
)
from ig.kernel.tables import Reader
from ig.ownership import Find, Owners, Tenancy

Wants = Callable[[Container], bool]
Say = Callable[[str], None]

DEFAULT_ORDER = ("containername", "proto", "state", "src")
"""What `ig.order.sort` is given where the user asked for no order."""

_PROCESSES = ("pid", "comm", "processes")
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
    find: Find,
    wants: Wants,
    containers: Sequence[Container],
    say: Say,
) -> Batch:
    """Give the sockets of the containers that are wanted (the host's if HOST is), in no order.

    `options` are the gadget's: proto, state, info, processes. `find` says whose a cgroup is;
    `containers` helps where cgroups do not tell. `say` is told, a line at a time, what could not
    be done as it should be. Raises UsageError for a state or protocol that does not exist.
    """
    wanted = _asked(options.get("proto") or "all", options.get("state") or ())
    found = netns.find()
    if not found.complete:
        say("Not root: other users' containers and their network namespaces are not shown.")
    batch = _Rows(wanted, bool(options.get("info")), bool(options.get("processes")))
    with Cgroups() as cgroups:
        owners = Owners(find, cgroups)
        tenancies = owners.tenancies(found.namespaces, netns.host(), containers)
        reader = Reader(_with_listeners(wanted), bool(options.get("info")))
        spaces = [
            namespace
            for namespace in found.namespaces.values()
            if any(map(wants, tenancies[namespace.id].tenants))
            or (namespace.id == netns.own() and not found.complete)
        ]
        for namespace, sockets in netns.visit(spaces, reader.read):
            tenancy = tenancies[namespace.id]
            whose = owners.of_sockets(sockets, tenancy, namespace)
            batch.add(namespace, *_attributed(sockets, whose, tenancy, wants), cgroups)
    for line in reader.shortcomings():
        say(line)
    return Batch(batch.fields, batch.owners)


def asked_by_columns(options: Mapping[str, Any], columns: Iterable[Column]) -> dict[str, Any]:
    """Give the options, with those turned on that the columns named by the user need."""
    names = {column.name for column in columns}
    return {
        **options,
        "processes": bool(options.get("processes") or names & set(_PROCESSES)),
        "info": bool(options.get("info") or names & set(INFO)),
    }


def watch(
    seconds: float,
    take: Callable[[], Batch],
    show: Callable[[Batch], None],
    wait: Callable[[float], bool],
) -> None:
    """Take and show a snapshot every `seconds`, until `wait`, called with how long, gives true.

    `threading.Event().wait` is such a function. A snapshot that takes longer than that delays the
    next one; none are made up for.
    """
    while True:
        began = time.monotonic()
        show(take())
        if wait(max(0.0, began + seconds - time.monotonic())):
            return


def portions(batch: Batch, size: int = 1024) -> Iterator[Batch]:
    """Yield the batch in parts, so that the text of all rows is never in memory at once."""
    for start in range(0, len(batch), size):
        part = slice(start, start + size)
        fields = {name: values[part] for name, values in batch.fields.items()}
        yield Batch(fields, batch.owners[part])


def _asked(proto: str, states: Iterable[str]) -> dict[str, int]:
    """Give the states wanted of each protocol, as bits."""
    names = [_state_name(state) for state in states]
    chosen = {"TCP": ALL_STATES, "UDP": ALL_STATES}
    if names:
        chosen["TCP"] = sum(_TCP_STATES.get(name, 0) for name in set(names))
        chosen["UDP"] = sum(_UDP_STATES.get(name, 0) for name in set(names))
    if proto.upper() == "ALL":
        return chosen
    if proto.upper() not in chosen:
        raise UsageError(f"There is no protocol {proto!r}.", "", "Choose one of tcp, udp, all.")
    return {proto.upper(): chosen[proto.upper()]}


def _state_name(state: str) -> str:
    name = state.strip().lower().replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    if name not in _TCP_STATES and name not in _UDP_STATES:
        known = ", ".join([*_TCP_STATES, *_UDP_STATES])
        raise UsageError(f"There is no state {state!r}.", f"Known states: {known}")
    return name


def _with_listeners(wanted: Mapping[str, int]) -> dict[str, int]:
    """Add the listeners that tell whose a half-open connection is."""
    half_open = 1 << SYN_RECV
    return {
        proto: states | (1 << LISTEN if proto == "TCP" and states & half_open else 0)
        for proto, states in wanted.items()
    }


def _attributed(
    sockets: Fields, whose: list[Container | None], tenancy: Tenancy, wants: Wants
) -> tuple[Fields, list[Container]]:
    """Give the sockets that are wanted with their owners, those of unknown ones under each name."""
    distinct = dict(zip(map(id, whose), whose, strict=True))
    verdict = {key: owner is not None and wants(owner) for key, owner in distinct.items()}
    if all(verdict.values()):
        sockets["shared"] = [False] * len(whose)
        return sockets, [owner for owner in whose if owner is not None]
    sharing = [tenant for tenant in tenancy.tenants if wants(tenant)]
    places: list[int] = []
    owners: list[Container] = []
    shared: list[bool] = []
    for place, owner in enumerate(whose):
        if owner is None:
            places += [place] * len(sharing)
            owners += sharing
            shared += [True] * len(sharing)
        elif verdict[id(owner)]:
            places.append(place)
            owners.append(owner)
            shared.append(False)
    chosen = {name: [values[place] for place in places] for name, values in sockets.items()}
    return {**chosen, "shared": shared}, owners


class _Rows:
    """The rows of all namespaces, with what is looked up for those that are shown."""

    def __init__(self, wanted: Mapping[str, int], info: bool, processes: bool) -> None:
        self.fields: Fields = empty(info)
        self.fields.pop("ifindex")
        self.fields |= {name: [] for name in ("state", "interface", "shared", "netns_id")}
        if processes:
            self.fields |= {name: [] for name in _PROCESSES}
        self.owners: list[Container] = []
        self._wanted = wanted
        self._processes = processes

    def add(
        self, namespace: Namespace, sockets: Fields, owners: list[Container], cgroups: Cgroups
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
        if self._processes:
            _add_processes(sockets, namespace)
        extend(self.fields, sockets)
        self.owners += owners


def _add_processes(sockets: Fields, namespace: Namespace) -> None:
    inodes = sockets["ino"]
    holders = procfs.holders(namespace.pids, set(inodes) - {0})
    held = [holders.get(inode, ()) for inode in inodes]
    sockets["processes"] = held
    sockets["pid"] = [each[0][0] if each else 0 for each in held]
    sockets["comm"] = [each[0][1] if each else "" for each in held]
