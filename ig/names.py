"""How users name columns: short names, dotted paths, and the shorthands that everybody types."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from ig.errors import UsageError
from ig.gadget import Column, Kind

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
"""For a gadget that has no column of the shorthand's own name."""


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
        f"There is no column {name.strip()[:64]!r}.",
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
    """Return the column of the same in ns, as a number."""
    return Column(
        f"{column.name}_raw",
        f"{column.path}_raw" if column.path else "",
        Kind.INTEGER,
        width=12 if column.kind is Kind.DURATION else 19,
        right=True,
        optional=True,
        read=lambda batch: batch.read(column),
        description=f"{column.name} in ns.",
    )
