"""How a table's columns share the terminal's width: some are left out, names are shortened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ig.errors import UsageError
from ig.gadget import Column
from ig.output.text import display_width, pad


class Need(NamedTuple):
    """The cells that a column needs for the values that were seen."""

    least: int
    """With names shortened as much as they may be."""
    wanted: int
    """With all values whole."""

    def and_of(self, other: Need) -> Need:
        """Return what is needed for the values of both."""
        return Need(max(self.least, other.least), max(self.wanted, other.wanted))


def arrange(
    columns: Sequence[Column], needs: Sequence[Need], width: int, keep: bool = False
) -> list[int | None]:
    """Return the cells of each column so that all, with a space between, take at most `width`.

    Columns are left out (None) in the order that they
    declare, then from the right, until the others fit; those that may be shortened share what is
    left. With `keep` none is left out: what cannot be shortened may come out wider than `width`.
    """
    cells: list[int | None] = [need.least for need in needs]
    going = [] if keep else _order(columns)

    def room() -> int:
        taken = [each for each in cells if each is not None]
        return width - sum(taken) - (len(taken) - 1)

    while going and room() < 0:
        cells[going.pop(0)] = None
    comfortable = [
        min(need.wanted, short_heading(column)) for column, need in zip(columns, needs, strict=True)
    ]
    for wanted in (comfortable, [need.wanted for need in needs]):
        _grow(cells, wanted, room())
    return cells


def _grow(cells: list[int | None], wanted: Sequence[int], left: int) -> None:
    """Share `left` cells among the columns that are shown and want more."""
    growing = list(range(len(cells)))
    while left > 0 and growing:
        growing = [
            place
            for place in growing
            if (have := cells[place]) is not None and have < wanted[place]
        ]
        for place in growing[:left]:
            cells[place] = (cells[place] or 0) + 1
        left -= len(growing)


def _order(columns: Sequence[Column]) -> list[int]:
    """Return the places of the columns that may be left out, the first one first."""
    places = range(1, len(columns))
    declared = sorted((columns[place].drop, place) for place in places if columns[place].drop)
    others = [place for place in reversed(places) if not columns[place].drop]
    return [place for _, place in declared] + others


def heading(column: Column) -> str:
    """Return the column's heading in full."""
    return column.heading or column.name.upper()


def short_heading(column: Column) -> int:
    """Return the cells that the column's heading takes at least: if need be its last part."""
    text = heading(column)
    return len(text.rpartition(".")[2] if column.least else text)


def headings(columns: Sequence[Column], cells: Sequence[int | None]) -> str:
    """Return the line of headings, those that are too long by their last part or shortened."""
    shown = []
    for column, most in zip(columns, cells, strict=True):
        if most is None:
            continue
        text = heading(column)
        if display_width(text) > most:
            text = text.rpartition(".")[2]
            text = text if len(text) <= most else f"{text[: most - 1]}…"
        shown.append(pad(text, most, column.right))
    return " ".join(shown).rstrip() + "\n"


WHEN = ("auto", "always", "never")


class Screen(NamedTuple):
    """How much room there is now."""

    width: int | None = None
    """Cells of a row; None where rows may be of any length."""
    height: int = 0
    """Rows of the terminal; 0 where there is none."""


def watch(wide: bool = False) -> Callable[[], Screen]:
    """Return a function that returns stdout's screen as it is now.

    COLUMNS counts before the terminal's own width; with `wide` rows may be of any length.
    """
    told = os.environ.get("COLUMNS", "")
    fixed = int(told) if told.isdecimal() and len(told) < 6 else 0
    if not os.isatty(1):
        screen = Screen(None if wide else fixed or None)
        return lambda: screen

    def now() -> Screen:
        try:
            width, height = os.get_terminal_size(1)
        except OSError:  # it was hung up
            width = height = 0
        # A serial console reports 0 columns: its size is unknown.
        return Screen(None if wide else fixed or width or None, height)

    return now


def colored(when: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether rows are coloured: `always`, `never`, or `auto`, on terminals only.

    NO_COLOR (https://no-color.org) and TERM=dumb turn `auto` off. Raises UsageError.
    """
    if when not in WHEN:
        raise UsageError(f"Unknown color mode {when[:64]!r}.", f"Known modes: {', '.join(WHEN)}")
    if when == "auto":
        plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
        return os.isatty(1) and not plain
    return when == "always"
