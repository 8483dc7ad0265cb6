"""From the kernel to the sink: decode, attribute, order and pass on, batch by batch.

Events are passed on in order of time within each cgroup. Events of a cgroup whose owner is not
known yet wait for a second at most; events of other cgroups do not wait for them.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress, repeat
from operator import itemgetter, not_
from typing import Any, Protocol

from ig.container import HOST, Container
from ig.gadget import NOTHING, Batch
from ig.kernel.cgroupfs import Paths
from ig.output.sink import Sink
from ig.output.stream import ReaderGone, Stream
from ig.trace.attribution import Attribution
from ig.trace.losses import Counted, Losses

INTERVAL = 0.05  # seconds between reads of the ring
_PAUSE = 0.2  # seconds between steps while the kernel counts: there is nothing to read then
_MANY = 4096  # records in a read after which the next one follows without a pause
_SETTLED = 5_000_000  # ns after which no earlier record can still arrive
_SUSPENDED = 400_000_000  # ns without a step after which changes from the runtimes may be late
_CATCH_UP = 250_000_000  # ns to wait for these changes
_MOST_WAITING = 32768
"""Events that wait for these changes, before others are left in the ring: some 50 MB."""
_MOST_PASSED = 8192  # events that are passed on at once; their text takes memory, too
_MOST_HELD = 8192  # events that wait for their owner to become known: some 10 MB
_CLOCK_STEP = 10_000_000  # ns by which the wall clock must have moved against the kernel's
Fields = Mapping[str, Sequence[Any]]
TIMES = frozenset({"timestamp", "min_time", "max_time"})
"""The fields that are ns since boot, and in a batch ns since the epoch: the time of a record, and
those of the first and the last of what it counts."""


class EventSource(Counted, Protocol):
    """A source of events: ig.bpf.session.Source."""

    fields: Sequence[str]

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Unpack the records since the last call."""

    def cgroups(self) -> Iterator[tuple[int, Paths]]:
        """Yield the cgroups that were not reported before, and their paths."""

    @property
    def counts(self) -> bool:
        """Whether there are records only after `collect`: what was counted until then."""

    def collect(self) -> None:
        """Have what was counted until now come with the next records."""


class Holding(Protocol):
    """A sink that may hold events for a while: `write` and `release` pass on those that are due."""

    @property
    def held(self) -> int:
        """The number of events that it holds."""

    def release(self) -> None:
        """Pass on the events that are due. Raises ReaderGone."""

    def finish(self) -> None:
        """Pass on all events. Raises ReaderGone."""


