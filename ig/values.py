"""Values as text, a column of a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ig.columns import Cache
from ig.durations import SECOND, format_durations
from ig.gadget import Batch, Column, Kind

BOOLEANS = {False: "false", True: "true"}


def texts(column: Column, batch: Batch) -> Sequence[str]:
    """Give the column's values as people read them, not yet escaped; a duration of 0 as nothing."""
    values = batch.read(column)
    return values if column.kind is Kind.STRING else TEXTS[column.kind](values)


def format_timestamps(nanoseconds: Sequence[int]) -> list[str]:
    """Write nanoseconds since the epoch as RFC 3339: `2026-11-20T20:33:04.123456789Z`."""
    if not nanoseconds:
        return []
    second = min(nanoseconds) // SECOND
    if max(nanoseconds) // SECOND == second:
        # As nearly always within a batch. The second that is added and cut off fills up with zeros.
        base = (second - 1) * SECOND
        prefix = _SECONDS[second]
        return [f"{prefix}{str(n - base)[1:]}Z" for n in nanoseconds]
    return [f"{_SECONDS[n // SECOND]}{n % SECOND:09d}Z" for n in nanoseconds]


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
_SECONDS: Cache[int, str] = Cache(_second, 1024)
