"""What a gadget declares: its columns, its parameters and the source of its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import compress
from operator import not_
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ig.container import Container
from ig.memo import Value


class Kind(Enum):
    """The type of a column's values: how they are compared, parsed and printed."""

    STRING = "string"
    INTEGER = "integer"
    DURATION = "duration"  # nanoseconds; 0 is no value
    TIMESTAMP = "timestamp"  # nanoseconds since the epoch
    BOOLEAN = "boolean"


_FEW = 16
"""Events that are dropped one by one: that is faster than to choose all others."""


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

    def adding(self, fields: Mapping[str, Sequence[Any]]) -> Batch:
        """Return the same events with more fields."""
        return Batch({**self.fields, **fields}, self.owners)

    def select(self, keep: Sequence[object]) -> Batch:
        """Return the events whose place in `keep` is true."""
        if all(keep):
            return self
        dropped = list(compress(range(len(keep)), map(not_, keep)))
        few = len(dropped) <= _FEW

        def kept(values: Sequence[Value]) -> list[Value]:
            if not few:
                return list(compress(values, keep))
            left = list(values)
            for place in reversed(dropped):
                del left[place]
            return left

        fields = {name: kept(values) for name, values in self.fields.items()}
        return Batch(fields, kept(self.owners))

    def part(self, start: int, end: int) -> Batch:
        """Return the events from `start` up to, not including, `end`."""
        fields = {name: values[start:end] for name, values in self.fields.items()}
        return Batch(fields, self.owners[start:end])


NOTHING = Batch({}, [])
"""A batch without events."""


class Stage(Protocol):
    """A step between the owners of events and their output: it filters, sums up or sorts.

    It knows columns, never gadgets.
    """

    def feed(self, batch: Batch) -> Batch:
        """Return what goes on at once, NOTHING if all of it is held or left out."""

    def flush(self) -> Batch:
        """Return what was held, at the end of an interval and of the input."""


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


class End(NamedTuple):
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
    """Its width in a table, in cells, before values are known."""
    least: int = 0
    """Cells to which its values may be shortened on a terminal; 0: never shortened."""
    wrap: bool = False
    """Whether it is wrapped on a narrow terminal, as the last column of a table."""
    drop: int = 0
    """The order in which columns are omitted on a narrow terminal: 1 first, 2 next, 0 last."""
    hidden: bool = True
    """Whether tables omit it unless it is named; JSON always has it."""
    right: bool = False
    """Aligned to the right."""
    read: Callable[[Batch], Sequence[Any]] | None = None
    """Return the values of a batch; the field of that name if None."""
    of_owner: Callable[[Container], Any] | None = None
    """Return the value for an owner, if it depends on the owner only; instead of `read`."""
    json: Callable[[Batch], Sequence[Any]] | None = None
    """Return the values for JSON, if they differ from those that `read` returns."""
    members: tuple[str, ...] = ()
    """For values that are tuples of tuples: the keys of the objects in JSON, one list per value."""
    end: End | None = None
    """The end of a connection that it shows, an object in JSON."""
    text: Callable[[Batch], Sequence[str]] | None = None
    """Return the texts for a table, if they differ from the values; `-` for no value."""
    optional: bool = False
    """Integers only: 0 is no value; tables show `-`, CSV an empty field."""
    style: Callable[[Batch], Sequence[str]] | None = None
    """Return the style of each event: `failure`, `warning` or an empty string."""
    resolved: Callable[[Batch], Sequence[Any]] | None = None
    """Replaces `read` for tables with --resolve."""
    values: tuple[str, ...] = ()
    """All possible non-empty values of a string, if known."""
    raw: bool = True
    """Whether a duration or timestamp also has a key `<path>_raw` with its number in JSON."""
    show_if: Callable[[Mapping[str, Any]], bool] | None = None
    """Return whether it is shown although hidden, for these options."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Param:
    """One option of a gadget's command."""

    name: str
    flags: tuple[str, ...]
    """Its names; () for an argument."""
    kind: str
    """`flag`, `integer`, `pid`, `uid` (a user's name, too), `count`, `string`, `strings`, `port`,
    `ports` (a list), `seconds`, `interval` (seconds, which may be left out), `summary` (the same;
    infinity if left out), `kubeconfig` (a path; `auto` if left out) or `duration` (kept as ns)."""
    help: str
    default: Any = None
    define: str = ""
    """The C macro that is set to the option's value when the program is compiled."""
    program: str = ""
    """The C file that is loaded instead of the gadget's, with this option."""
    excludes: tuple[str, ...] = ()
    """Names of parameters that it cannot be combined with."""
    implies: Mapping[str, Any] = field(default_factory=dict)
    """Values that other parameters take when this one is given."""


