"""Values as text, a column of a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ig.columns import Cache
from ig.durations import SECOND, format_durations, format_milliseconds
from ig.gadget import Batch, Column, Kind

BOOLEANS = {False: "false", True: "true"}


def texts(column: Column, batch: Batch) -> Sequence[str]:
    """Return the column's values as people read them, not yet escaped; "" for what is missing.

    A duration or a timestamp of 0, and an optional number that is 0, is not there.
    """
    values = batch.read(column)
    optional = column.optional or column.kind is Kind.TIMESTAMP
    if optional and 0 in values:
        shown = TEXTS[column.kind](values)
        return [text if value else "" for text, value in zip(shown, values, strict=True)]
    return values if column.kind is Kind.STRING else TEXTS[column.kind](values)


def cells(column: Column, batch: Batch) -> Sequence[str]:
    """Return the column's values as tables show them, not yet escaped.

    What there is not is empty or `-`. Durations are in ms, those of a second or more in s, each
    with three digits.
    """
    if column.text:
        return column.text(batch)
    values = batch.read(column)
    if column.kind is Kind.DURATION:
        return format_milliseconds(values)
    if column.kind is Kind.INTEGER:
        return [str(n) if n or not column.optional else "-" for n in values]
    if column.kind is Kind.STRING:
        return values
    shown = TEXTS[column.kind](values)
    if column.kind is Kind.TIMESTAMP and 0 in values:
        return [text if n else "-" for text, n in zip(shown, values, strict=True)]
    return shown


def format_timestamps(nanoseconds: Sequence[int]) -> list[str]:
    """Write nanoseconds since the epoch as RFC 3339: `2026-11-20T20:33:04.123456789Z`."""
    return [f"{SECONDS[n // SECOND]}{n % SECOND:09d}Z" for n in nanoseconds]


def _second(second: int) -> str:
    try:
        return datetime.fromtimestamp(second, timezone.utc).isoformat()[:19] + "."
    except (ValueError, OverflowError, OSError):
        return "9999-12-31T23:59:59."


def _booleans(values: Sequence[object]) -> list[str]:
    return [BOOLEANS[bool(value)] for value in values]


def _integers(values: Sequence[int]) -> list[str]:
    return list(map(str, values))


TEXTS: Mapping[Kind, Callable[[Sequence[Any]], list[str]]] = {
    Kind.INTEGER: _integers,
    Kind.BOOLEAN: _booleans,
    Kind.DURATION: format_durations,
    Kind.TIMESTAMP: format_timestamps,
}
"""What writes the values of each kind that is not text already."""
SECONDS: Cache[int, str] = Cache(_second, 1024)
"""A second since the epoch to the beginning of its times: `2026-11-20T20:33:04.`."""
