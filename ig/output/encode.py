"""The values of columns as JSON: durations and times, ends of connections, lists of objects.

Durations and times are text, with their ns beside it; `null` where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ig.columns import STRINGS
from ig.container import Container
from ig.ends import ADDRESSES, end_kind, end_name
from ig.gadget import Address, of_each
from ig.memo import Cache
from ig.output.text import SECONDS, format_timestamps, json_string
from ig.values import MICROSECOND, MILLISECOND, SECOND, format_duration

Encode = Callable[[Sequence[Any]], Sequence[str]]
_MILLISECONDS = '"%.9gms"'
"""A double holds 15 digits and these are at most 9: `g` writes exactly them, and no more zeros."""
_MICROSECONDS = tuple(f".{n:03}".rstrip("0").rstrip(".") + 'µs"' for n in range(1000))
"""The fraction of a microsecond, its unit and the closing quote, by the ns. To look them up takes
half the time that `%g` takes."""


def durations(key: str, raw: bool) -> Encode:
    """Return an encoder of a column of ns, with `,"KEY_raw":…` after each value if `raw`."""
    behind = _behind(key)

    def encode(nanoseconds: Sequence[int]) -> list[str]:
        texts = _texts(nanoseconds)
        if not raw:
            return texts
        return [f"{text}{behind}{n or 'null'}" for text, n in zip(texts, nanoseconds, strict=True)]

    return encode


def pairs(key: str, other: str) -> Encode:
    """Return what encodes one column of ns under two keys, formatting each value once.

    The durations of both keys are equal, as `latency` and `waited` of answered attempts are.
    """
    behind, between, last = _behind(key), f",{json_string(other)}:", _behind(other)
    none = f"null{behind}null{between}null{last}null"

    def encode(nanoseconds: Sequence[int]) -> list[str]:
        if not any(nanoseconds):
            return [none] * len(nanoseconds)
        # Not by _texts: a second pass over the values takes a third more time.
        return [
            f'"{(text := (digits := str(n))[:-3] + _MICROSECONDS[n % 1000])}{behind}{digits}'
            f'{between}"{text}{last}{digits}'
            if MICROSECOND <= n < MILLISECOND
            else f"{(text := _MILLISECONDS % (n / 1e6))}{behind}{n}{between}{text}{last}{n}"
            if MILLISECOND <= n < SECOND
            else f'"{(text := format_duration(n))}"{behind}{n}{between}"{text}"{last}{n}'
            if n
            else none
            for n in nanoseconds
        ]

    return encode


def _texts(nanoseconds: Sequence[int]) -> list[str]:
    if not any(nanoseconds):
        return ["null"] * len(nanoseconds)
    return [
        f'"{str(n)[:-3]}{_MICROSECONDS[n % 1000]}'
        if MICROSECOND <= n < MILLISECOND
        else _MILLISECONDS % (n / 1e6)
        if MILLISECOND <= n < SECOND
        else f'"{format_duration(n)}"'
        if n
        else "null"
        for n in nanoseconds
    ]


def timestamps(key: str, raw: bool) -> Encode:
    """Return what encodes a column of ns since the epoch, with `,"KEY_raw":…` if `raw`."""
    middle = _behind(key) if raw else ""

    def encode(nanoseconds: Sequence[int]) -> Sequence[str]:
        second = min(nanoseconds, default=0) // SECOND
        if raw and second > 0 and max(nanoseconds) // SECOND == second:
            # As nearly always within a batch: what differs are the last nine digits.
            prefix, end = f'"{SECONDS[second]}', f'Z"{middle}'
            return [f"{prefix}{(text := str(n))[-9:]}{end}{text}" for n in nanoseconds]
        texts = zip(format_timestamps(nanoseconds), nanoseconds, strict=True)
        if not raw:
            return [f'"{text}"' if n else "null" for text, n in texts]
        return [f'"{text}"{middle}{n}' if n else f"null{middle}null" for text, n in texts]

    return encode


def _behind(key: str) -> str:
    return f",{json_string(key + '_raw')}:"


def values(of: Sequence[Any]) -> list[str]:
    """Encode numbers, texts, lists and dictionaries."""
    return [str(value) if type(value) is int else _encoded(value) for value in of]


def objects(members: Sequence[str]) -> Encode:
    """Return what encodes tuples of tuples as lists of objects with these keys."""

    def encoded(rows: tuple[tuple[Any, ...], ...]) -> str:
        return _encoded([dict(zip(members, row, strict=True)) for row in rows])

    return Cache(encoded).of


def addresses() -> Encode:
    """Return what encodes addresses, each with its zone if it has one."""
    return Cache(_address).of


def whose(containers: Sequence[Container]) -> Sequence[str]:
    """Encode the name, namespace and kind of whom each address belongs to."""
    return of_each(containers, _whose)


def _address(key: Address) -> str:
    zone = f',"zone":{_encoded(STRINGS[key[2]])}' if key[2] else ""
    return json.dumps(ADDRESSES[key[:2]]) + zone


def _whose(container: Container) -> str:
    parts = (end_name(container), container.pod_namespace, end_kind(container))
    # What is not ASCII is escaped; what is not UTF-8 is shown as its bytes.
    valid = (part.encode("utf-8", "backslashreplace").decode() for part in parts)
    name, namespace, kind = map(_encoded, valid)
    return f'{name},"namespace":{namespace},"kind":{kind}'


def _encoded(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")).replace("\x7f", "\\u007f")
