"""Events as a table that fits a terminal, or stands plain in a file or pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ig.ends import NAMED_ENDS
from ig.gadget import Batch, Column, Kind
from ig.memo import Cache
from ig.output.layout import Need, Screen, arrange, heading, headings
from ig.output.text import cells as texts_of
from ig.output.text import display_width, pad, shorten, shorten_endpoint, visible

_MOST_NAME = 64
"""Cells to which a long name makes its column grow where a terminal has room."""
_LEAST_NAME = 9
"""Cells to which a name after an address is shortened at most."""
_SIZED_BY = 16384
"""Rows that are looked at to size a finite table."""
_COLORS = {"failure": "\x1b[31m", "warning": "\x1b[33m"}
_PLAIN = "\x1b[0m"


class TableFormatter:
    """Rows of cells with a space between, under a heading.

    On a screen of some width whole columns are left out and names are shortened so that rows fit;
    numbers, times, addresses and ports are never cut. The heading comes again after each screenful
    and when the columns change. Elsewhere each cell is as long as its value.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        shown: Sequence[Column],
        *,
        screen: Callable[[], Screen] = Screen,
        color: bool = False,
        heading: bool = True,
        keep: bool = False,
    ) -> None:
        """Take all columns and those to show; with `keep` none of these is left out."""
        self._shown = shown
        self._screen = screen
        self._styles = [c.style for c in columns if c.style] if color else []
        self._heading = heading
        self._keep = keep
        names = {column.name for column in columns}
        self._endpoints = [f"{column.name}.port" in names for column in shown]
        self._needs = [_declared(column) for column in shown]
        self._finite = False
        self._arrange(screen())

    def header(self, batch: Batch | None = None) -> str:
        """Return the line of headings; columns are as wide as `batch`, if given, needs them."""
        self._finite = batch is not None
        if batch is not None:
            self._needs = [_need(column, len(heading(column))) for column in self._shown]
        if batch is not None and len(batch):
            first = batch.part(0, _SIZED_BY)
            self._needs = [
                need.and_of(self._needed(place, texts_of(self._shown[place], first)))
                for place, need in enumerate(self._needs)
            ]
        self._arrange(self._screen())
        self._rows = 1
        return self._header if self._heading else ""

    def format(self, batch: Batch) -> str:
        """Return the events' rows."""
        if not len(batch):
            return ""
        screen = self._screen()
        changed = screen.width != self._seen.width
        if screen != self._seen:
            self._arrange(screen)
        if screen.width is None:
            rows: Iterable[str] = map(
                " ".join, zip(*[cells(batch) for cells in self._plain], strict=True)
            )
        else:
            texts, grown = self._fitting(batch)
            changed |= grown
            rows = self._shortened(texts)
        for style in self._styles:
            rows = _colored(rows, style(batch))
        if changed:
            self._rows = screen.height
        return self._with_headings(rows, screen.height)

    def footer(self) -> str:
        """Return nothing."""
        return ""

    def _arrange(self, screen: Screen) -> bool:
        """Share the screen out; return whether the columns are others now."""
        self._seen = screen
        if screen.width is None:
            cells: list[int | None] = [need.wanted for need in self._needs]
            self._plain = [
                _plain_cells(column, self._padded(place, need.wanted), self._endpoints[place])
                for place, (column, need) in enumerate(zip(self._shown, self._needs, strict=True))
            ]
        else:
            cells = arrange(self._shown, self._needs, screen.width, self._keep)
        header = headings(self._shown, cells)
        changed = header != getattr(self, "_header", header)
        self._cells, self._header = cells, header
        return changed

    def _padded(self, place: int, cells: int) -> int:
        """Return to how many cells a column is filled up: the last one is not, unless from left."""
        last = place == len(self._shown) - 1
        return 0 if last and not self._shown[place].right else cells

    def _fitting(self, batch: Batch) -> tuple[dict[int, Sequence[str]], bool]:
        """Return the texts of the columns that are shown, which have grown to hold them."""
        changed = False
        while True:
            places = [place for place, cells in enumerate(self._cells) if cells is not None]
            texts = {place: texts_of(self._shown[place], batch) for place in places}
            needs = list(self._needs)
            for place in places:
                needs[place] = needs[place].and_of(self._needed(place, texts[place]))
            if needs == self._needs:
                return texts, changed
            self._needs = needs
            changed |= self._arrange(self._seen)

    def _needed(self, place: int, texts: Sequence[str]) -> Need:
        """Return what a column needs to show these; of an end's only a name may be shortened."""
        column = self._shown[place]
        if not self._endpoints[place]:
            lengths = [display_width(visible(text)) for text in set(texts)]
            return _need(column, max(lengths, default=1))
        names = [display_width(visible(text)) for text in texts if text.startswith(NAMED_ENDS)]
        addresses = [text for text in texts if not text.startswith(NAMED_ENDS)]
        whole = max((display_width(visible(text)) for text in addresses), default=1)
        least, name = max(map(_bare, addresses), default=1), max(names, default=1)
        return Need(max(least, min(name, column.width)), max(whole, min(name, _MOST_NAME)))

    def _shortened(self, texts: dict[int, Sequence[str]]) -> Iterable[str]:
        columns = []
        cut: Callable[[str, int], str]
        last = max(texts)
        for place, values in texts.items():
            column, most = self._shown[place], self._cells[place] or 0
            fill = 0 if place == last and not column.right else most
            cut = _whole
            if column.wrap and place == last:
                cut = partial(_wrapped, sum(self._cells[each] or 0 for each in texts) - most + last)
            elif self._endpoints[place]:
                cut = shorten_endpoint
            elif column.least:
                cut = shorten
            known = {
                text: pad(cut(visible(text) or "-", most), fill, column.right)
                for text in set(values)
            }
            columns.append(list(map(known.__getitem__, values)))
        return map(" ".join, zip(*columns, strict=True))

    def _with_headings(self, rows: Iterable[str], height: int) -> str:
        """Put the heading between rows wherever a screenful has passed since the last one."""
        if not (self._heading and height > 2) or self._finite:
            return "\n".join(rows) + "\n"
        lines = []
        for row in rows:
            if self._rows >= height - 1:
                lines.append(self._header[:-1])
                self._rows = 1
            lines.append(row)
            self._rows += 1
        return "\n".join(lines) + "\n"


