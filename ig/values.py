"""Values as users type them: durations, times, ports, users; and durations as Go writes them.

A duration (`47.069µs`, `1m2.5s`) is a number of nanoseconds.
"""

from __future__ import annotations

import grp
import pwd
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
_PART = r"([0-9]*)(?:\.([0-9]*))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)"
_NUMBER = r"[0-9]+\.?[0-9]*|\.[0-9]+"
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


def format_short(nanoseconds: Sequence[int]) -> list[str]:
    """Write each in three digits and a unit, such as `81.2µs` or `1.01s`, and 0 as `-`."""
    return [_short(n) if n else "-" for n in nanoseconds]


def _short(nanoseconds: int) -> str:
    for unit, name in ((1, "ns"), (MICROSECOND, "µs"), (MILLISECOND, "ms"), (SECOND, "s")):
        number = float(f"{nanoseconds / unit:.3g}")
        if number < 1000:  # as it is printed: 999.9 µs are 1 ms
            return f"{number:g}{name}"
    return format_duration(nanoseconds // SECOND * SECOND)


def parse_duration(text: str, unit: int = 0) -> int:
    """Return the nanoseconds of a duration such as `10ms`, `1.5s`, `2m`, `1h30m` or `0`.

    A bare number counts in `unit`, in ns, if there is one. What is finer than a nanosecond is cut
    off. Raises UsageError for anything else, for negative durations, and for those of more than
    292 years (2^63 ns).
    """
    stripped = text.strip()
    if stripped == "0":
        return 0
    if unit and re.fullmatch(_NUMBER, stripped):
        stripped += next(name for name, size in _UNITS.items() if size == unit)
    total = 0
    position = 0
    while position < len(stripped) <= _LONGEST:
        part = re.match(_PART, stripped[position:])
        if not part or not (part[1] or part[2]):
            break
        unit = _UNITS[part[3]]
        fraction = part[2] or ""
        total += int(part[1] or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        position += part.end()
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


_TIME = (
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-][0-9]{2}:[0-9]{2}))"
)


def parse_time(text: str) -> int:
    """Return the nanoseconds since the epoch of a time as in RFC 3339. Raises UsageError."""
    from datetime import datetime  # half a millisecond, for filters by time only

    match = re.fullmatch(_TIME, text)
    try:
        if match:
            date, time, fraction, zone = match.groups()
            epoch = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
            elapsed = datetime.fromisoformat(f"{date}T{time}{zone or '+00:00'}") - epoch
            whole = elapsed.days * 86_400 + elapsed.seconds
            return whole * SECOND + int((fraction or "").ljust(9, "0"))
    except ValueError:
        pass
    raise UsageError(
        f"Invalid time {text[:_LONGEST]!r}.",
        "",
        "Use RFC 3339 with a zone: 2026-11-20T20:33:04Z or 2026-11-20T20:33:04.5+01:00.",
    )


_LEAST_INTERVAL = 0.1
_MOST_SECONDS = 10**9
_MOST_PORTS = 2048


def _duration(text: str) -> int:
    """Return the nanoseconds of a duration; a bare number is in ms. Raises UsageError."""
    return parse_duration(text, MILLISECOND)


def parse_seconds(text: str) -> float:
    """Return the seconds of a duration; a bare number is in seconds. Raises UsageError."""
    value = parse_duration(text, SECOND) / SECOND
    if value > _MOST_SECONDS:
        raise UsageError(
            f"Invalid duration {text[:64]!r}: too long.", f"The maximum is {_MOST_SECONDS} s."
        )
    return value


def _interval(text: str) -> float:
    interval = parse_seconds(text)
    if interval < _LEAST_INTERVAL:
        raise UsageError(
            f"Invalid interval {text.strip()[:64]!r}: too short.",
            "",
            f"The minimum is {_LEAST_INTERVAL:g} seconds.",
        )
    return interval


def _summary(text: str) -> float:
    """Return the seconds of an interval; infinity for the whole."""
    return float("inf") if text == "end" else _interval(text)


def parse_port(text: str) -> int:
    """Return the port of a number or of a service's name (/etc/services). Raises UsageError."""
    name = text.strip()
    if name.isascii() and name.isdigit() and len(name) < 6 and 0 < int(name) < 65536:
        return int(name)
    if name and not name[0].isdigit():
        for protocol in ("tcp", "udp"):
            try:
                return socket.getservbyname(name, protocol)
            except (OSError, UnicodeError, ValueError):
                continue
    raise UsageError(
        f"Invalid port {name[:64]!r}.",
        "",
        "Use a number from 1 to 65535, or a service name from /etc/services such as http.",
    )


def _port(text: str) -> int:
    if "," in text:
        raise UsageError(
            f"Invalid port {text[:64]!r}.",
            "Only one is possible here.",
            f"Use a filter for several: -F dst.port=={text[:64]}",
        )
    return parse_port(text)


def parse_user(text: str) -> int:
    """Return the number of a user, given as it or by the name here. Raises UsageError."""
    return _account(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def parse_group(text: str) -> int:
    """Return the number of a group, given as it or by the name here. Raises UsageError."""
    return _account(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def _account(text: str, what: str, find: Callable[[str], int]) -> int:
    name = text.strip()
    if name.isascii() and name.isdigit() and len(name) < 11 and int(name) < 2**32 - 1:
        return int(name)
    try:
        return find(name)
    except (KeyError, ValueError, UnicodeError):
        raise UsageError(
            f"Unknown {what} {name[:64]!r}.",
            "",
            f"Use the name of a {what} of this host, or a number.",
        ) from None


def _ports(text: str) -> list[int]:
    ports = [parse_port(part) for part in text.split(",")]
    if len(ports) > _MOST_PORTS:
        raise UsageError(
            f"Too many ports for the kernel's filter: {len(ports)}.",
            f"The maximum is {_MOST_PORTS}.",
            "Use -F 'port>=1024,port<2048' to filter by a range.",
        )
    return ports


def _whole(name: str, least: int, most: int) -> Callable[[int], int]:
    def check(value: int) -> int:
        if not least <= value <= most:
            raise UsageError(
                f"Invalid {name} {value}.", "", f"Use a number from {least} to {most}."
            )
        return value

    return check


CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "duration": _duration,
    "ports": _ports,
    "port": _port,
    "uid": parse_user,
    "pid": _whole("PID", 1, 1 << 22),
    "count": _whole("count", 1, (1 << 63) - 1),
    "integer": _whole("integer", -(1 << 63), (1 << 63) - 1),
    "strings": lambda texts: list(texts) or None,
    "seconds": parse_seconds,
    "interval": _interval,
    "summary": _summary,
}
"""The parser of each kind of option."""
