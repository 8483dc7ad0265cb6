"""What a program counts by key in maps, read at an interval (see aggregate.h), also beside events.

Many elements are read at once: Linux can since 5.6, and ring buffers, which every program has, are
of 5.8. Source: Documentation/bpf/map_hash.rst, membarrier(2).
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, islice
from operator import itemgetter
from typing import Any

from ig.bpf.ringbuf import RecordRing
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


Element = tuple[tuple[Any, ...], tuple[Any, ...]]
"""The fields of a key, and those of its value."""
_Raw = tuple[tuple[Any, ...], Sequence[Sequence[int]]]
"""The fields of a key, and the numbers of its values."""
MOST_RECORDS = 8192
"""Records that are given at once: unpacked, each takes a kilobyte."""
_FUNCTIONS: Mapping[str, Callable[[Iterable[int]], int]] = {"max_": max, "min_": _least}
"""How values of fields whose names begin so become one; others are added up."""
_PREFIXES = ("total_", *_FUNCTIONS)
_NONE = ""
_FIXED = {"count": 1, "reported": 1, _NONE: 0}
_TIMES = {"min_time": "timestamp", "max_time": "timestamp"}


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
        self._rows: list[Iterator[tuple[Any, ...]]] = []

    def collect(self) -> None:
        """Read what was counted until now, for the next calls of `records`."""
        now, epoch = time.monotonic_ns(), self._epoch[0]
        if not self._keep:
            self._epoch[0] += 1
            wait_for_programs()
        for other, table in enumerate((self._counts, self._others)):
            self._rows.append(_rows(now, table.read(epoch, not self._keep), other))

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Yield what was collected, so many at most: those of the next call follow."""
        left = MOST_RECORDS
        while self._rows and left:
            for row in islice(self._rows[0], left):
                left -= 1
                yield row
            if left:
                del self._rows[0]

    def close(self) -> None:
        """Unmap the epoch."""
        self._epoch.release()
        self._page.close()


def _rows(now: int, elements: Iterable[Element], other: int) -> Iterator[tuple[Any, ...]]:
    return ((now, *key, *value, other) for key, value in elements)


class _Table:
    """A map whose keys end with an epoch."""

    def __init__(self, descriptor: int, key_format: str, value: Layout) -> None:
        self._descriptor = descriptor
        self._key = struct.Struct(f"={key_format}Q")
        self._value = struct.Struct("=" + value.format)
        self._layout = value
        self._cpus = possible_cpus() if is_per_cpu(descriptor) else 1

    def read(self, epoch: int, delete: bool) -> Iterator[Element]:
        """Return the keys, without their epoch, and the values, up to an epoch.

        Elements of earlier ones are there if a program that was preempted added them late. What is
        not unpacked yet takes a tenth of the memory.
        """
        sizes = self._key.size, self._value.size * self._cpus
        parts: list[tuple[bytes, bytes]] = []
        epochs: set[int] = set()
        for keys, values in map_read(self._descriptor, *sizes):
            found = memoryview(keys).cast("Q")[sizes[0] // 8 - 1 :: sizes[0] // 8].tolist()
            keep = [each <= epoch for each in found]
            parts.append((_kept(keys, sizes[0], keep), _kept(values, sizes[1], keep)))
            epochs.update(compress(found, keep))
        if delete:
            for keys, _ in parts:
                map_delete_keys(self._descriptor, keys, self._key.size)
        elements = chain.from_iterable(map(self._unpacked, parts))
        if len(epochs) > 1:  # a key may be there in several
            return iter(combine_keys(self._layout, elements))
        return ((key, combine(self._layout, values)) for key, values in elements)

    def _unpacked(self, part: tuple[bytes, bytes]) -> Iterator[_Raw]:
        """Yield the keys and the values of each processor."""
        keys, values = part
        numbers = self._value.iter_unpack(values)
        for key in self._key.iter_unpack(keys):
            yield key[:-1], list(islice(numbers, self._cpus))


def _kept(data: bytes, size: int, keep: Sequence[bool]) -> bytes:
    """Return the elements of so many bytes whose place in `keep` is true."""
    if all(keep):
        return data
    starts = compress(range(0, len(data), size), keep)
    return b"".join(data[start : start + size] for start in starts)


def combine_keys(layout: Layout, elements: Iterable[_Raw]) -> list[Element]:
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


class Mixed:
    """What was counted, as the records of `Aggregates`, and events, each as a count of one.

    Of an event, `count` is 1, `total_NAME`, `max_NAME` and `min_NAME` are its NAME. Fields that
    only counts or only events have are 0 in the others; `reported` is 1 in events, else 0.
    """

    def __init__(self, counts: Aggregates, events: RecordRing) -> None:
        self._counts, self._events = counts, events
        more = [name for name in events.fields if name not in counts.fields]
        self.fields = (*counts.fields, *more, "reported")
        self._filling = (0,) * (len(more) + 1)
        # An event is followed by the fixed values, which have places of their own.
        places = {name: place for place, name in enumerate((*events.fields, *_FIXED))}
        self._arrange = itemgetter(*(_place(name, places) for name in self.fields))

    def collect(self) -> None:
        """Read what was counted until now, for the next call of `records`."""
        self._counts.collect()

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Return what was collected, and the events, since the last call."""
        for record in self._counts.records():
            yield (*record, *self._filling)
        fixed = tuple(_FIXED.values())
        for record in self._events.records():
            yield self._arrange((*record, *fixed))

    def close(self) -> None:
        """Unmap the epoch and the ring."""
        self._counts.close()
        self._events.close()


def _place(name: str, places: Mapping[str, int]) -> int:
    """Return the place of what stands for a field."""
    if name in _FIXED:
        return places[name]
    bare = next((name.removeprefix(each) for each in _PREFIXES if name.startswith(each)), name)
    return places.get(_TIMES.get(name, name if name in places else bare), places[_NONE])
