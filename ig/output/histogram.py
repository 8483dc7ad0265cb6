"""Histograms drawn below a table, of columns whose values are buckets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ig import buckets
from ig.gadget import Batch, Column
from ig.output.layout import Screen
from ig.output.sink import Formatter
from ig.output.text import cells, display_width, pad, visible
from ig.values import format_short

_MOST_LINES = 20
_MERGED = (1, 2, 4, 8, 16)
"""How many buckets a line is of: a power of two at most."""
_BLOCKS = " ▏▎▍▌▋▊▉█"
_WIDTH = 80
_MOST_BAR = 60


class Histograms:
    """A table, and below it histograms: of all rows together, or of each."""

    def __init__(
        self,
        table: Formatter,
        columns: Sequence[Column],
        titles: Sequence[Column],
        screen: Callable[[], Screen] = Screen,
        blocks: bool | None = None,
    ) -> None:
        """`columns` are those of buckets; there is one a row if `titles` say of what it is.

        With `blocks`, bars are of Unicode's blocks, else of `#`: where the locale has no UTF-8.
        """
        self._table, self._columns, self._titles = table, columns, titles
        self._screen = screen
        self._blocks = _has_blocks() if blocks is None else blocks
        self._batches: list[Batch] = []

    def header(self, batch: Batch | None = None) -> str:
        """Return the table's heading."""
        self._batches = []
        return self._table.header(batch)

    def format(self, batch: Batch) -> str:
        """Return the table's rows."""
        self._batches.append(batch)
        return self._table.format(batch)

    def footer(self) -> str:
        """Return what follows the table, and the histograms."""
        drawn = "".join(self._drawn(column) for column in self._columns)
        return self._table.footer() + drawn

    def _drawn(self, column: Column) -> str:
        width = min((self._screen().width or _WIDTH) - 1, _WIDTH - 1)
        found: dict[str, dict[int, int]] = {}
        what = (column.path or column.name).partition(".")[0]
        for batch in self._batches:
            texts = zip(*(cells(title, batch) for title in self._titles), strict=True)
            names = [" ".join(row) for row in texts] if self._titles else [""] * len(batch)
            for name, values in zip(names, batch.read(column), strict=True):
                counts = found.setdefault(name, {})
                for low, _, count in values:
                    bucket = buckets.index(low)
                    counts[bucket] = counts.get(bucket, 0) + count
        parts = [
            f"\n{visible(f'{what} {name}'.strip())}\n" + draw(counts, width, self._blocks)
            for name, counts in found.items()
            if counts
        ]
        return "".join(parts)


def draw(counts: dict[int, int], width: int, blocks: bool) -> str:
    """Return the lines of a histogram of `counts`, by the index of their bucket."""
    first, last = min(counts), max(counts)
    merged = next(
        (each for each in _MERGED if last // each - first // each < _MOST_LINES), _MERGED[-1]
    )
    lines = dict.fromkeys(range(first // merged, last // merged + 1), 0)
    for bucket, count in counts.items():
        lines[bucket // merged] += count
    largest = max(lines.values())
    starts = [buckets.bounds(line * merged)[0] for line in lines]
    ends = [buckets.bounds(line * merged + merged - 1)[1] for line in lines]
    names = [
        f"{low} to {high}"
        for low, high in zip(format_short(starts), format_short(ends), strict=True)
    ]
    numbers = [f"{count:,}" for count in lines.values()]
    left = [max(map(display_width, texts)) for texts in (names, numbers)]
    room = max(min(width - sum(left) - 2, _MOST_BAR), 1)
    rows = zip(names, numbers, lines.values(), strict=True)
    return "".join(
        f"{pad(name, left[0], right=True)} {pad(number, left[1], right=True)} "
        f"{_bar(count * room * 8 // largest, count > 0, blocks)}".rstrip()
        + "\n"
        for name, number, count in rows
    )


def _bar(eighths: int, any_: bool, blocks: bool) -> str:
    """Return a bar of so many eighths of a cell, at least one mark if there is anything."""
    eighths = max(eighths, int(any_))
    if blocks:
        return "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")
    return "#" * -(-eighths // 8)


def _has_blocks() -> bool:
    """Return whether the locale's encoding is UTF-8, and the terminal is not the text console."""
    names = map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))
    locale = next(filter(None, names), "")
    return "UTF8" in locale.upper().replace("-", "") and os.environ.get("TERM") != "linux"
