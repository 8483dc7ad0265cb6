"""`--summary`: rows that sum up a trace, of its events or of what the kernel counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from operator import attrgetter
from typing import Any

from ig import filters
from ig.container import HOST, Container
from ig.errors import UsageError
from ig.gadget import NOTHING, Batch, Column, Gadget, Kind, Stage, Sums, of_each
from ig.query import Sort, find_column
from ig.summary import Counts, counted, measures

MOST_ROWS = 16384
"""Rows of an interval; what has no room among them is one row for each container."""
DRAIN = 10.0
"""Seconds after which what the kernel has counted is read, so that it has room again."""
_OTHER = frozenset({"cgroup", "type", "outcome", "direction"})
"""The fields that are known of what the kernel had no room for: OTHER_KEY in tcp_count.h."""
_WHOSE = attrgetter("identity", "nested")
_SAMPLE: Mapping[str, Any] = {
    "saddr": bytes(16),
    "daddr": bytes(16),
    "zone": bytes(16),
    "peer": HOST,
    "version": 4,
}


class Summarize:
    """The stage that holds what events, or rows of the kernel's, count, and gives one row a key."""

    def __init__(self, by: Sequence[Column], owned: bool, most: int = MOST_ROWS) -> None:
        """Keys are the values of `by`, and the owner if `owned`."""
        self._by, self._owned, self._most = by, owned, most
        self._known = all(_readable(column, _OTHER) for column in by)
        self._rows: dict[tuple[Any, ...], Counts] = {}
        self._owners: dict[tuple[Any, ...], Container] = {}
        self.without_room = 0
        """The number of attempts, accepts and closes that had no room for their key here."""

    def feed(self, batch: Batch) -> Batch:
        """Count, and return nothing."""
        keys = zip(*map(batch.read, self._by), strict=True) if self._by else repeat(())
        others = batch.fields.get("other") if not self._known else None
        whose = of_each(batch.owners, _WHOSE) if self._owned else repeat(())
        if self._owned:
            self._owners.update(zip(whose, batch.owners, strict=False))
        rows = zip(others or repeat(0), whose, keys, measures(batch), strict=False)
        for other, owner, values, measure in rows:
            if not measure.number:
                continue
            key = (owner, None) if other else (owner, values)
            counts = self._rows.get(key)
            if counts is None:
                if len(self._rows) >= self._most and not other:
                    self.without_room += measure.number
                    key = (owner, None)
                counts = self._rows.setdefault(key, Counts())
            counts.add(measure)
        return NOTHING

    def flush(self) -> Batch:
        """Return the rows since the last call."""
        rows, self._rows = self._rows, {}
        whose, self._owners = self._owners, {}
        if not rows:
            return NOTHING
        nothing = tuple(0 if column.kind is Kind.INTEGER else "" for column in self._by)
        fields: dict[str, Sequence[Any]] = {
            column.name: [(values or nothing)[place] for _, values in rows]
            for place, column in enumerate(self._by)
        }
        fields["counts"] = list(rows.values())
        fields["overflow"] = [values is None for _, values in rows]
        return Batch(fields, [whose.get(owner, HOST) for owner, _ in rows])


def _readable(column: Column, fields: frozenset[str]) -> bool:
    """Return whether the column is known of rows that have only these fields."""
    if column.of_owner or not column.read:
        return bool(column.of_owner) or column.name in fields
    try:
        column.read(Batch({name: [_SAMPLE.get(name, 0)] for name in fields}, [HOST]))
    except KeyError:
        return False
    return True


def summarized(gadget: Gadget, options: dict[str, Any], live: bool = True) -> Gadget:
    """Return the gadget with the rows that `--summary` asks for, if it does; change the options.

    They are counted in the kernel if it is `live` and nothing needs events. Raises UsageError.
    """
    asked = [name for name in ("by", "sort", "top", "histogram") if options.get(name)]
    if not options.get("summary"):
        if asked:
            raise UsageError(f"--{asked[0]} needs --summary.")
        return gadget
    if gadget.sums is None or not gadget.summable:
        raise UsageError(f"`ig {' '.join(gadget.command)}` has no summary.")
    owners, by, shown = _keys(gadget, gadget.sums, options.get("by"))
    columns = (*owners, *shown, *gadget.sums.columns)
    sort = [part for text in options.get("sort") or () for part in text.split(",")]
    usual = [f"-{name}" for name in ("attempts", "accepts") if name in {c.name for c in columns}]
    for key in sort:
        find_column(key.lstrip("+-"), columns)
    seconds = options["summary"]
    options |= {"interval": seconds if seconds < float("inf") else None, "resolve": True}

    def stages(_: Mapping[str, Any]) -> tuple[Sequence[Stage], tuple[Column, ...]]:
        order = Sort(columns, sort or usual, options.get("top"))
        return (Summarize(by, bool(owners)), order), columns

    needs = [each for each in by if each not in gadget.sums.by]
    needs += filters.filtered(options.get("filter") or (), gadget.columns)
    events = not live or any(map(options.get, ("record", "max_events", "why")))
    if not events and all(_readable(column, gadget.sums.kept) for column in needs):
        gadget = counted(gadget)
    return replace(gadget, shown=(), stages=stages)


def _keys(
    gadget: Gadget, sums: Sums, names: Sequence[str] | None
) -> tuple[tuple[Column, ...], tuple[Column, ...], tuple[Column, ...]]:
    """Return the columns of the owner, those that rows are by, and how these are shown."""
    of_owner = tuple(column for column in gadget.columns if column.of_owner)
    owners: tuple[Column, ...] = ()
    by: dict[str, Column] = {}
    shown: dict[str, Column] = {}
    wanted = [part for text in names or ("container", "destination") for part in text.split(",")]
    for name in wanted:
        column = find_column(name, (sums.label, *gadget.columns))
        if column.name == "containername":
            owners = tuple(map(_owner_shown, of_owner))
        elif column is sums.label:
            by = {**{each.name: each for each in sums.by}, **by}
            shown |= {column.name: column}
        else:
            for part in _parts(column, gadget.columns):
                by[part.name] = part
                shown[part.name] = _stored(part, hidden=False)
    for part in by.values():
        shown.setdefault(part.name, _stored(part, hidden=True))
    owned = {column.name for column in owners}
    return owners, tuple(by.values()), tuple(c for c in shown.values() if c.name not in owned)


def _owner_shown(column: Column) -> Column:
    if column.name == "containername":
        return replace(column, heading="CONTAINER", least=9, hidden=False)
    return replace(column, hidden=True)


def _parts(column: Column, columns: Sequence[Column]) -> list[Column]:
    """Return an end of a connection as its address and its port."""
    names = (f"{column.name}.addr", f"{column.name}.port")
    return [each for each in columns if each.name in names] or [column]


def _stored(column: Column, hidden: bool) -> Column:
    """Return the column of a key, whose values are a field of the rows."""
    return replace(
        column,
        path=column.path or column.name,
        read=lambda batch: batch.fields[column.name],
        of_owner=None,
        json=None,
        end=None,
        text=None,
        style=None,
        resolved=None,
        show_if=None,
        hidden=hidden,
        drop=0,
    )
