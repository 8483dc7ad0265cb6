"""Durations as Go writes them (`47.069µs`, `1m2.5s`), to and from nanoseconds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ig.errors import UsageError

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

_UNITS = {
    "ns": 1,
    "us": MICROSECOND,
    "\u00b5s": MICROSECOND,  # the micro sign, which Go prints
    "\u03bcs": MICROSECOND,  # the Greek letter, which keyboards type
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_NUMBER = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
_LONGEST = 64
_LIMIT = 2**63 - 1


def format_duration(nanoseconds: int) -> str:
    """Write a duration as Go's `time.Duration.String`: `0s`, `999ns`, `7.820966ms`, `1h0m2.5s`."""
    if nanoseconds < 0:
        return "-" + format_duration(-nanoseconds)
    if nanoseconds < SECOND:
        if nanoseconds >= MILLISECOND:
            return _decimal(nanoseconds, MILLISECOND) + "ms"
        if nanoseconds >= MICROSECOND:
            return _decimal(nanoseconds, MICROSECOND) + "µs"
        return f"{nanoseconds}ns" if nanoseconds else "0s"
    minutes, rest = divmod(nanoseconds, MINUTE)
    seconds = _decimal(rest, SECOND) + "s"
    if not minutes:
        return seconds
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}" if hours else f"{minutes}m{seconds}"


def format_durations(nanoseconds: Sequence[int]) -> list[str]:
    """Write each as `format_duration` does, but 0, which means that there was none, as nothing."""
    return [format_duration(n) if n else "" for n in nanoseconds]


def format_milliseconds(nanoseconds: Sequence[int]) -> list[str]:
    """Write each as `0.085ms`, from a second on as `1.011s`, and 0, there being none, as `-`."""
    return [
        "-" if not n else "%.3fms" % (n / 1e6) if n < 999_999_500 else "%.3fs" % (n / 1e9)
        for n in nanoseconds
    ]


def parse_duration(text: str, unit: int = 0) -> int:
    """Return the nanoseconds of a duration such as `10ms`, `1.5s`, `2m`, `1h30m` or `0`.

    A bare number counts in `unit`, in ns, if there is one. What is finer than a nanosecond is cut
    off. Raises UsageError for anything else, for negative durations, and for those of more than
    292 years (2^63 ns).
    """
    stripped = text.strip()
    if stripped == "0":
        return 0
    if unit and _NUMBER.fullmatch(stripped):
        stripped += next(name for name, size in _UNITS.items() if size == unit)
    total = 0
    position = 0
    while position < len(stripped) <= _LONGEST:
        part = _PART.match(stripped, position)
        if not part or not (part[1] or part[2]):
            break
        unit = _UNITS[part[3]]
        fraction = part[2] or ""
        total += int(part[1] or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        position = part.end()
    if not stripped or position < len(stripped) or total > _LIMIT:
        raise UsageError(
            f"Invalid duration {text[:_LONGEST]!r}.",
            _wrong(stripped, total),
            "Use a number and a unit (ns, us, ms, s, m, h), such as 10ms, 1.5s or 1h30m.",
        )
    return total


def _decimal(nanoseconds: int, unit: int) -> str:
    whole, rest = divmod(nanoseconds, unit)
    if not rest:
        return str(whole)
    digits = str(unit + rest)[1:].rstrip("0")
    return f"{whole}.{digits}"


def _wrong(text: str, total: int) -> str:
    if not text:
        return "The value is empty."
    if total > _LIMIT:
        return "The maximum is 292 years."
    if text.startswith("-"):
        return "The value is negative."
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return f"The unit is missing: {text[:20]}ms or {text[:20]}s?"
    return ""
