"""What events were lost, by cause, and the reports of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from ig.bpf.session import ring_full
from ig.output.sink import Sink
from ig.output.stream import Stream, say

TOO_SLOW = "the output was read too slowly, so the ring buffer was full"
UNNAMED = "not shown: their owner was not known in time"
UNREAD = "the output was not read before the end (upper bound)"
_SLOW = 0.3
"""Seconds between reports spent on waiting for the reader: some of the ring's time to fill."""
_REPORT_EVERY = 10.0  # seconds between reports of losses, while they last


class Counted(Protocol):
    """A source that counts what it loses: ig.bpf.session.Source."""

    def lost(self) -> Mapping[str, int]:
        """Return the number of lost events by cause."""

    def warning(self) -> str:
        """Return a warning about the counts so far, empty if there is none."""


class Losses:
    """Lost events: those of the source, and those that are counted here."""

    def __init__(self, source: Counted, stream: Stream) -> None:
        """`stream` measures how long its reader was waited for."""
        self._source, self._stream = source, stream
        self.unnamed = 0
        """The number of events that are not shown since their owner was not known in time."""
        self.unread = 0
        """The number of events, at most, that the reader of the output did not read."""
        self._slow = self._full = 0
        self._waited = 0.0
        self._due = 0.0
        self._reported: Mapping[str, int] = {}
        self._warned = ""

    def report(self, sink: Sink, last: bool = False) -> None:
        """Pass the counts to the sink if they are new and it is time, and print warnings.

        The `last` report is made at any time, if anything was lost.
        """
        if not last and time.monotonic() < self._due:
            return
        counts = self.counts()
        if counts != self._reported or (last and counts):
            sink.lost(counts)
            self._reported = counts
        if (warning := self._source.warning()) != self._warned:
            say(f"warning: {warning}")
            self._warned = warning
        self._due = time.monotonic() + _REPORT_EVERY

    def counts(self) -> dict[str, int]:
        """Return lost events by cause; a ring full because of a slow reader is its own cause."""
        lost = dict(self._source.lost())
        full = lost.get(ring_full(), 0)
        if self._stream.waited - self._waited > _SLOW:
            self._slow += full - self._full
        self._full, self._waited = full, self._stream.waited
        lost[UNNAMED], lost[UNREAD] = self.unnamed, self.unread
        if self._slow:
            lost[TOO_SLOW] = self._slow
            lost[ring_full()] -= self._slow
        return {cause: count for cause, count in lost.items() if count}
