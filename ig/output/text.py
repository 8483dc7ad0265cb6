"""Escapes for terminals, JSON and YAML, display width, and shortening of text.

Names come from the kernel and from runtimes: processes and images choose them. Characters that are
unprintable according to `str.isprintable` (controls, bidi overrides and marks, lone surrogates,
private and unassigned characters, every space but the ASCII one) are always escaped.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ig.ends import NAMED_ENDS
from ig.gadget import Batch, Column, Kind
from ig.memo import Cache
from ig.values import SECOND, format_durations, format_milliseconds

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
ELLIPSIS = "…"


def visible(text: str) -> str:
    r"""Return the text, unprintable characters as `\n`, `\xNN`, `\uNNNN` or `\UNNNNNNNN`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _visible_escape(c) for c in text)


def json_string(text: str) -> str:
    """Return the text as a quoted JSON string (RFC 8259), unprintable characters escaped.

    A lone surrogate, which many parsers refuse even as an escape, becomes text as in `visible`.
    """
    return _quoted(text, _json_escape)


def yaml_string(text: str) -> str:
    """Return the text as a double-quoted YAML scalar (YAML 1.2, 7.3.1).

    It differs from `json_string` beyond the 16-bit plane, where YAML has no surrogate pairs.
    """
    return _quoted(text, _yaml_escape)


def display_width(text: str) -> int:
    """Return how many cells of a terminal printable text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_CELLS.__getitem__, text))


def shorten(text: str, width: int) -> str:
    """Cut the text in its middle, marked with `…`, so that it takes at most `width` cells.

    Names of replicas differ at their ends, those of projects at their beginnings.
    """
    if display_width(text) <= width:
        return text
    if width <= 0:
        return ""
    end = (width - 1) // 2
    return _head(text, width - 1 - end) + ELLIPSIS + _head(text[::-1], end)[::-1]


def shorten_endpoint(text: str, width: int) -> str:
    """Cut `NAME:PORT` to `width` cells in the name's middle; a port is never cut, nor an address.

    An address is what stands without one of the prefixes that mark names; a name may follow it in
    parentheses.
    """
    if display_width(text) <= width:
        return text
    if text.endswith(")"):
        address, _, name = text[:-1].partition("(")
        return f"{address}({shorten(name, max(width - len(address) - 2, 3))})"
    if not text.startswith(NAMED_ENDS):
        return text
    name, colon, port = text.rpartition(":")
    return shorten(name, max(width - len(colon + port), 3)) + colon + port


def pad(text: str, width: int, right: bool = False) -> str:
    """Fill printable text with spaces to `width` cells, on its left if it is to stand right."""
    fill = " " * (width - display_width(text))
    return fill + text if right else text + fill


def _quoted(text: str, escape: Cache[str, str]) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    if quoted.isprintable():
        return quoted
    return "".join(c if c.isprintable() else escape[c] for c in quoted)


def _visible_escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, kept by "surrogateescape"
        code -= 0xDC00
    if character in _NAMED:
        return _NAMED[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _as_json_escape(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        return "\\" + _visible_escape(character)
    return f"\\u{code:04x}" if code < 0x10000 else json.dumps(character)[1:-1]


def _as_yaml_escape(character: str) -> str:
    code = ord(character)
    return f"\\U{code:08x}" if code >= 0x10000 else _as_json_escape(character)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _head(text: str, width: int) -> str:
    taken = 0
    for place, character in enumerate(text):
        taken += _CELLS[character]
        if taken > width:
            return text[:place]
    return text


_json_escape: Cache[str, str] = Cache(_as_json_escape, 1024)
_yaml_escape: Cache[str, str] = Cache(_as_yaml_escape, 1024)
_CELLS: Cache[str, int] = Cache(_cells, 4096)


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
