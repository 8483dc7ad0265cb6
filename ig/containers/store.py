"""Keep what runtimes reported of their containers, within bounds of number and memory."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

from ig.container import Change, Container, is_id
from ig.containers.untrusted import CONTAINERS

MOST = 16384
"""How many containers one runtime is believed to have."""
_LABELS = 8 << 10
_ALL = 32 << 20
"""Bytes of memory: of one container's labels, and of all that one runtime reported."""
_TEXTS = attrgetter("id", "name", "image", "pod_namespace", "pod_name", "pod_container", "pod_uid")

REMOVED = 4096
"""How many containers are remembered after their removal: their events arrive later."""

Key = str | tuple[str, str]
"""The id where it is unique by itself, else what it is unique in and the id."""
_ScopedId = tuple[str, str]
"""What a container's id is unique in, and the id."""


class Seen:
    """The containers that one runtime reported, within bounds of number and memory."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self._known: OrderedDict[_ScopedId, Container] = OrderedDict()
        self._sizes: dict[_ScopedId, int] = {}
        self._size = 0
        # A thread follows the runtime while another asks for details.
        self._lock = threading.Lock()

    def get(self, identifier: str, scope: str = "") -> Container | None:
        """Return the container as it was noted last."""
        return self._known.get((scope, identifier))

    def noted(self, change: Change) -> Iterator[Change]:
        """Remember what a change says; yield it, and the removal of containers that are too many.

        Nothing is yielded for a container that there is no room for.
        """
        if change.kind == "removed":
            self.forget(change.container)
            yield change
            return
        container = self.note(change.container)
        excess = list(self.excess())
        if container not in excess:
            yield Change(change.kind, container)
        yield from (Change("removed", each) for each in excess)

    def note(self, container: Container) -> Container:
        """Remember the container, and return it as `fitted` does."""
        key = (container.scope, container.id)
        self._known[key] = container
        self._known.move_to_end(key)
        self._known[key] = container = self.fitted(container)
        return container

    def fitted(self, container: Container) -> Container:
        """Return the container without what there is no room for: labels, or all but its names."""
        labels = _fitting(container.labels)
        if labels is not container.labels:
            container = container.copy(labels=labels)
        key = (container.scope, container.id)
        with self._lock:
            others = self._size - self._sizes.get(key, 0)
            size = _size(container)
            if others + size > _ALL:
                container = container.copy(image="", labels={}, addresses=(), networks=(), ports=())
                size = _size(container)
            if key in self._known:
                self._sizes[key] = size
                self._size = others + size
        return container

    def forget(self, container: Container) -> None:
        """Forget a container that is gone."""
        key = (container.scope, container.id)
        self._known.pop(key, None)
        with self._lock:
            self._size -= self._sizes.pop(key, 0)

    def excess(self) -> Iterator[Container]:
        """Forget and yield the oldest of more containers than a runtime can have."""
        while len(self._known) > MOST or self._size > 2 * _ALL:
            oldest = next(iter(self._known.values()))
            self.forget(oldest)
            yield oldest

    def clear(self) -> None:
        """Forget all: the runtime reports anew what it has."""
        self._known.clear()
        with self._lock:
            self._sizes.clear()
            self._size = 0


def _size(container: Container) -> int:
    """Return about how many bytes of memory a container takes by what its runtime reported."""
    texts = sum(map(sys.getsizeof, _TEXTS(container)))
    return (
        sum(map(_label_size, container.labels.items()))
        + texts
        + 512 * len(container.addresses)
        + 512 * len(container.ports)
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


def key_of(container: Container) -> Key:
    """Return what the container is found by."""
    if is_id(container.id):
        return container.id
    return (container.scope, container.id)


class Registry:
    """What the runtimes reported. One writer at a time; reading needs no lock, from any thread."""

    def __init__(
        self, runtimes: Sequence[str], limit: int = CONTAINERS, removed: int = REMOVED
    ) -> None:
        self._reported: dict[str, OrderedDict[Key, Container]] = {
            name: OrderedDict() for name in runtimes
        }
        self._unconfirmed: dict[str, set[Key]] = {name: set() for name in runtimes}
        self._known: dict[Key, Container] = {}
        self._removed: OrderedDict[Key, Container] = OrderedDict()
        self._limit = limit
        self._most_removed = removed

    def get(self, key: Key) -> Container | None:
        """Return the container, also if it was removed lately."""
        return self._known.get(key) or self._removed.get(key)

    def of_runtime(self, runtime: str, key: Key) -> Container | None:
        """Return the container as one runtime reported it; None if it did not."""
        return self._reported[runtime].get(key)

    def __iter__(self) -> Iterator[Container]:
        """Go through those that exist now."""
        return iter(list(self._known.values()))

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, runtime: str) -> None:
        """Note that the runtime reports all anew; what it leaves out until `synced` is gone."""
        self._unconfirmed[runtime] = set(self._reported[runtime])

    def apply(self, runtime: str, change: Change) -> list[Change]:
        """Apply what a runtime reported; return what differs now, all runtimes taken together.

        A change of kind `detailed` has all that the runtime reports of a container when asked;
        others are completed by what was reported before.

        Raises KeyError for a runtime that was not announced.
        """
        reported = self._reported[runtime]
        if change.kind == "synced":
            vanished, self._unconfirmed[runtime] = self._unconfirmed[runtime], set()
            return [each for key in vanished for each in self._remove(runtime, key)]
        container = change.container
        key = key_of(container)
        if isinstance(key, tuple) and not all(key):
            # An id such as `system.slice` without a scope would claim a cgroup of the host's.
            return []
        if change.kind == "removed":
            return self._remove(runtime, key, container.addressed)
        if change.kind in ("updated", "detailed") and key not in reported:
            return []
        container = _merge_details(reported.get(key), container, change.kind)
        self._unconfirmed[runtime].discard(key)
        reported[key] = container
        changes = self._merged(key, change.kind)
        if len(reported) > self._limit:
            changes += self._remove(runtime, next(iter(reported)))
        return changes

    def _remove(self, runtime: str, key: Key, moment: int = 0) -> list[Change]:
        """Remove what a runtime reported, at the `moment` that it reports, 0 for none."""
        self._unconfirmed[runtime].discard(key)
        if self._reported[runtime].pop(key, None) is None:
            return []
        return self._merged(key, "removed", moment)

    def _merged(self, key: Key, kind: str, moment: int = 0) -> list[Change]:
        reports = [reported[key] for reported in self._reported.values() if key in reported]
        before = self._known.get(key)
        if not reports:
            return [Change("removed", self._mark_removed(key, before, moment))] if before else []
        # Docker's containers are containerd's too, where they have no name.
        now = next((each for each in reports if each.named), reports[0])
        if not now.cgroups:
            placed = next((each for each in reports if each.cgroups), now)
            now = now.copy(cgroups=placed.cgroups, mntns=placed.mntns)
        if now == before:
            return []
        # What is remembered as gone stays so: a reader looks there after it has looked here.
        self._known[key] = now
        if kind in ("removed", "detailed") or (before and kind in ("exists", "created")):
            kind = "updated"
        return [Change(kind, now)]

    def _mark_removed(self, key: Key, container: Container, moment: int) -> Container:
        addressed = moment if container.running and moment else container.addressed
        removed = container.copy(running=False, mntns=0, addressed=addressed)
        # First the new place, then the old one: a reader must find it in either.
        self._removed[key] = removed
        self._removed.move_to_end(key)
        del self._known[key]
        if len(self._removed) > self._most_removed:
            self._removed.popitem(last=False)
        return removed


def with_details(container: Container, asked: Container) -> Container:
    """Return a container with the details of `asked`, which its runtime returned when queried."""
    return container.copy(
        pid=asked.pid,
        started=asked.started,
        addresses=asked.addresses,
        networks=asked.networks,
        ports=asked.ports,
        netns=asked.netns,
        joined=asked.joined,
        exposed=asked.exposed,
        moved=False,
    )


def _merge_details(before: Container | None, now: Container, kind: str) -> Container:
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
