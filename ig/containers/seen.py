"""Keep what a runtime told of its containers, within bounds of number and memory."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from operator import attrgetter

from ig.containers.container import Change, Container

MOST = 16384
"""How many containers one runtime is believed to have."""
_LABELS = 8 << 10
_ALL = 32 << 20
"""Bytes of memory: of one container's labels, and of all that one runtime told."""
_TEXTS = attrgetter("id", "name", "image", "pod_namespace", "pod_name", "pod_container", "pod_uid")

Key = tuple[str, str]
"""What a container's id is unique in, and the id."""


class Seen:
    """The containers that one runtime told of, within bounds of number and memory."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self._known: OrderedDict[Key, Container] = OrderedDict()
        self._sizes: dict[Key, int] = {}
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
        """Forget all: the runtime tells anew what it has."""
        self._known.clear()
        with self._lock:
            self._sizes.clear()
            self._size = 0


def _size(container: Container) -> int:
    """Return about how many bytes of memory a container takes by what its runtime told."""
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
