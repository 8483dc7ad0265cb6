"""The column of times that a table may begin with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ig.columns import Cache
from ig.durations import SECOND
from ig.errors import UsageError
from ig.gadget import Batch, Column
from ig.values import format_timestamps

FORMS = ("none", "clock", "delta", "iso")


def time_column(form: str) -> Column | None:
    """Return the column of the events' times, None for `none`.

    `clock` is the local time of day, `delta` the time since the row before, `iso` RFC 3339 in UTC.
    Raises UsageError for anything else.
    """
    reads: dict[str, tuple[int, Callable[[Batch], Sequence[str]]]] = {
        "clock": (12, lambda batch: _clock(batch.fields["timestamp"])),
        "delta": (9, _Delta()),
        "iso": (30, lambda batch: format_timestamps(batch.fields["timestamp"])),
    }
    if form == "none":
        return None
    if form not in reads:
        raise UsageError(f"There is no form of times {form[:64]!r}.", f"Known: {', '.join(FORMS)}")
    width, read = reads[form]
    return Column("time", width=width, right=form == "delta", read=read)


class _Delta:
    """Says how long each event came after the one before, across batches."""

    def __init__(self) -> None:
        self._before = 0

    def __call__(self, batch: Batch) -> list[str]:
        times = batch.fields["timestamp"]
        before = [self._before or times[0], *times[:-1]]
        self._before = times[-1]
        return [f"{(now - then) / SECOND:+.3f}s" for now, then in zip(times, before, strict=True)]


def _clock(nanoseconds: Sequence[int]) -> list[str]:
    return [f"{_SECONDS[n // SECOND]}.{n % SECOND // 1_000_000:03d}" for n in nanoseconds]


_SECONDS: Cache[int, str] = Cache(
    lambda second: time.strftime("%H:%M:%S", time.localtime(second)), 1024
)
