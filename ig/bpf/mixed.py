"""Records of a program that counts some events, and reports others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any

from ig.bpf.aggregates import Aggregates
from ig.bpf.ringbuf import RecordRing

_PREFIXES = ("total_", "max_", "min_")
_NONE = ""
_FIXED = {"count": 1, "reported": 1, _NONE: 0}
_TIMES = {"min_time": "timestamp", "max_time": "timestamp"}


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
