"""Keep what several runtimes told of their containers, as one container each, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from ig.containers.answers import CONTAINERS
from ig.containers.cgroup import ID
from ig.containers.container import Change, Container

Key = str | tuple[str, str]
"""The id where it is unique by itself, else what it is unique in and the id."""

REMOVED = 4096
"""How many containers are remembered after their removal: their events arrive later."""


def key_of(container: Container) -> Key:
    """Return what the container is found by."""
    if ID.match(container.id):
        return container.id
    return (container.scope, container.id)


class Registry:
    """What the runtimes told. One writer at a time; reading needs no lock, from any thread."""

    def __init__(
        self, runtimes: Sequence[str], limit: int = CONTAINERS, removed: int = REMOVED
    ) -> None:
        self._told: dict[str, OrderedDict[Key, Container]] = {
            name: OrderedDict() for name in runtimes
        }
        self._unconfirmed: dict[str, set[Key]] = {name: set() for name in runtimes}
        self._known: dict[Key, Container] = {}
        self._gone: OrderedDict[Key, Container] = OrderedDict()
        self._limit = limit
        self._removed = removed

    def get(self, key: Key) -> Container | None:
        """Return the container, also if it was removed lately."""
        return self._known.get(key) or self._gone.get(key)

    def told(self, runtime: str, key: Key) -> Container | None:
        """Return the container as one runtime told of it; None if it did not."""
        return self._told[runtime].get(key)

    def __iter__(self) -> Iterator[Container]:
        """Go through those that exist now."""
        return iter(list(self._known.values()))

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, runtime: str) -> None:
        """Note that the runtime tells all anew; what it leaves out until `synced` is gone."""
        self._unconfirmed[runtime] = set(self._told[runtime])

    def apply(self, runtime: str, change: Change) -> list[Change]:
        """Take in what a runtime told and give what is different now, all runtimes taken together.

        A change of kind `detailed` has all that the runtime tells of a container when it is asked;
        others are completed by what was told before.

        Raises KeyError for a runtime that was not announced.
        """
        told = self._told[runtime]
        if change.kind == "synced":
            vanished, self._unconfirmed[runtime] = self._unconfirmed[runtime], set()
            return [each for key in vanished for each in self._remove(runtime, key)]
        container = change.container
        key = key_of(container)
        if isinstance(key, tuple) and not all(key):
            # An id such as `system.slice` without a scope would claim a cgroup of the host's.
            return []
        if change.kind == "removed":
            return self._remove(runtime, key)
        if change.kind in ("updated", "detailed") and key not in told:
            return []
        container = _carried(told.get(key), container, change.kind)
        self._unconfirmed[runtime].discard(key)
        told[key] = container
        changes = self._merged(key, change.kind)
        if len(told) > self._limit:
            changes += self._remove(runtime, next(iter(told)))
        return changes

    def _remove(self, runtime: str, key: Key) -> list[Change]:
        self._unconfirmed[runtime].discard(key)
        if self._told[runtime].pop(key, None) is None:
            return []
        return self._merged(key, "removed")

    def _merged(self, key: Key, kind: str) -> list[Change]:
        tellings = [told[key] for told in self._told.values() if key in told]
        before = self._known.get(key)
        if not tellings:
            return [Change("removed", self._bury(key, before))] if before else []
        # Docker's containers are containerd's too, where they have no name.
        now = next((each for each in tellings if each.named), tellings[0])
        if not now.cgroups:
            placed = next((each for each in tellings if each.cgroups), now)
            now = now.copy(cgroups=placed.cgroups, mntns=placed.mntns)
        if now == before:
            return []
        # What is remembered as gone stays so: a reader looks there after it has looked here.
        self._known[key] = now
        if kind in ("removed", "detailed") or (before and kind in ("exists", "created")):
            kind = "updated"
        return [Change(kind, now)]

    def _bury(self, key: Key, container: Container) -> Container:
        buried = container.copy(running=False, mntns=0)
        # First the new place, then the old one: a reader must find it in either.
        self._gone[key] = buried
        self._gone.move_to_end(key)
        del self._known[key]
        if len(self._gone) > self._removed:
            self._gone.popitem(last=False)
        return buried


def _carried(before: Container | None, now: Container, kind: str) -> Container:
    """Keep what an event did not repeat: a running container's details, and its cgroups.

    A container has the same cgroups whenever it runs, and events of it come after its end.
    """
    if before is None:
        return now
    if not now.cgroups and before.cgroups and now.source == before.source:
        now = now.copy(cgroups=before.cgroups)
    if kind in ("exists", "detailed") or not (before.running and now.running):
        return now
    has_addresses = now if now.addresses else before
    return now.copy(
        pid=now.pid or before.pid,
        started=now.started or before.started,
        addresses=has_addresses.addresses,
        networks=has_addresses.networks,
        ports=now.ports or before.ports,
        mntns=now.mntns if now.pid else before.mntns,
        netns=now.netns or before.netns,
        joined=now.joined or before.joined,
        exposed=now.exposed or before.exposed,
        addressed=now.addressed or before.addressed,
        moved=now.moved or before.moved,
    )
