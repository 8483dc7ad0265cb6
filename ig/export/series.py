"""Metrics with a bounded number of series.

A series is what has one combination of label values. Counters never go backwards while their series
exists; one that comes again after it was removed begins at 0 anew.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from ig.values import SECOND

SCALE = 3
"""Of OpenTelemetry's exponential histograms: a bucket ends at 2^(1/8) times the end of the last."""
OFFSET = -160
"""The number of the first bucket: its end is 2^((OFFSET + 1) / 8) seconds, about a microsecond."""
EXPONENTIAL = tuple(int(SECOND * 2 ** (end / (1 << SCALE))) for end in range(OFFSET + 1, 64))
"""The largest number of ns in each bucket but the last, which ends at 2^8 seconds."""
OTHER = "other"
"""The label values of the series that counts what there was no room for."""

Labels = tuple[str, ...]


class Sample(NamedTuple):
    """One number of a metric."""

    labels: Labels
    values: Sequence[int]
    """One number; of a histogram those of its buckets, not cumulative, then the sum."""
    since: int
    """When the series began, in ns since the epoch; 0 if it was set as a whole."""


class Metric:
    """A metric: its name, its labels, and the numbers of its series."""

    def __init__(
        self,
        name: str,
        kind: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        kept: Collection[str] = (),
        bounds: Sequence[int] = (),
        exponential: bool = False,
    ) -> None:
        """`kind` is counter, gauge or histogram, `text` its description.

        Labels that are in `kept` keep their values where there is no room for a series. `bounds`
        are a histogram's: the largest number of each bucket but the last; with `exponential`,
        they are EXPONENTIAL.
        """
        self.name, self.kind, self.text, self.labels = name, kind, text, tuple(labels)
        self.bounds = EXPONENTIAL if exponential else tuple(bounds)
        self.exponential = exponential
        self._kept = [label in kept for label in labels]
        self._width = len(self.bounds) + 2 if kind == "histogram" else 1
        self._series: dict[Labels, list[int]] = {}
        self._other: dict[Labels, list[int]] = {}
        self._since: dict[Labels, int] = {}
        self._grown: dict[Labels, float] = {}
        self._lacks = False
        """Whether there was no room for a series."""

    def __len__(self) -> int:
        """Return the number of series, those of `other` not counted."""
        return len(self._series)

    def add(self, labels: Labels, amount: int, most: int, now: float = 0.0) -> bool:
        """Add to the counter with these label values, if that makes no more than `most` series.

        Else add to `other`, and return false.
        """
        series, has_room = self._of(labels, most, now)
        series[0] += amount
        return has_room

    def observe(
        self, labels: Labels, value: int, numbers: tuple[int, int], most: int, now: float = 0.0
    ) -> bool:
        """Add numbers of the bucket of `value` to a histogram: how many they are, and their sum.

        Return whether that is in a series of its own, as `add` does.
        """
        count, total = numbers
        series, has_room = self._of(labels, most, now)
        series[bisect_left(self.bounds, value)] += count
        series[-1] += total
        return has_room

    def set(self, values: Mapping[Labels, int]) -> None:
        """Replace all series of a gauge or counter."""
        self._series = {labels: [value] for labels, value in values.items()}

    def samples(self) -> Iterator[Sample]:
        """Yield the series, in the order in which they began; `other` last."""
        for series in (self._series, self._other):
            for labels, values in series.items():
                yield Sample(labels, values, self._since.get(labels, 0))

    def expire(self, gone: Callable[[Labels], bool]) -> None:
        """Remove the series for whose label values `gone` returns true."""
        for labels in list(filter(gone, self._series)):
            del self._series[labels], self._since[labels], self._grown[labels]

    def make_room(self, before: float) -> None:
        """If there was none, remove the series to which nothing was added since `before`."""
        if self._lacks:
            self._lacks = False
            self.expire(lambda labels: self._grown[labels] < before)

    def _of(self, labels: Labels, most: int, now: float) -> tuple[list[int], bool]:
        series = self._series.get(labels)
        if series is None and len(self._series) < most:
            series = self._series[labels] = [0] * self._width
            self._since[labels] = time.time_ns()
        if series is not None:
            self._grown[labels] = now
            return series, True
        self._lacks = True
        pairs = zip(labels, self._kept, strict=True)
        labels = tuple(value if kept else OTHER for value, kept in pairs)
        self._since.setdefault(labels, time.time_ns())
        return self._other.setdefault(labels, [0] * self._width), False
