"""Resolve the container of a socket, also if several share a network namespace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ig.container import HOST, Container, Identity
from ig.kernel import processes
from ig.kernel.cgroupfs import Cgroups
from ig.kernel.netns import Found, Namespace
from ig.sockets import proc
from ig.sockets.proc import LISTEN, SYN_RECV, Fields
from ig.sockets.sides import WILDCARDS

Find = Callable[[Sequence[str], int | None], tuple[Container, bool]]
"""The names of a cgroup from the root down, and how many of them only root could have made (None:
unknown), to whose it is, and whether that is final."""

NOBODY = Container(id="", name="", runtime="", scope="?")
"""The owner of a socket of one of several containers, unknown which."""


class Known(NamedTuple):
    """The containers that the runtimes reported."""

    find: Find
    containers: Sequence[Container] = ()
    """Running ones: their first processes identify the owner if cgroups do not."""
    strays: Mapping[int, Container] = MappingProxyType({})
    """Those without a cgroup of their own, by the inodes of their mount namespaces."""


class NamespaceOwners(NamedTuple):
    """The owners in one network namespace."""

    owners: tuple[Container, ...]
    """The containers in it; HOST first in the host's own, and alone where there is no container."""
    cgroup_is_sufficient: bool = True
    """Whether all of them are identified by their version 2 cgroups."""
    complete: bool = True
    """Whether all owners in it are visible."""

    @property
    def only_owner(self) -> Container | None:
        """The only possible owner of its sockets, None if there are several."""
        return self.owners[0] if len(self.owners) == 1 and self.complete else None


class Owners:
    """The owners of processes, cgroups and sockets; each cgroup is resolved once."""

    def __init__(self, known: Known, cgroups: Cgroups) -> None:
        self._known = known
        self._cgroups = cgroups
        self._by_path: dict[tuple[str, str], Container] = {}
        # One object per container, so that identity distinguishes them.
        self._same: dict[Identity, Container] = {each.identity: each for each in (HOST, NOBODY)}
        self._first = {each.pid: self.same(each) for each in known.containers if each.pid}

    def same(self, container: Container) -> Container:
        """Return the single object for this container."""
        return self._same.setdefault(container.identity, container)

    def of_path(self, path: str, controllers: str = "") -> Container:
        """Return the owner of a cgroup; `controllers` are those of a version 1 hierarchy."""
        key = controllers, path
        owner = self._by_path.get(key)
        if owner is None:
            names = [name for name in path.split("/") if name]
            found, _ = self._known.find(names, self._cgroups.trusted(path, controllers))
            owner = self._by_path[key] = self.same(found)
        return owner

    def of_process(self, pid: int) -> tuple[Container, bool]:
        """Return the owner of a process, and whether its version 2 cgroup is sufficient for it."""
        paths = proc.cgroup_paths(pid)
        for controllers, path in paths:
            owner = self.of_path(path, controllers)
            if owner is not HOST:
                return owner, not controllers
        first = self._first.get(pid)
        if first is None and self._known.strays:
            first = self._known.strays.get(processes.mount_namespace(pid))
        if first is not None:
            return self.same(first), False
        # Below the root of a cgroup namespace that we may not leave anybody's cgroup may be.
        if not self._cgroups.complete and any(not path.startswith("/..") for _, path in paths):
            return NOBODY, False
        return HOST, True

    def of_namespaces(self, found: Found, host: int) -> dict[int, NamespaceOwners]:
        """Return the owners in each network namespace; `host` is the id of the host's own."""
        return {
            identifier: self._of_namespace(namespace, identifier == host, found.all_processes)
            for identifier, namespace in found.namespaces.items()
        }

    def _of_namespace(self, namespace: Namespace, is_host: bool, complete: bool) -> NamespaceOwners:
        found: dict[int, Container] = {}
        told = True
        for pid in namespace.pids:
            owner, by_cgroup = self.of_process(pid)
            told &= by_cgroup
            found[id(owner)] = owner
        owners = [each for each in found.values() if each is not HOST]
        # A pod's pause container holds the namespace for the others and opens no socket.
        owners = [each for each in owners if not each.sandbox] or owners
        if is_host or not owners:
            owners.insert(0, HOST)
        return NamespaceOwners(tuple(owners), told, complete)

    def of_sockets(
        self,
        fields: Fields,
        residents: NamespaceOwners,
        namespace: Namespace,
        held: proc.Holders | None = None,
    ) -> list[Container | None]:
        """Return the owner of each socket of one namespace, None where it cannot be known."""
        known = {each: self._of_cgroup(each, residents) for each in set(fields["cgroup"])}
        owners = list(map(known.__getitem__, fields["cgroup"]))
        if residents.only_owner is None:
            self._ask_processes(fields, owners, residents, namespace, held)
            _ask_listeners(fields, owners)
        return owners

    def _of_cgroup(self, identifier: int, residents: NamespaceOwners) -> Container | None:
        path = self._cgroups.path(identifier)
        owner = None if path is None else self.of_path(path)
        if owner is not None and owner is not HOST:
            return owner
        # What an engine or an administrator opens inside of a container's namespace is shown as
        # the container's: it is what others reach there.
        if residents.only_owner is not None:
            return residents.only_owner
        sure = residents.cgroup_is_sufficient and residents.complete
        return owner if HOST in residents.owners and sure else None

    def _ask_processes(
        self,
        fields: Fields,
        owners: list[Container | None],
        residents: NamespaceOwners,
        namespace: Namespace,
        held: proc.Holders | None,
    ) -> None:
        inodes = fields["ino"]
        unknown = {inodes[place] for place, owner in enumerate(owners) if owner is None} - {0}
        if not unknown:
            return
        holders = proc.holders(namespace.pids, unknown) if held is None else held
        for place, owner in enumerate(owners):
            if owner is None and inodes[place] in holders:
                found = {id(each): each for each in map(self._holder, holders[inodes[place]])}
                one = next(iter(found.values()))
                if len(found) == 1 and one is not NOBODY and self._may_be(one, residents):
                    owners[place] = one

    @staticmethod
    def _may_be(owner: Container, residents: NamespaceOwners) -> bool:
        return owner is not HOST or HOST in residents.owners

    def _holder(self, process: tuple[int, str]) -> Container:
        return self.of_process(process[0])[0]


def _ask_listeners(fields: Fields, owners: list[Container | None]) -> None:
    """Set the owner of half-open connections to that of their listener."""
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
        for address in (sources[place], *WILDCARDS):
            found = listeners.get((address, ports[place]))
            if found:
                owners[place] = next(iter(found.values())) if len(found) == 1 else None
                break
