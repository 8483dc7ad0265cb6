"""Find columns by the names that users give them, and sort by them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from operator import itemgetter
from typing import Any

from ig.errors import UsageError
from ig.gadget import Batch, Column, Kind

_SHORTHANDS = {
    "sport": "src.port",
    "dport": "dst.port",
    "port": "dst.port",
    "saddr": "src.addr",
    "daddr": "dst.addr",
    "addr": "dst.addr",
    "container": "containername",
    "containername": "name",
    "runtime.containername": "name",
    "pod": "podname",
}
"""Used if a gadget has no column of that name itself."""


def find_column(name: str, columns: Sequence[Column]) -> Column:
    """Return the column of a short name (`pid`), dotted path (`proc.pid`) or shorthand (`dport`).

    Upper and lower case are the same. `NAME_raw` is the column of a duration or time in ns.
    Raises UsageError, with the known names and the nearest, for an unknown one.
    """
    known = _known(columns)
    wanted = name.strip().lower()[:64]
    candidate = wanted
    while candidate and candidate not in known:
        candidate = _SHORTHANDS.get(candidate, "")
    if candidate:
        return known[candidate]
    near = get_close_matches(wanted, [*known, *_SHORTHANDS], n=1)
    raise UsageError(
        f"Unknown column {name.strip()[:64]!r}.",
        "Known columns: " + ", ".join(column.name for column in columns),
        f"Did you mean {near[0]!r}?" if near else "",
    )


def _known(columns: Sequence[Column]) -> dict[str, Column]:
    known: dict[str, Column] = {}
    for column in reversed(columns):
        if column.kind in (Kind.DURATION, Kind.TIMESTAMP):
            raw = _raw(column)
            known |= {raw.name.lower(): raw, **({raw.path.lower(): raw} if raw.path else {})}
    for column in reversed(columns):
        if column.path:
            known[column.path.lower()] = column
    known.update((column.name.lower(), column) for column in reversed(columns))
    return known


def _raw(column: Column) -> Column:
    """Return the column of the same value as a number of ns."""
    return Column(
        f"{column.name}_raw",
        f"{column.path}_raw" if column.path else "",
        Kind.INTEGER,
        width=12 if column.kind is Kind.DURATION else 19,
        right=True,
        optional=True,
        read=lambda batch: batch.read(column),
        description=f"{column.name} in nanoseconds.",
    )


_EXACT = 2**53  # whole numbers below are exact as floats, which sort faster


def first(batch: Batch, columns: Sequence[Column], keys: Sequence[str], most: int | None) -> Batch:
    """Return the first `most` events, all if that is None, in the order that `sort` gives."""
    ordered = sort(batch, columns, keys)
    return ordered if most is None else ordered.part(0, most)


def sort(batch: Batch, columns: Sequence[Column], keys: Sequence[str]) -> Batch:
    """Return the batch ordered by the columns named in `keys`, `-NAME` in descending order.

    `src` and `dst` go by address, then port, as numbers. Equal ones keep their order. Raises
    UsageError for a name that is none.
    """
    places: list[float] = []
    for key in keys:
        descending = key.startswith("-")
        for column in _parts(find_column(key.lstrip("+-"), columns), columns):
            places = _refined(places, batch.read(column), _order(column), descending)
    if not places:
        return batch
    pick = itemgetter(*sorted(range(len(batch)), key=places.__getitem__))
    fields = {name: _picked(values, pick) for name, values in batch.fields.items()}
    return Batch(fields, _picked(batch.owners, pick))


def _parts(column: Column, columns: Sequence[Column]) -> list[Column]:
    """Return an end of a connection as its address and its port."""
    parts = [
        each for each in columns if each.name in (f"{column.name}.addr", f"{column.name}.port")
    ]
    return parts or [column]


def _order(column: Column) -> Callable[[Iterable[Any]], list[Any]]:
    if column.name.endswith(".addr"):
        return lambda values: sorted(values, key=_address)
    if column.kind is Kind.STRING:
        return lambda values: sorted(values, key=lambda text: (text.casefold(), text))
    return sorted


def _address(text: str) -> tuple[int, bytes]:
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        try:
            return version, socket.inet_pton(family, text)
        except OSError:
            continue
    return 0, text.encode("utf-8", "surrogateescape")


def _refined(
    places: list[float],
    values: Sequence[Any],
    order: Callable[[Iterable[Any]], list[Any]],
    descending: bool,
) -> list[float]:
    """Make one number of what was compared until now and the values' ranks."""
    distinct = order(set(values))
    count = len(distinct)
    if count <= 1:
        return places
    if descending:
        distinct.reverse()
    rank = dict(zip(distinct, map(float, range(count)), strict=True))
    ranks = list(map(rank.__getitem__, values))
    if not places:
        return ranks
    if max(places) * count >= _EXACT:
        known = {place: float(number) for number, place in enumerate(sorted(set(places)))}
        places = list(map(known.__getitem__, places))
    return [place * count + number for place, number in zip(places, ranks, strict=True)]


def _picked(values: Sequence[Any], pick: itemgetter[Any]) -> Sequence[Any]:
    # Most columns of most snapshots are the same everywhere: no need to move anything.
    if values.count(values[0]) == len(values):
        return values
    moved: Sequence[Any] = pick(values)
    return moved
