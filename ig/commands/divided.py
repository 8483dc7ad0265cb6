"""The records of a program that reports some events and counts others, each in its own sink."""

from __future__ import annotations

from collections.abc import Mapping

from ig.gadget import Batch
from ig.output.sink import Sink


class Divided:
    """The sink of the records of `ig.bpf.aggregates.Mixed`: events, and what was counted."""

    def __init__(self, events: Sink, counts: Sink, sink: Sink) -> None:
        """`events` and `counts` take the records; `sink`, which is all of both, the rest."""
        self._events, self._counts, self._sink = events, counts, sink
        self.interval = sink.interval

    def open(self) -> None:
        """Open the sink."""
        self._sink.open()

    def write(self, batch: Batch) -> None:
        """Pass on what was counted, and the events without the fields that say how many they are.

        Raises ReaderGone.
        """
        reported = batch.fields["reported"]
        if any(reported):
            events = batch.select(reported)
            fields = {name: each for name, each in events.fields.items() if name != "count"}
            self._events.write(Batch(fields, events.owners))
        if not all(reported):
            self._counts.write(batch.select([not each for each in reported]))

    def tick(self, now: int) -> None:
        """End the sink's interval."""
        self._sink.tick(now)

    def lost(self, counts: Mapping[str, int]) -> None:
        """Pass the counts to the sink."""
        self._sink.lost(counts)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()