@dataclass
class Pipeline:
    """One trace, from its source to its output."""

    source: EventSource
    attribution: Attribution
    sink: Sink
    stream: Stream
    stopping: Callable[[], bool]
    enough: Callable[[], bool]
    """Return whether the sink takes no more events."""
    peers: Callable[[Fields, Sequence[Container]], Sequence[Container]] | None = None
    holding: Holding | None = None
    """The sink, if it holds events."""
    interval: float = 0.0
    """Seconds between calls of the sink's `tick`; 0: none."""
    drain: float = 0.0
    """Seconds after which what is counted is read although no interval is over; 0: never."""
    intervals: int = 0
    """The number of intervals after which to end; 0: any number."""
    _waiting: list[tuple[Any, ...]] = field(default_factory=list)
    _held: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)
    _offset: int = 0
    _stepped: int = field(default_factory=time.monotonic_ns)
    _resumed: int = 0
    _tick_due: float = float("inf")
    _drain_due: float = float("inf")
    _ticks: int = 0

    def __post_init__(self) -> None:
        self.losses = Losses(self.source, self.stream)

    def run(self, seconds: float | None = None) -> None:
        """Pass events on until stopped, `seconds` have passed, or there are enough.

        Records in the ring at that time are passed on, also if `seconds` is 0. Raises ReaderGone
        when the reader of stdout is gone.
        """
        ends = float("inf") if seconds is None else time.monotonic() + seconds
        self.sink.open()
        self._tick_due = time.monotonic() + (self.interval or float("inf"))
        self._drain_due = time.monotonic() + (self.drain or float("inf"))
        try:
            while not self.stopping() and time.monotonic() < ends and not self._enough():
                if self._step() < _MANY:
                    self.stream.rest(self._pause(ends))
                self.losses.report(self.sink)
                self._tick()
            if not self._enough():
                self._finish()
            if self.holding:
                self._passing(self.holding.finish)
        finally:
            self.losses.report(self.sink, last=True)
        self.sink.close()

    def _finish(self, last: bool = True) -> None:
        """Pass on the events from before the end, each with the usual wait for its owner.

        Those that come meanwhile are dropped if it is the last time.
        """
        self.source.collect()
        ends = time.monotonic_ns()
        while self._step(ends, last) and not self._enough():
            pass  # more than fits into one batch
        while self._has_any(ends) and not self._enough():
            self.stream.rest(INTERVAL)
            self._step(ends, last)

    def _pause(self, ends: float) -> float:
        """Return the seconds until the next step; counts are read at the end of an interval."""
        if not self.source.counts or self._waiting or self._held:
            return INTERVAL
        left = min(ends, self._tick_due, self._drain_due) - time.monotonic()
        return max(0.0, min(left, _PAUSE))

    def _has_any(self, until: int) -> bool:
        """Return whether an event from before that time is not passed on yet."""
        records = chain(self._waiting, *self._held.values())
        return any(record[0] <= until for record in records)

    def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._drain_due:
            self._drain_due = now + self.drain
            self.source.collect()
        if now >= self._tick_due:
            self._tick_due += self.interval
            if self._tick_due <= now:  # late by an interval: the next one is a whole one, too
                self._tick_due = now + self.interval
            if self.source.counts:
                self._finish(last=False)
            self._ticks += 1
            self.sink.tick(time.time_ns())

    def _enough(self) -> bool:
        return self.enough() or 0 < self.intervals <= self._ticks

    def _step(self, until: int | None = None, last: bool = True) -> int:
        """Read new records and pass on the events that are due.

        Return the number of records read, or, if that is greater, of due events that are left for
        the next step. Of those later than `until`, none count, and none are kept if it is the
        `last` time.
        """
        now = time.monotonic_ns()
        if now - self._stepped > _SUSPENDED:
            self._resumed = now
        self._stepped = now
        late = now - self._resumed < _CATCH_UP
        full = late and until is None and len(self._waiting) >= _MOST_WAITING
        records = [] if full else list(self.source.records())
        later = [] if until is None else [record for record in records if record[0] > until]
        if later and last:
            records = [record for record in records if record[0] <= until]
        self._waiting += records
        # After the records: a cgroup's path is sent before its first event.
        cgroups = list(self.source.cgroups())
        if cgroups or self._waiting or self._held:
            self.attribution.catch_up()
        self.attribution.update(cgroups)
        due = 0
        if (self._waiting or self._held) and not late:
            self._waiting.sort(key=itemgetter(0))
            due = bisect_right(self._waiting, now - _SETTLED, key=itemgetter(0))
            passed = min(due, _MOST_PASSED)
            ready = self._ready(self._waiting[:passed], now)
            del self._waiting[:passed]
            if ready:
                self._pass_on(ready)
        if self.holding:
            self._passing(self.holding.release)
        return max(len(records) - (0 if last else len(later)), due - _MOST_PASSED)

    def _ready(self, due: list[tuple[Any, ...]], now: int) -> list[tuple[Any, ...]]:
        """Return the events that can be passed on; hold those whose owner may become known."""
        place = self.source.fields.index("cgroup")
        cgroups = {record[place] for record in due}
        undecided = self.attribution.undecided(cgroups | self._held.keys(), now)
        if not (undecided or self._held):
            return due
        ready = [record for record in due if record[place] not in undecided]
        for record in due:
            if record[place] in undecided:
                self._held.setdefault(record[place], []).append(record)
        while sum(map(len, self._held.values())) > _MOST_HELD:
            most = max(self._held, key=lambda cgroup: len(self._held[cgroup]))
            self.attribution.give_up(most)
            ready += self._held.pop(most)
            undecided.discard(most)
        for cgroup in self._held.keys() - undecided:
            ready += self._held.pop(cgroup)
        ready.sort(key=itemgetter(0))
        return ready

    def _pass_on(self, records: Sequence[tuple[Any, ...]]) -> None:
        fields = dict(zip(self.source.fields, zip(*records, strict=True), strict=True))
        owners, shown = self._attributed(fields)
        offset = self._wall_clock()
        for name in TIMES & fields.keys():
            fields[name] = tuple(map(offset.__add__, fields[name]))
        if self.peers:
            fields["peer"] = tuple(self.peers(fields, owners))
        batch = Batch(fields, owners)
        if not all(shown):
            batch = batch.select(shown)
        if len(batch):
            self._passing(partial(self.sink.write, batch), batch)

    def _passing(self, write: Callable[[], None], batch: Batch = NOTHING) -> None:
        """Pass events on; count those that were not read when the reader was given up."""
        try:
            write()
        except ReaderGone:
            if self.stopping():
                left = sum(map(self._number, (self._waiting, *self._held.values())))
                while records := list(self.source.records()):
                    left += self._number(records)
                counts = self._counts and "count" in batch.fields
                written = sum(batch.fields["count"]) if counts else len(batch)
                self.losses.unread = (self.holding.held if self.holding else written) + left
            raise

    def _attributed(
        self, fields: Mapping[str, Sequence[Any]]
    ) -> tuple[list[Container], list[bool]]:
        """Return each event's owner, and whether it is to be shown."""
        cgroups = fields["cgroup"]
        owners = list(map(self.attribution.owners.__getitem__, cgroups))
        self._locate_strays(fields, owners)
        strays = self.attribution.strays.by_mntns
        if strays and "mntns" in fields:
            owners = [
                strays.get(mntns, HOST) if owner is HOST else owner
                for owner, mntns in zip(owners, fields["mntns"], strict=True)
            ]
            shown = list(map(self.attribution.wants, owners))
        else:
            wanted = self.attribution.wanted(set(cgroups))
            if all(wanted.values()):
                return owners, [True] * len(owners)
            shown = list(map(wanted.__getitem__, cgroups))
        withheld = set(compress(cgroups, map(not_, shown)))
        unsure = set(filter(self.attribution.unsure, withheld))
        numbers = fields["count"] if self._counts else repeat(1)
        self.losses.unnamed += sum(compress(numbers, map(unsure.__contains__, cgroups)))
        return owners, shown

    @property
    def _counts(self) -> bool:
        """Whether a record stands for as many events as its field `count` says."""
        return self.source.counts and "count" in self.source.fields

    def _number(self, records: Sequence[tuple[Any, ...]]) -> int:
        """Return the number of events of records."""
        if not self._counts:
            return len(records)
        return sum(map(itemgetter(self.source.fields.index("count")), records))

    def _locate_strays(
        self, fields: Mapping[str, Sequence[Any]], owners: Sequence[Container]
    ) -> None:
        """Set mount namespaces of strays from events of their first processes and children."""
        missing = self.attribution.strays.by_pid
        if not missing or not {"mntns", "pid", "parent_pid"} <= fields.keys():
            return
        processes = zip(owners, fields["pid"], fields["parent_pid"], fields["mntns"], strict=True)
        for owner, pid, parent, mntns in processes:
            first = pid if pid in missing else parent
            if owner is HOST and first in missing and mntns:
                self.attribution.strays.locate(first, mntns)

    def _wall_clock(self) -> int:
        """Return the offset from the kernel's clock to the wall clock, steady to keep the order."""
        offset = time.time_ns() - time.monotonic_ns()
        if abs(offset - self._offset) > _CLOCK_STEP:
            self._offset = offset
        return self._offset