def _wrapped(indent: int, text: str, width: int) -> str:
    """Return the text in lines of at most `width` cells, those but the first indented."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines) or "-"


def _bare(end: str) -> int:
    """Return the cells of an address and of a shortened name in parentheses after it."""
    address, opened, name = end.partition("(")
    return len(address) + (2 + min(len(name) - 1, _LEAST_NAME) if opened else 0)


def _whole(text: str, _: int) -> str:
    return text


def _declared(column: Column) -> Need:
    return _need(column, max(column.width, len(heading(column))))


def _need(column: Column, cells: int) -> Need:
    """Return the need of a column whose longest value, or heading, takes so many cells."""
    if not column.least:
        return Need(cells, cells)
    wanted = min(cells, max(_MOST_NAME, column.width))
    return Need(min(wanted, column.least), wanted)


def _colored(rows: Iterable[str], styles: Sequence[str]) -> Iterable[str]:
    return [
        f"{_COLORS[style]}{row}{_PLAIN}" if style else row
        for row, style in zip(rows, styles, strict=True)
    ]


def _plain_cells(column: Column, width: int, endpoint: bool) -> Callable[[Batch], Sequence[str]]:
    """Return what makes a column's cells where nothing is shortened."""
    if column.kind is Kind.INTEGER and not column.text:
        return lambda batch: _numbers(column, batch.read(column), width)
    cache: Cache[str, str] = Cache(
        lambda text: pad(visible(text) or "-", width, column.right), 4096
    )

    def cells(batch: Batch) -> Sequence[str]:
        values = texts_of(column, batch)
        if endpoint and "" in values:
            values = [text or "-" for text in values]
        if column.kind is Kind.STRING:
            together = "".join(values) if endpoint else "\n"
            if not together.isascii() or not together.isprintable():
                first = values[0]
                if values[-1] == first and values.count(first) == len(values):
                    return [cache[first]] * len(values)
                return cache.of(values)
        # Endpoints and times vary, so a cache is no help; nearly all are plain.
        if not width:
            return values
        return (
            [v.rjust(width) for v in values] if column.right else [v.ljust(width) for v in values]
        )

    return cells


def _numbers(column: Column, values: Sequence[int], width: int) -> Sequence[str]:
    form = f"%{width if column.right else -width}d" if width else "%d"
    none = pad("-", width, column.right)

    def cell(value: int) -> str:
        return form % value if value or not column.optional else none

    distinct = set(values)
    if len(distinct) * 4 < len(values):
        known = {value: cell(value) for value in distinct}
        return list(map(known.__getitem__, values))
    if column.optional and 0 in distinct:
        return list(map(cell, values))
    return [form % value for value in values]
