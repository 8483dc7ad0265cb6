"""Say which container a socket belongs to, also where several share a network namespace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ig.containers.container import HOST, Container
from ig.kernel import procfs
from ig.kernel.cgroups import Cgroups
from ig.kernel.netns import Namespace
from ig.kernel.sockets import LISTEN, SYN_RECV, Fields

Find = Callable[[Sequence[str]], tuple[Container, bool]]
"""The names of a cgroup from the root down to whose it is, and whether that is final."""

_WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Who lives in one network namespace."""

    tenants: tuple[Container, ...]
    """The containers in it; HOST first in the host's own, and alone where there is no container."""
    told_by_cgroup: bool = True
    """Whether the version 2 cgroups of all of them say whose they are."""

    @property
    def sole(self) -> Container | None:
        """The only one who can own what is there, None if there are several."""
        return self.tenants[0] if len(self.tenants) == 1 else None


class Owners:
    """Whose processes, cgroups and sockets are. `find` is asked once for each cgroup."""

    def __init__(self, find: Find, cgroups: Cgroups) -> None:
        self._find = find
        self._cgroups = cgroups
        self._by_path: dict[str, Container] = {}
        # One object for each container, so that they can be told apart by identity.
        self._same: dict[tuple[str, str], Container] = {(HOST.scope, HOST.id): HOST}
        self._first: dict[int, Container] = {}

    def same(self, container: Container) -> Container:
        """Give the object that stands for this container here."""
        return self._same.setdefault((container.scope, container.id), container)

    def of_path(self, path: str) -> Container:
        """Give the owner of a cgroup."""
        owner = self._by_path.get(path)
        if owner is None:
            found, _ = self._find([name for name in path.split("/") if name])
            owner = self._by_path[path] = self.same(found)
        return owner

    def of_process(self, pid: int) -> tuple[Container, bool]:
        """Give the owner of a process, and whether its version 2 cgroup alone tells it."""
        for place, path in enumerate(procfs.cgroup_paths(pid)):
            owner = self.of_path(path)
            if owner is not HOST:
                return owner, place == 0
        owner = self._first.get(pid, HOST)
        return owner, owner is HOST

    def tenancies(
        self, namespaces: Mapping[int, Namespace], host: int, containers: Iterable[Container]
    ) -> dict[int, Tenancy]:
        """Say who lives in each network namespace; `host` is the id of the host's own."""
        self._first = {each.pid: self.same(each) for each in containers if each.pid}
        return {
            identifier: self._tenancy(namespace, identifier == host)
            for identifier, namespace in namespaces.items()
        }

    def _tenancy(self, namespace: Namespace, is_host: bool) -> Tenancy:
        found: dict[int, Container] = {}
        told = True
        for pid in namespace.pids:
            owner, by_cgroup = self.of_process(pid)
            told &= by_cgroup
            found[id(owner)] = owner
        tenants = [each for each in found.values() if each is not HOST]
        # A pod's pause container holds the namespace for the others and opens no socket.
        tenants = [each for each in tenants if not each.sandbox] or tenants
        if is_host or not tenants:
            tenants.insert(0, HOST)
        return Tenancy(tuple(tenants), told)

    def of_sockets(
        self, fields: Fields, tenancy: Tenancy, namespace: Namespace
    ) -> list[Container | None]:
        """Give the owner of each socket of one namespace, None where it cannot be known."""
        known = {each: self._of_cgroup(each, tenancy) for each in set(fields["cgroup"])}
        owners = list(map(known.__getitem__, fields["cgroup"]))
        if tenancy.sole is None:
            if not (tenancy.told_by_cgroup and any(fields["cgroup"])):
                self._ask_processes(fields, owners, tenancy, namespace)
            _ask_listeners(fields, owners)
        return owners

    def _of_cgroup(self, identifier: int, tenancy: Tenancy) -> Container | None:
        path = self._cgroups.path(identifier)
        owner = None if path is None else self.of_path(path)
        if owner is not None and owner is not HOST:
            return owner
        # What an engine or an administrator opens inside of a container's namespace is shown as
        # the container's: it is what others reach there.
        if tenancy.sole is not None:
            return tenancy.sole
        return owner if HOST in tenancy.tenants and tenancy.told_by_cgroup else None

    def _ask_processes(
        self,
        fields: Fields,
        owners: list[Container | None],
        tenancy: Tenancy,
        namespace: Namespace,
    ) -> None:
        inodes = fields["ino"]
        unknown = {inodes[place] for place, owner in enumerate(owners) if owner is None} - {0}
        if not unknown:
            return
        holders = procfs.holders(namespace.pids, unknown)
        for place, owner in enumerate(owners):
            if owner is None and inodes[place] in holders:
                found = {id(each): each for each in map(self._holder, holders[inodes[place]])}
                one = next(iter(found.values()))
                if len(found) == 1 and (one is not HOST or HOST in tenancy.tenants):
                    owners[place] = one

    def _holder(self, process: tuple[int, str]) -> Container:
        return self.of_process(process[0])[0]


def _ask_listeners(fields: Fields, owners: list[Container | None]) -> None:
    """Give half-open connections, which have no owner yet, to that of the socket that listens."""
    states, sources, ports = fields["state_raw"], fields["saddr"], fields["sport"]
    half_open = [
        place for place, owner in enumerate(owners) if owner is None and states[place] == SYN_RECV
    ]
    if not half_open:
        return
    listeners: dict[tuple[str, int], dict[int, Container | None]] = {}
    for place, state in enumerate(states):
        if state == LISTEN:
            owner = owners[place]
            listeners.setdefault((sources[place], ports[place]), {})[id(owner)] = owner
    for place in half_open:
        for address in (sources[place], *_WILDCARDS):
            found = listeners.get((address, ports[place]))
            if found:
                owners[place] = next(iter(found.values())) if len(found) == 1 else None
                break
