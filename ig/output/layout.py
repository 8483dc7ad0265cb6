"""How a table's columns share a width: whole columns are left out, names are shortened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ig.gadget import Column
from ig.output.text import display_width, pad, shorten


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
            text = shorten(text.rpartition(".")[2], most)
        shown.append(pad(text, most, column.right))
    return " ".join(shown).rstrip() + "\n"
