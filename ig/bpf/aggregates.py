"""What a program counts by key in maps, read at an interval: see aggregate.h.

Many elements are read at once: Linux can since 5.6, and ring buffers, which every program has, are
of 5.8. Source: Documentation/bpf/map_hash.rst, membarrier(2).
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ig.bpf.syscalls import (
    is_per_cpu,
    map_delete_keys,
    map_read,
    possible_cpus,
    wait_for_programs,
)
from ig.c_text import Layout


def _least(values: Iterable[int]) -> int:
    return min(filter(None, values), default=0)


_FUNCTIONS: Mapping[str, Callable[[Iterable[int]], int]] = {"max_": max, "min_": _least}
"""How values of fields whose names begin so become one; others are added up."""


class Aggregates:
    """The counts of a program, as records. Closing it unmaps the epoch.

    The fields of a record are the time (ns since boot), those of struct key, those of struct value
    (an array's is a tuple), and `other`: 1 in a record of the keys for which there was no room,
    of which only OTHER_KEY of aggregate.h is left, 0 in others. With `keep`, counts go on after
    they were read.
    """

    def __init__(
        self, maps: Mapping[str, int], key: Layout, value: Layout, keep: bool = False
    ) -> None:
        self.fields = ("timestamp", *key.names, *value.names, "other")
        self._counts = _Table(maps["counts"], key.format, value)
        self._others = _Table(maps["others"], key.format, value)
        self._keep = keep
        self._page = mmap.mmap(maps["epoch"], mmap.PAGESIZE)
        self._epoch = memoryview(self._page).cast("Q")
        self._rows: list[tuple[Any, ...]] = []

    def collect(self) -> None:
        """Read what was counted until now, for the next call of `records`."""
        now, epoch = time.monotonic_ns(), self._epoch[0]
        if not self._keep:
            self._epoch[0] += 1
            wait_for_programs()
        for other, table in enumerate((self._counts, self._others)):
            rows = table.read(epoch, not self._keep)
            self._rows += [(now, *key, *value, other) for key, value in rows]

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Return what was collected since the last call."""
        rows, self._rows = self._rows, []
        return iter(rows)

    def close(self) -> None:
        """Unmap the epoch."""
        self._epoch.release()
        self._page.close()


class _Table:
    """A map whose keys end with an epoch."""

    def __init__(self, descriptor: int, key_format: str, value: Layout) -> None:
        self._descriptor = descriptor
        self._key = struct.Struct(f"={key_format}Q")
        self._value = struct.Struct("=" + value.format)
        self._layout = value
        self._cpus = possible_cpus() if is_per_cpu(descriptor) else 1

    def read(self, epoch: int, delete: bool) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Return the keys, without their epoch, and the values, up to an epoch.

        Elements of earlier ones are there if a program that was preempted added them late.
        """
        found: list[tuple[tuple[Any, ...], Sequence[Sequence[int]]]] = []
        done = bytearray()
        sizes = self._key.size, self._value.size * self._cpus
        for keys, values in map_read(self._descriptor, *sizes):
            parts = self._value.iter_unpack(values)
            for at, key in enumerate(self._key.iter_unpack(keys)):
                value = list(islice(parts, self._cpus))
                if key[-1] <= epoch:
                    found.append((key[:-1], value))
                    done += keys[at * self._key.size : (at + 1) * self._key.size]
        if delete:
            map_delete_keys(self._descriptor, bytes(done), self._key.size)
        return combine_keys(self._layout, found)


def combine_keys(
    layout: Layout, elements: Iterable[tuple[tuple[Any, ...], Sequence[Sequence[int]]]]
) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Return one value for each key, of all its elements' values."""
    by_key: dict[tuple[Any, ...], list[Sequence[int]]] = {}
    for key, values in elements:
        by_key.setdefault(key, []).extend(values)
    return [(key, combine(layout, values)) for key, values in by_key.items()]


def combine(layout: Layout, values: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    """Return one value of several, each of the layout's numbers: sums, maxima of `max_NAME`, and of
    `min_NAME` minima, of which 0 is none.

    An array's numbers become a tuple.
    """
    columns = iter(zip(*values, strict=True))
    combined: list[Any] = []
    for name, count in zip(layout.names, layout.counts, strict=True):
        function = _FUNCTIONS.get(name[:4], sum)
        numbers = tuple(map(function, islice(columns, count or 1)))
        combined.append(numbers if count else numbers[0])
    return tuple(combined)
