"""The sink that prints an interval as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from ig.gadget import Batch, Column
from ig.output.json import compile_objects, pretty
from ig.output.sink import report_lost
from ig.output.stream import Stream
from ig.output.text import format_timestamps, json_string
from ig.query import joined
from ig.values import SECOND, format_duration


class Objects:
    """Prints an object for each interval: its end, its length and its rows."""

    interval = 0.0

    def __init__(
        self,
        columns: Sequence[Column],
        stream: Stream,
        seconds: Callable[[], float],
        indented: bool = False,
    ) -> None:
        """`seconds` returns the length of the interval that ends."""
        self._rows = compile_objects(columns)
        self._stream, self._seconds, self._indented = stream, seconds, indented
        self._held: list[Batch] = []

    def open(self) -> None:
        """Do nothing: each object is whole in itself."""

    def write(self, batch: Batch) -> None:
        """Hold the rows until the end of the interval."""
        self._held.append(batch)

    def tick(self, now: int) -> None:
        """Print the object of the interval."""
        rows, self._held = joined(self._held), []
        length = round(self._seconds() * SECOND)
        times = {"timestamp": (format_timestamps([now])[0], now)}
        times["interval"] = (format_duration(length), length)
        head = "".join(
            f'"{name}":{json_string(text)},"{name}_raw":{number},'
            for name, (text, number) in times.items()
        )
        body = self._rows(rows)[:-1].replace("\n", ",") if len(rows) else ""
        text = f'{{{head}"rows":[{body}]}}'
        self._stream.write((pretty(json.loads(text)) if self._indented else text) + "\n")

    def lost(self, counts: Mapping[str, int]) -> None:
        """Report losses on stderr as JSON."""
        report_lost(counts, structured=True)

    def close(self) -> None:
        """Do nothing: an interval that is not over has no rows."""
