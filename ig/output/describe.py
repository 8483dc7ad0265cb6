"""What columns there are and what they mean: for `--columns` and for docs/json.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tabulate import tabulate

from ig.container import HOST
from ig.gadget import Batch, Column, Gadget, Kind
from ig.output.layout import watch
from ig.output.table import TableFormatter

_KINDS = {
    Kind.STRING: "text",
    Kind.INTEGER: "number",
    Kind.DURATION: "duration",
    Kind.TIMESTAMP: "time",
    Kind.BOOLEAN: "true or false",
}
_MEASURED = (Kind.DURATION, Kind.TIMESTAMP)


def table(columns: Sequence[Column], shown: Sequence[Column]) -> str:
    """Return a table of the columns, with a star after those that are shown by default."""
    names = {column.name for column in shown}
    ends = {column.name for column in columns if column.end}
    rows = [
        (
            f"{column.name}{'*' if column.name in names else ''}",
            # The parts of an end of a connection are in its object.
            column.path or (column.name if column.name.rpartition(".")[0] in ends else "-"),
            _KINDS[column.kind],
            column.description,
        )
        for column in columns
    ]
    return tabulate(rows, ("NAME", "JSON KEY", "KIND", "MEANING"), "plain", disable_numparse=True)


def gadgets(declared: Sequence[Gadget]) -> str:
    """Return a table of the gadgets, the last column wrapped where a terminal is narrow."""
    rows = [(each.name, f"ig {' '.join(each.command)}", each.summary) for each in declared]
    names = ("name", "command", "shows")
    columns = [Column(name, least=20 * (name == "shows"), wrap=name == "shows") for name in names]
    batch = Batch(dict(zip(names, zip(*rows, strict=True), strict=True)), [HOST] * len(rows))
    formatter = TableFormatter(columns, columns, screen=watch())
    return (formatter.header(batch) + formatter.format(batch)).rstrip("\n")


def keys(columns: Sequence[Column]) -> Iterator[tuple[str, str, str]]:
    """Yield each JSON key with its kind and its meaning, in the object's order."""
    meanings = {column.name: column.description for column in columns}
    for column in columns:
        if not column.path:
            continue
        if column.end:
            yield from _end(column, meanings)
        elif column.json or column.members:
            yield column.path, "see meaning", column.description
        elif column.kind in _MEASURED:
            yield column.path, f"{_KINDS[column.kind]}, text or null", column.description
            if column.raw:
                yield f"{column.path}_raw", "number or null", _raw(column)
        else:
            yield column.path, _KINDS[column.kind], column.description


def _raw(column: Column) -> str:
    if column.kind is Kind.TIMESTAMP:
        return "The same in nanoseconds since the epoch."
    return "The same in nanoseconds."


def _end(column: Column, meanings: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the keys of an end of a connection, which is one object."""
    kinds = {"port": "number", "version": "number", "zone": "text, where there is one"}
    others = {
        "addr": f"{column.description.split(',')[0]}: IP address.",
        "proto": "Protocol: TCP.",
        "version": "IP version, 4 or 6.",
    }
    for part in ("addr", "zone", "port", "proto", "version", "name", "namespace", "kind"):
        meaning = others.get(part) or meanings[f"{column.name}.{part}"]
        yield f"{column.path}.{part}", kinds.get(part, "text"), meaning


def section(title: str, columns: Sequence[Column]) -> str:
    """Return a section of docs/json.md: a table of keys."""
    lines = [f"## {title}", "", "| key | kind | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | {kind} | {meaning} |" for key, kind, meaning in keys(columns)]
    return "\n".join(lines) + "\n"


def sections(gadgets: Sequence[Gadget]) -> str:
    """Return the sections of the gadgets and their views."""
    parts = []
    for gadget in gadgets:
        parts.append(section(f"ig {' '.join(filter(None, gadget.command))}", gadget.columns))
        parts += [section(f"ig {view.command}", view.columns) for view in gadget.views]
    return "\n".join(parts)
