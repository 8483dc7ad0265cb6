"""Events as CSV (RFC 4180): a line of column names, then a line for each event, ended by CRLF."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from ig.gadget import Batch, Column, Kind
from ig.memo import Cache
from ig.output.text import texts, visible

_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001 - spreadsheets fold wide forms


class CsvFormatter:
    """The shown columns, under their short names."""

    def __init__(self, shown: Sequence[Column], heading: bool = True) -> None:
        self._shown = shown
        self._heading = heading

    def header(self, batch: Batch | None = None) -> str:  # noqa: ARG002 - as other formatters'
        """Return the line of names."""
        return _lines([[column.name for column in self._shown]]) if self._heading else ""

    def format(self, batch: Batch) -> str:
        """Return the events' lines."""
        return _lines(zip(*[_cells(column, batch) for column in self._shown], strict=True))

    def footer(self) -> str:
        """Return nothing."""
        return ""


def _cells(column: Column, batch: Batch) -> Sequence[str]:
    values = texts(column, batch)
    return _NEUTRAL.of(values) if column.kind is Kind.STRING else values


def _neutral(text: str) -> str:
    """Escape what is unprintable, and keep spreadsheets from taking text for a formula.

    The apostrophe is OWASP's advice against CSV injection: a process may be called `=cmd|...`.
    """
    shown = visible(text)
    return f"'{shown}" if shown.startswith(_FORMULA_STARTS) else shown


def _lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


_NEUTRAL: Cache[str, str] = Cache(_neutral, 8192)