class Withheld(NamedTuple):
    """Events that a switch hides; their number is reported at the end."""

    option: str
    """The switch, a parameter's name."""
    column: str
    """An integer column: an event in which it is not 0 is withheld."""
    message: str
    """The message, with `{count}` in it."""


class CompatView(NamedTuple):
    """The classic form of a gadget: the same events, with other columns and flat JSON keys."""

    command: str
    summary: str
    columns: tuple[Column, ...]
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Values of parameters that are fixed in this view."""


class Sums(NamedTuple):
    """What is shown instead of events with `--summary`."""

    by: tuple[Column, ...]
    """What one row is of, beside the owner, unless the user names other columns."""
    label: Column
    """The column that shows `by`; its name stands for it in `--by`."""
    columns: tuple[Column, ...]
    """What is counted."""
    kept: frozenset[str]
    """The fields of events that are known of what the kernel counts."""


@dataclass(frozen=True, slots=True)
class Gadget:
    """A gadget: its command, its columns and the source of its events."""

    name: str
    """As in `ig run NAME`: `trace_tcpconnect`."""
    command: tuple[str, str]
    """As in `ig trace tcpconnect`."""
    summary: str
    columns: tuple[Column, ...]
    shown: tuple[str, ...] = ()
    """The order of columns in a table, if it differs from JSON; others follow."""
    params: tuple[Param, ...] = ()
    program: str = ""
    """The C file that reports its events: its name in `ebpf/`, or the whole path of another
    package's; empty for another `source`."""
    source: str = "program"
    """`program` (events), `aggregate` (what the program counts by key, once an interval: see
    aggregate.h), `sockets` (those that exist now), or `rates` (what they do in an interval)."""
    keep_counts: bool = False
    """Whether an aggregate goes on counting after it was read; else each interval begins at 0."""
    defines: Mapping[str, int] = field(default_factory=dict)
    """C macros that select the gadget's part of its program."""
    views: tuple[CompatView, ...] = ()
    withheld: Withheld | None = None
    stages: Callable[[Mapping[str, Any]], tuple[Sequence[Stage], tuple[Column, ...]]] | None = None
    """Return the stages that follow the filter, for these options, and the columns of what leaves
    them: those that are shown. `columns` are what is filtered by."""
    event: str = ""
    """The name of its events as log records, `ig.tcp.connect` for example, where `{type}` is the
    value of that column; `ig.` and the gadget's name, with dots, if empty."""
    sums: Sums | None = None
    """What `--summary` shows, if its events are shown as they come."""

    @property
    def summable(self) -> bool:
        """Whether its command has `--summary`."""
        return bool(self.sums) and not self.stages and self.source == "program"


GROUP = "ig.gadgets"
"""The entry point group in which other packages offer gadgets."""


def program(gadget: Gadget, options: Mapping[str, Any]) -> str:
    """Return the C file that is loaded: the gadget's, or that of an option."""
    others = (each.program for each in gadget.params if each.program and options.get(each.name))
    return next(others, gadget.program)


def defines(gadget: Gadget, options: Mapping[str, Any]) -> dict[str, int | str]:
    """Return the C macros that carry a gadget's options into its program."""
    given: dict[str, int | str] = dict(gadget.defines)
    for param in gadget.params:
        value = options.get(param.name)
        if not param.define or value is None or value is False or value == []:
            continue
        given[param.define] = ",".join(map(str, value)) if isinstance(value, list) else int(value)
    return given
