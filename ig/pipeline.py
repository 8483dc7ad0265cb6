"""From the kernel to the formatter: decode, attribute, order, filter and print, batch by batch."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol

from ig.attribution import Attribution
from ig.containers.container import Container
from ig.gadget import Batch, Gadget
from ig.kernel.source import RING_FULL
from ig.output import Formatter
from ig.output.stream import Stream

INTERVAL = 0.05  # seconds between looks into the ring
_MANY = 4096  # records at once after which the next look follows at once: fewer come together first
_SETTLED = 5_000_000  # ns; a record this old has none before it still on its way into the ring
_PATIENCE = 1_000_000_000  # ns that an event waits for somebody to tell whose it is
_MOST_WAITING = 200_000  # events
_CLOCK_STEP = 10_000_000  # ns by which the wall clock must have moved against the kernel's
_SLOW = (
    0.3  # seconds between reports spent on waiting for the reader: some of the ring's time to fill
)
TOO_SLOW = "the output was read too slowly, so the ring buffer was full"
_REPORT_EVERY = 10.0  # seconds between reports of losses, while they last


class EventSource(Protocol):
    """What gives events: ig.kernel.source.Source."""

    fields: Sequence[str]

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Unpack the records that came since the last call."""

    def cgroups(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield the cgroups not told of before, and their paths."""

    def lost(self) -> Mapping[str, int]:
        """Count what could not be delivered, by cause."""


@dataclass
class Pipeline:
    """One trace, from its source to its output."""

    source: EventSource
    attribution: Attribution
    formatter: Formatter
    stream: Stream
    keep: Callable[[Batch], Sequence[object]] | None
    stopping: Callable[[], bool]
    report_lost: Callable[[Mapping[str, int]], None]
    peers: Callable[[Mapping[str, Sequence[Any]]], Sequence[Container]] | None = None
    max_events: int = 0
    printed: int = 0
    _waiting: list[tuple[Any, ...]] = field(default_factory=list)
    _offset: int = 0
    _reported: dict[str, int] = field(default_factory=dict)
    _slow: int = 0
    _full: int = 0
    _waited: float = 0.0
    _report_due: float = 0.0

    def run(self, seconds: float = 0.0) -> None:
        """Print events until told to stop, `seconds` have passed, or enough are printed.

        Raises ReaderGone when nobody reads stdout any more.
        """
        ends = time.monotonic() + seconds if seconds else float("inf")
        self.stream.write(self.formatter.header())
        try:
            while not self.stopping() and time.monotonic() < ends and not self._enough():
                if self._step() < _MANY:
                    self.stream.rest(INTERVAL)
                self._report_losses()
            self._finish()
            self.stream.write(self.formatter.footer())
        finally:
            self._report_losses(last=True)

    def _finish(self) -> None:
        """Print what happened before the end, each event with as much patience as ever."""
        ends = time.monotonic_ns()
        while self._step(ends) and not self._enough():
            pass  # more than fits into one batch
        while self._waiting and not self._enough():
            self.stream.rest(INTERVAL)
            self._step(ends)

    def _enough(self) -> bool:
        return bool(self.max_events) and self.printed >= self.max_events

    def _step(self, until: int | None = None) -> int:
        """Take what the kernel has and print what is due; give how much was taken."""
        now = time.monotonic_ns()
        records = list(self.source.records())
        if until is not None:
            records = [record for record in records if record[0] <= until]
        self._waiting += records
        # After the records: a cgroup's name is sent before its first event.
        self.attribution.learn(self.source.cgroups())
        if self._waiting:
            self._waiting.sort(key=itemgetter(0))
            due = bisect_right(self._waiting, now - _SETTLED, key=itemgetter(0))
            due = self._decided(due, now)
            if due:
                self._print(self._waiting[:due])
                del self._waiting[:due]
        return len(records)

    def _decided(self, due: int, now: int) -> int:
        """Give how many of the first `due` events can be shown: none behind one that must wait."""
        place = self.source.fields.index("cgroup")
        undecided = self.attribution.undecided({record[place] for record in self._waiting[:due]})
        if not undecided:
            return due
        impatient = len(self._waiting) > _MOST_WAITING
        for index in range(due):
            cgroup = self._waiting[index][place]
            if cgroup in undecided:
                if now - self._waiting[index][0] < _PATIENCE and not impatient:
                    return index
                self.attribution.settle(cgroup)
                undecided.discard(cgroup)
        return due

    def _print(self, records: Sequence[tuple[Any, ...]]) -> None:
        fields = dict(zip(self.source.fields, zip(*records, strict=True), strict=True))
        cgroups = fields["cgroup"]
        wanted = self.attribution.wanted(set(cgroups))
        owners = list(map(self.attribution.owners.__getitem__, cgroups))
        offset = self._wall_clock()
        fields["timestamp"] = tuple(time + offset for time in fields["timestamp"])
        if self.peers:
            fields["peer"] = tuple(self.peers(fields))
        batch = Batch(fields, owners)
        if not all(wanted.values()):
            batch = batch.select(list(map(wanted.__getitem__, cgroups)))
        if self.keep and len(batch):
            batch = batch.select(self.keep(batch))
        if self.max_events and len(batch) > self.max_events - self.printed:
            batch = batch.select([n < self.max_events - self.printed for n in range(len(batch))])
        self.printed += len(batch)
        if len(batch):
            self.stream.write(self.formatter.format(batch))

    def _wall_clock(self) -> int:
        """Give what is added to the kernel's clock; steady, so that times keep their order."""
        offset = time.time_ns() - time.monotonic_ns()
        if abs(offset - self._offset) > _CLOCK_STEP:
            self._offset = offset
        return self._offset

    def _report_losses(self, last: bool = False) -> None:
        if not last and time.monotonic() < self._report_due:
            return
        lost = self._lost()
        if lost != self._reported or (last and lost):
            self.report_lost(lost)
            self._reported = lost
        self._report_due = time.monotonic() + _REPORT_EVERY

    def _lost(self) -> dict[str, int]:
        """Count what was lost, and say where the ring was full because nobody read our output."""
        lost = dict(self.source.lost())
        full = lost.get(RING_FULL, 0)
        if self.stream.waited - self._waited > _SLOW:
            self._slow += full - self._full
        self._full, self._waited = full, self.stream.waited
        if self._slow:
            lost[TOO_SLOW] = self._slow
            lost[RING_FULL] -= self._slow
        return {cause: count for cause, count in lost.items() if count}


def defines(gadget: Gadget, options: Mapping[str, Any]) -> dict[str, int | str]:
    """Give the C macros that carry a gadget's options into its program."""
    given: dict[str, int | str] = dict(gadget.defines)
    for param in gadget.params:
        value = options.get(param.name)
        if not param.define or value is None or value is False or value == []:
            continue
        given[param.define] = ",".join(map(str, value)) if isinstance(value, list) else int(value)
    return given
