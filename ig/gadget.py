"""What a gadget declares: its columns, its parameters, and where its events come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import compress
from typing import Any

from ig.containers.container import Container
from ig.memo import Value


class Kind(Enum):
    """What a column's values are, hence how they compare, read and print."""

    STRING = "string"
    INTEGER = "integer"
    DURATION = "duration"  # nanoseconds; 0 is "there was none"
    TIMESTAMP = "timestamp"  # nanoseconds since the epoch
    BOOLEAN = "boolean"


class Batch:
    """Events, column by column: `fields[name][i]` is that field of event i.

    The names are those of the C struct (or of the source's own records); `owners[i]` is the
    container that event i belongs to, HOST if none. Columns work on whole lists because a Python
    function call for each event and column costs more than all else together.
    """

    __slots__ = ("_read", "fields", "owners")

    def __init__(self, fields: Mapping[str, Sequence[Any]], owners: Sequence[Container]) -> None:
        self.fields = fields
        self.owners = owners
        self._read: dict[str, Sequence[Any]] = {}

    def __len__(self) -> int:
        return len(self.owners)

    def read(self, column: Column) -> Sequence[Any]:
        """Return the column's values, computed once a batch."""
        values = self._read.get(column.name)
        if values is None:
            if column.of_owner:
                values = of_each(self.owners, column.of_owner)
            else:
                values = column.read(self) if column.read else self.fields[column.name]
            self._read[column.name] = values
        return values

    def select(self, keep: Sequence[object]) -> Batch:
        """Return the events whose place in `keep` is true."""
        fields = {name: list(compress(values, keep)) for name, values in self.fields.items()}
        return Batch(fields, list(compress(self.owners, keep)))

    def part(self, start: int, end: int) -> Batch:
        """Return the events from `start` up to, not including, `end`."""
        fields = {name: values[start:end] for name, values in self.fields.items()}
        return Batch(fields, self.owners[start:end])


def of_each(containers: Sequence[Container], compute: Callable[[Container], Value]) -> list[Value]:
    """Return `compute` of each container, called once per distinct container."""
    if containers and containers[0] is containers[-1] is containers[len(containers) // 2]:
        first = containers[0]
        if containers.count(first) == len(containers):
            return [compute(first)] * len(containers)
    keys = list(map(id, containers))  # cheaper than hashing all that a container has
    known = {key: compute(each) for key, each in dict(zip(keys, containers, strict=True)).items()}
    return list(map(known.__getitem__, keys))


Address = tuple[int, bytes, bytes]
"""The version of IP, 16 bytes with the address in front, in network byte order, and its zone."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of each connection of a batch."""

    addresses: Callable[[Batch], Sequence[Address]]
    port: str
    """The field of its port."""
    whose: Callable[[Batch], Sequence[Container]]
    proto: str


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a table's, a filter's and a JSON key at once."""

    name: str
    """The short name, as in `-o columns=pid` and `-F pid==1`."""
    path: str = ""
    """Its path in the JSON object (`proc.pid`), also accepted as its name; empty: not in JSON."""
    kind: Kind = Kind.STRING
    heading: str = ""
    """The table's heading; the name in capitals if empty."""
    width: int = 16
    """Cells that it is given in a table before its values are known."""
    least: int = 0
    """Cells to which a terminal may shorten its values, in their middle; 0: they are never cut."""
    wrap: bool = False
    """As a table's last column it goes on in further lines where a terminal is too narrow."""
    drop: int = 0
    """Where a terminal is too narrow whole columns are left out: 1 first, 2 next, 0 at last."""
    hidden: bool = True
    """Shown only when asked for (the JSON object has it all the same)."""
    right: bool = False
    """Aligned to the right."""
    read: Callable[[Batch], Sequence[Any]] | None = None
    """Return the values of a batch; the field of that name if None."""
    of_owner: Callable[[Container], Any] | None = None
    """Return the value of an event's owner, on which alone it depends; instead of `read`."""
    json: Callable[[Batch], Sequence[Any]] | None = None
    """Return the values in JSON, where they are not those that are read."""
    members: tuple[str, ...] = ()
    """Of values in JSON that are tuples of tuples: each is a list of objects with these keys."""
    end: End | None = None
    """The end of a connection that it is: in JSON an object."""
    text: Callable[[Batch], Sequence[str]] | None = None
    """Return a table's texts, where they differ from the values; `-` is for what there is not."""
    optional: bool = False
    """Of an integer: 0 means that there is none; tables show `-`, CSV nothing."""
    style: Callable[[Batch], Sequence[str]] | None = None
    """Return what each event is in colours: `failure`, `warning`, or nothing."""
    resolved: Callable[[Batch], Sequence[Any]] | None = None
    """Reads instead of `read` for tables with --resolve."""
    values: tuple[str, ...] = ()
    """All values that a string can have, where these are known, besides the empty one."""
    raw: bool = True
    """Whether a duration or timestamp has its number beside it in JSON, as `<path>_raw`."""
    show_if: Callable[[Mapping[str, Any]], bool] | None = None
    """Shown although hidden when this holds for the options."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Param:
    """One option of a gadget's command."""

    name: str
    flags: tuple[str, ...]
    kind: str
    """`flag`, `integer`, `pid`, `uid` (a user's name, too), `count`, `string`, `strings`, `port`,
    `ports` (a list), `seconds`, `interval` (seconds, which may be left out), or `duration` (kept
    as ns)."""
    help: str
    default: Any = None
    define: str = ""
    """The C macro that carries a value that was given into the program."""
    excludes: tuple[str, ...] = ()
    """Names of parameters that it cannot be combined with."""
    implies: Mapping[str, Any] = field(default_factory=dict)
    """Values that other parameters take when this one is given."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """Events that a switch hides; their number is reported at the end."""

    option: str
    """The switch, a parameter's name."""
    column: str
    """An integer column: an event in which it is not 0 is withheld."""
    message: str
    """The message, with `{count}` in it."""


@dataclass(frozen=True, slots=True)
class CompatView:
    """A classic name of a gadget: its own columns and its own flat JSON keys, same events."""

    command: str
    summary: str
    columns: tuple[Column, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values that parameters have in this view."""


@dataclass(frozen=True, slots=True)
class Gadget:
    """A gadget: what its command is called, what it shows, and what gives its events."""

    name: str
    """As in `ig run NAME`: `trace_tcpconnect`."""
    command: tuple[str, str]
    """As in `ig trace tcpconnect`."""
    summary: str
    columns: tuple[Column, ...]
    shown: tuple[str, ...] = ()
    """The order of a table's columns where it is not that of the JSON object; others follow."""
    params: tuple[Param, ...] = ()
    program: str = ""
    """The C file in `ebpf/` whose events it shows; empty if `source` gives them."""
    source: str = "program"
    """`program`, or `sockets` (the sockets that exist now)."""
    defines: Mapping[str, int] = field(default_factory=dict)
    """C macros that select the gadget's part of its program."""
    views: tuple[CompatView, ...] = ()
    withheld: Withheld | None = None


GROUP = "ig.gadgets"
"""The entry point group in which other packages offer gadgets."""
