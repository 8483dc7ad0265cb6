"""Events as a table whose columns share a terminal's width, or stand plain in a file or pipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ig.columns import Cache
from ig.gadget import Batch, Column, Kind
from ig.output.text import pad, shorten, shorten_endpoint, visible
from ig.values import texts

Cells = Callable[[Batch], Sequence[str]]

_LEAST = 6
"""Cells below which no text is shortened."""
_LEAST_ENDPOINT = 12
_MOST_ENDPOINT = 47
"""`[IPv6]:PORT` at its longest."""


class TableFormatter:
    """Rows of cells with a space between, under a heading.

    `width` is the terminal's, in cells: text is shortened to fit. Without one nothing is.
    Numbers, durations and times are never shortened: a number without its end is another number.
    """

    def __init__(
        self, columns: Sequence[Column], shown: Sequence[Column], *, width: int | None
    ) -> None:
        names = {column.name for column in columns}
        endpoints = [f"{column.name}.port" in names for column in shown]
        if width is None:
            widths = [_wanted(column) for column in shown]
        else:
            widths = share(shown, endpoints, width)
        last = len(shown) - 1
        self._cells = [
            _cells(column, cells, cut=width is not None, endpoint=endpoint, last=place == last)
            for place, (column, cells, endpoint) in enumerate(
                zip(shown, widths, endpoints, strict=True)
            )
        ]
        headings = [
            pad(shorten(_heading(column), cells), cells, column.right)
            for column, cells in zip(shown, widths, strict=True)
        ]
        self._header = " ".join(headings).rstrip() + "\n"

    def header(self) -> str:
        """Give the line of headings."""
        return self._header

    def format(self, batch: Batch) -> str:
        """Give the events' rows."""
        if not len(batch):
            return ""
        rows = zip(*[cells(batch) for cells in self._cells], strict=True)
        return "\n".join(map(" ".join, rows)) + "\n"

    def footer(self) -> str:
        """Give nothing."""
        return ""


def share(shown: Sequence[Column], endpoints: Sequence[bool], width: int) -> list[int]:
    """Give each column's cells so that all, with a space between, take `width`.

    Texts grow (to twice their width) and shrink in proportion to the widths that they declare;
    the other kinds keep theirs, so columns that cannot fit at all come out wider than `width`.
    """
    wanted = [_wanted(column) for column in shown]
    least, most = list(wanted), list(wanted)
    for place, (column, endpoint) in enumerate(zip(shown, endpoints, strict=True)):
        if column.kind is Kind.STRING:
            least[place] = min(wanted[place], _LEAST_ENDPOINT if endpoint else _LEAST)
            most[place] = _MOST_ENDPOINT if endpoint else 2 * wanted[place]

    def scaled(factor: float) -> list[int]:
        return [
            max(low, min(high, int(cells * factor)))
            for low, cells, high in zip(least, wanted, most, strict=True)
        ]

    available = width - (len(shown) - 1)
    low, high = 0.0, float(_MOST_ENDPOINT)
    for _ in range(24):
        middle = (low + high) / 2
        if sum(scaled(middle)) <= available:
            low = middle
        else:
            high = middle
    return scaled(low)


def _wanted(column: Column) -> int:
    return max(column.width, len(_heading(column)))


def _heading(column: Column) -> str:
    return column.heading or column.name.upper()


def _cells(column: Column, width: int, *, cut: bool, endpoint: bool, last: bool) -> Cells:
    filled = 0 if last and not column.right else width
    if column.kind is not Kind.STRING:
        return _plain_cells(column, filled)
    most = width if cut else None
    cache: Cache[str, str] = Cache(
        lambda text: _cell(text, most, filled, column.right, endpoint), 4096
    )

    def cells(batch: Batch) -> Sequence[str]:
        values = batch.read(column)
        together = "".join(values) if endpoint else "\n"
        if not together.isascii() or not together.isprintable():
            return cache.of(values)
        # Endpoints vary with their ports, so a cache is no help; nearly all are plain and fit.
        if most is not None and max(map(len, values)) > most:
            values = [v if len(v) <= most else shorten_endpoint(v, most) for v in values]
        return _fill(values, filled, column.right)

    return cells


def _plain_cells(column: Column, width: int) -> Cells:
    return lambda batch: _fill(texts(column, batch), width, column.right)


def _fill(values: Sequence[str], width: int, right: bool) -> Sequence[str]:
    if not width:
        return values
    return [v.rjust(width) for v in values] if right else [v.ljust(width) for v in values]


def _cell(text: str, most: int | None, width: int, right: bool, endpoint: bool) -> str:
    shown = visible(text)
    if most is not None:
        shown = shorten_endpoint(shown, most) if endpoint else shorten(shown, most)
    return pad(shown, width, right)
