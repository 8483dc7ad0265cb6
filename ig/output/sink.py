"""Where batches of events end: sinks, and those that print.

A sink knows columns, never gadgets. Another package offers one by an entry point of the group
`ig.sinks`: a function of the columns and of what follows `=` in `-o NAME=TEXT` that returns a sink.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from ig.gadget import Batch, Stage
from ig.output.csv import CsvFormatter
from ig.output.stream import Stream, say
from ig.query import joined


class Sink(Protocol):
    """What takes events. It may keep state: what it has shown, a connection, a file."""

    interval: float
    """Seconds after which it wants an interval to end, again and again; 0: at the end only."""

    def open(self) -> None:
        """Begin: all is ready, and events follow. Threads may be started from now on."""

    def write(self, batch: Batch) -> None:
        """Take these events. Raises ReaderGone when nobody wants any more."""

    def tick(self, now: int) -> None:
        """Note that an interval is over, if there are any; `now` is in ns since the epoch."""

    def lost(self, counts: Mapping[str, int]) -> None:
        """Take the number of events lost so far, by cause."""

    def close(self) -> None:
        """End: no more events follow."""


class Chain:
    """Stages, and the sinks that take what leaves the last one; a sink itself."""

    def __init__(self, stages: Sequence[Stage], *sinks: Sink) -> None:
        self._stages, self._sinks = stages, sinks
        self.interval = min((each.interval for each in sinks if each.interval), default=0.0)

    def open(self) -> None:
        """Open the sinks."""
        for sink in self._sinks:
            sink.open()

    def write(self, batch: Batch) -> None:
        """Pass the events through the stages."""
        self._pass(batch, 0)

    def tick(self, now: int) -> None:
        """Pass on what the stages hold, then end the sinks' interval."""
        self._flush()
        for sink in self._sinks:
            sink.tick(now)

    def lost(self, counts: Mapping[str, int]) -> None:
        """Pass the counts to the sinks."""
        for sink in self._sinks:
            sink.lost(counts)

    def close(self) -> None:
        """Pass on what the stages hold, then close the sinks."""
        self._flush()
        for sink in self._sinks:
            sink.close()

    def _flush(self) -> None:
        for place, stage in enumerate(self._stages, 1):
            self._pass(stage.flush(), place)

    def _pass(self, batch: Batch, place: int) -> None:
        for stage in self._stages[place:]:
            if not len(batch):
                return
            batch = stage.feed(batch)
        if len(batch):
            for sink in self._sinks:
                sink.write(batch)


class Formatter(Protocol):
    """Formats batches as UTF-8 text without control characters except newlines."""

    def header(self, batch: Batch | None = None) -> str:
        """Return what comes before the first event, and reset the formatter.

        `batch` is all that there will be, where that is known: a table is as wide as it needs.
        """
        ...

    def format(self, batch: Batch) -> str:
        """Return the text of all events of the batch, for one write; empty for an empty batch."""
        ...

    def footer(self) -> str:
        """Return what comes after the last event."""
        ...


class Printer:
    """The sink that prints events as they come."""

    interval = 0.0

    def __init__(self, formatter: Formatter, stream: Stream, structured: bool = False) -> None:
        """With `structured`, losses are reported as JSON."""
        self._formatter, self._stream = formatter, stream
        self._structured = structured

    def open(self) -> None:
        """Print the heading."""
        self._stream.write(self._formatter.header())

    def write(self, batch: Batch) -> None:
        """Print the events."""
        self._stream.write(self._formatter.format(batch))

    def tick(self, now: int) -> None:
        """Do nothing: all is printed."""

    def lost(self, counts: Mapping[str, int]) -> None:
        """Report losses on stderr."""
        report_lost(counts, self._structured)

    def close(self) -> None:
        """Print what comes after the last event."""
        self._stream.write(self._formatter.footer())


class IntervalPrinter:
    """The sink that prints the events of each interval as a whole: a table as wide as it needs."""

    interval = 0.0

    def __init__(
        self,
        formatter: Formatter,
        stream: Stream,
        structured: bool = False,
        before: str = "",
        timed: bool = False,
    ) -> None:
        """`before` is printed before each: what clears a terminal's screen, for example.

        With `timed`, events without a time have that of the interval's end.
        """
        self._formatter, self._stream = formatter, stream
        self._structured, self._before, self._timed = structured, before, timed
        self._batches: list[Batch] = []
        self._ticks = 0

    def open(self) -> None:
        """Do nothing: the heading depends on the events."""

    def write(self, batch: Batch) -> None:
        """Hold the events until the end of the interval."""
        self._batches.append(batch)

    def tick(self, now: int) -> None:
        """Print the events since the last call, or a heading alone."""
        whole, self._batches = joined(self._batches), []
        if self._timed and "timestamp" not in whole.fields:
            whole = Batch({**whole.fields, "timestamp": [now] * len(whole)}, whole.owners)
        header = self._formatter.header(whole)
        if self._ticks and isinstance(self._formatter, CsvFormatter):
            header = ""
        self._ticks += 1
        self._stream.write(self._before + header)
        for start in range(0, len(whole), _ROWS):
            self._stream.write(self._formatter.format(whole.part(start, start + _ROWS)))
        self._stream.write(self._formatter.footer())

    def lost(self, counts: Mapping[str, int]) -> None:
        """Report losses on stderr."""
        report_lost(counts, self._structured)

    def close(self) -> None:
        """Print the events since the last interval, if there are any or there was none."""
        if self._batches or not self._ticks:
            self.tick(time.time_ns())


_ROWS = 1024  # printed at once, so that the text of all is never in memory


def report_lost(counts: Mapping[str, int], structured: bool) -> None:
    """Print on stderr how many events were lost so far, by cause: in words, or as a JSON object."""
    if structured:
        lost = {"type": "lost", "count": sum(counts.values()), "causes": dict(counts)}
        sys.stderr.write(json.dumps(lost) + "\n")
        sys.stderr.flush()
    else:
        for cause, count in counts.items():
            say(f"{count} events lost so far: {cause}")
