"""Find columns by the names that users give them; the stages that filter, limit and sort."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import chain
from operator import itemgetter, not_
from typing import Any

from ig.container import Container
from ig.errors import UsageError
from ig.gadget import NOTHING, Batch, Column, Kind

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


class Filter:
    """The stage that leaves out what a predicate does not hold for."""

    def __init__(self, keep: Callable[[Batch], Sequence[object]] | None) -> None:
        self._keep = keep

    def feed(self, batch: Batch) -> Batch:
        """Return the events that are kept."""
        return batch.select(self._keep(batch)) if self._keep else batch

    def flush(self) -> Batch:
        """Return nothing: no event is held."""
        return NOTHING


class Withhold:
    """The stage that leaves out, and counts, the events in which a column is not 0."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self.count = 0

    def feed(self, batch: Batch) -> Batch:
        """Return the other events."""
        others = list(map(not_, batch.read(self._column)))
        self.count += others.count(False)
        return batch.select(others)

    def flush(self) -> Batch:
        """Return nothing: no event is held."""
        return NOTHING


class Limit:
    """The stage that counts events, and lets through `most` of them, all if that is 0."""

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self.passed = 0
        """The number of events so far; of several of one attempt, the first."""

    def reached(self) -> bool:
        """Return whether no more events are wanted."""
        return bool(self._most) and self.passed >= self._most

    def feed(self, batch: Batch) -> Batch:
        """Return the events up to the limit; a second event of an attempt does not count."""
        if not self._most:
            self.passed += len(batch)
            return batch
        repeated = batch.fields.get("update") or [0] * len(batch)
        first = [place for place, again in enumerate(repeated) if not again]
        left = self._most - self.passed
        if len(first) > left:
            batch = batch.part(0, first[left])
        self.passed += min(len(first), left)
        return batch

    def flush(self) -> Batch:
        """Return nothing: no event is held."""
        return NOTHING


class Sort:
    """The stage that holds events, and gives the first `most`, or all, in the order of `sort`."""

    def __init__(
        self, columns: Sequence[Column], keys: Sequence[str], most: int | None = None
    ) -> None:
        self._columns, self._keys, self._most = columns, keys, most
        self._held: list[Batch] = []

    def feed(self, batch: Batch) -> Batch:
        """Hold the events, and return nothing."""
        self._held.append(batch)
        return NOTHING

    def flush(self) -> Batch:
        """Return the events since the last call."""
        if not self._held:
            return NOTHING
        ordered = sort(self._taken(), self._columns, self._keys)
        return ordered if self._most is None else ordered.part(0, self._most)

    def _taken(self) -> Batch:
        """Return what is held, and hold it no longer: `sort` frees what nobody else holds."""
        held, self._held = self._held, []
        return joined(held)


def joined(batches: Sequence[Batch]) -> Batch:
    """Return the events of all batches, which have the same fields, as one."""
    if len(batches) <= 1:
        return batches[0] if batches else NOTHING
    fields = {
        name: list(chain.from_iterable(batch.fields[name] for batch in batches))
        for name in batches[0].fields
    }
    return Batch(fields, list(chain.from_iterable(batch.owners for batch in batches)))


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
    fields, owners = dict(batch.fields), batch.owners
    # Of a batch that nobody else holds, each column goes as soon as its values have been moved.
    del batch, places
    for name, values in fields.items():
        fields[name] = _picked(values, pick)
    return Batch(fields, _picked(owners, pick))


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
    # Most columns of most snapshots are the same everywhere: no need to move anything. To compare
    # containers, field by field, costs more than that.
    if not isinstance(values[0], Container) and values.count(values[0]) == len(values):
        return values
    moved: Sequence[Any] = pick(values)
    return moved
