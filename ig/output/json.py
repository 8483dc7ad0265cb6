"""Events as JSON (RFC 8259): one object per line, one array, or indented.

The constant text of objects is compiled once; values are encoded one column at a time and inserted
for many events at once. Text that depends only on the owner is encoded once per owner, and text
that is the same in a whole batch once per batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, Union

from ig.container import Container
from ig.gadget import Batch, Column, End, Kind
from ig.memo import Cache
from ig.output import encode
from ig.output.text import TEXTS, json_string

Read = Callable[[Batch], Sequence[Any]]
Encode = Callable[[Sequence[Any]], Sequence[str]]
Tree = dict[str, Union[Column, "Tree"]]


class Slot(NamedTuple):
    """A place in the object's text for values."""

    read: Read
    encode: Encode = list
    """Makes text of values; what they are if they are text already."""
    by_owner: bool = False
    """Whether the values depend on the events' owners only."""


class Pair(NamedTuple):
    """Two places, and the text between, for durations that are mostly equal: see encode.pairs."""

    first: Slot
    between: str
    second: Slot
    both: Encode
    by_owner: bool = False

    def parts(self, batch: Batch) -> tuple[str | Slot, ...]:
        """Return one place for both if they are equal in all of the batch."""
        if self.first.read(batch) == self.second.read(batch):
            return (Slot(self.first.read, self.both),)
        return (self.first, self.between, self.second)


Piece = str | Slot | Pair


class JsonFormatter:
    """One object a line; with `array` one array, header to footer; with `pretty` indented."""

    def __init__(
        self, columns: Sequence[Column], *, array: bool = False, pretty: bool = False
    ) -> None:
        self._objects = compile_objects(columns, ",\n" if array and not pretty else "\n")
        self._array = array
        self._pretty = pretty
        self._empty = True

    def header(self, batch: Batch | None = None) -> str:  # noqa: ARG002 - as other formatters'
        """Return what comes before the first event."""
        self._empty = True
        return "[" if self._array else ""

    def format(self, batch: Batch) -> str:
        """Return the batch's events as text; in an array newlines come before each."""
        text = self._objects(batch)
        if self._pretty:
            depth = 1 if self._array else 0
            end = ",\n" if self._array else "\n"
            objects = [pretty(json.loads(line), depth) for line in text.split("\n")[:-1]]
            text = "".join(f"{'  ' * depth}{shown}{end}" for shown in objects)
        if not self._array or not text:
            return text
        start = "\n" if self._empty else ",\n"
        self._empty = False
        return start + text.removesuffix(",\n")

    def footer(self) -> str:
        """Return what comes after the last event."""
        if not self._array:
            return ""
        return "]\n" if self._empty else "\n]\n"


def compile_objects(columns: Sequence[Column], end: str = "\n") -> Callable[[Batch], str]:
    """Return a function from a batch to each event's JSON object, without newlines but for `end`.

    The object nests as the columns' paths do, in the columns' order; columns without a path are
    left out. Raises ValueError when two columns claim the same key.
    """
    return _compile(_by_owner(list(_object(_tree(columns)))), end)


def pretty(value: Any, depth: int = 0) -> str:
    """Write what `json.loads` gave, indented by two spaces, unprintable characters escaped."""
    inner, outer = "\n" + "  " * (depth + 1), "\n" + "  " * depth
    if isinstance(value, dict) and value:
        members = [f"{_STRINGS[key]}: {pretty(item, depth + 1)}" for key, item in value.items()]
        return "{" + inner + f",{inner}".join(members) + outer + "}"
    if isinstance(value, list) and value:
        members = [pretty(item, depth + 1) for item in value]
        return "[" + inner + f",{inner}".join(members) + outer + "]"
    return scalar(value, _STRINGS)


def scalar(value: Any, strings: Cache[str, str]) -> str:
    """Write what has no members, strings by `strings`; JSON's other scalars are YAML's too."""
    if isinstance(value, str):
        return strings[value]
    return str(value) if type(value) is int else json.dumps(value)


def _tree(columns: Sequence[Column]) -> Tree:
    root: Tree = {}
    for column in columns:
        if not column.path:
            continue
        *parents, key = column.path.split(".")
        node = root
        for parent in parents:
            child = node.setdefault(parent, {})
            if isinstance(child, Column):
                raise ValueError(f"{parent} of {column.path} is another column's")
            node = child
        if key in node:
            raise ValueError(f"{column.path} is two columns' path")
        node[key] = column
    return root


def _object(tree: Tree) -> Iterator[Piece]:
    before = "{"
    members = list(tree.items())
    while members:
        key, child = members.pop(0)
        yield f"{before}{json_string(key)}:"
        if not isinstance(child, Column):
            yield from _object(child)
        elif child.end:
            yield from _end(child.end)
        elif _is_measured(child) and members and _is_measured(members[0][1]):
            yield _pair(key, child, *members.pop(0))
        else:
            yield _member(key, child)
        before = ","
    yield "}" if tree else "{}"


def _end(end: End) -> Iterator[Piece]:
    """Yield an end of a connection in its parts: each is often the same in a whole batch."""
    yield '{"addr":'
    yield Slot(end.addresses, encode.addresses())
    yield ',"port":'
    yield Slot(lambda batch: batch.fields[end.port], TEXTS[Kind.INTEGER])
    yield f',"proto":"{end.proto}","version":'
    yield Slot(lambda batch: batch.fields["version"], TEXTS[Kind.INTEGER])
    yield ',"name":'
    yield Slot(end.whose, encode.whose)
    yield "}"


def _is_measured(child: Column | Tree) -> bool:
    """Return whether it is a duration with a `_raw` number."""
    return isinstance(child, Column) and child.kind is Kind.DURATION and child.raw


def _pair(key: str, column: Column, other: str, second: Any) -> Pair:
    return Pair(
        _member(key, column),
        f",{json_string(other)}:",
        _member(other, second),
        encode.pairs(key, other),
    )


def _member(key: str, column: Column) -> Slot:
    def read(batch: Batch) -> Sequence[Any]:
        return batch.read(column)

    return Slot(column.json or read, _encoder(key, column), column.of_owner is not None)


def _encoder(key: str, column: Column) -> Encode:
    if column.members:
        return encode.objects(column.members)
    if column.json:
        return encode.values
    if column.kind is Kind.DURATION:
        return encode.durations(key, column.raw)
    if column.kind is Kind.TIMESTAMP:
        return encode.timestamps(key, column.raw)
    return _STRINGS.of if column.kind is Kind.STRING else TEXTS[column.kind]


def _compile(pieces: Sequence[Piece], end: str) -> Callable[[Batch], str]:
    def lines(batch: Batch) -> str:
        same = [""]
        varying = []
        parts = ((piece.parts(batch) if isinstance(piece, Pair) else (piece,)) for piece in pieces)
        for piece in (*chain.from_iterable(parts), end):
            if isinstance(piece, str):
                same[-1] += piece
                continue
            values = piece.read(batch)
            if _constant(values):
                same[-1] += piece.encode(values[:1])[0]
            else:
                varying.append((values, piece.encode))
                same.append("")
        return _joined(same, varying, len(batch))

    return lines


def _constant(values: Sequence[Any]) -> bool:
    """Return whether all are equal; comparing three rules out most that are not."""
    if not values:
        return False
    first = values[0]
    if values[-1] != first or values[len(values) // 2] != first:
        return False
    return values.count(first) == len(values)


def _joined(
    same: Sequence[str], varying: Sequence[tuple[Sequence[Any], Encode]], count: int
) -> str:
    """Return the text of `count` events: what is the same in each, and between it what varies."""
    event = [text for before in same for text in (before, "")][:-1]
    chunks = []
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        texts = event * size
        for place, (values, encoded) in enumerate(varying):
            texts[2 * place + 1 :: len(event)] = encoded(values[start : start + size])
        chunks.append("".join(texts))
    return "".join(chunks)


def _by_owner(pieces: Sequence[Piece]) -> list[Piece]:
    """Join runs of slots that depend on the owner only, and the text between, into one slot."""
    joined: list[Piece] = []
    run: list[Piece] = []
    for piece in pieces:
        if run if isinstance(piece, str) else piece.by_owner:
            run.append(piece)
        else:
            joined += _fragment(run)
            run = []
            joined.append(piece)
    return joined + _fragment(run)


def _fragment(run: list[Piece]) -> list[Piece]:
    if not run:
        return []
    last = max(place for place, piece in enumerate(run) if isinstance(piece, Slot))
    fragments = _OwnerFragments(_compile(run[: last + 1], "\n"))
    return [Slot(fragments.read, by_owner=True), *run[last + 1 :]]


class _OwnerFragments:
    """Encoded text, cached by the owner's identity: cheaper than hashing all its fields."""

    _LIMIT = 4096

    def __init__(self, encode: Callable[[Batch], str]) -> None:
        self._encode = encode
        self._fragments: dict[int, str] = {}
        self._owners: list[Container] = []  # kept alive: an identity is not given to another

    def read(self, batch: Batch) -> list[str]:
        keys = list(map(id, batch.owners))
        try:
            return list(map(self._fragments.__getitem__, keys))
        except KeyError:
            self._learn(dict(zip(keys, batch.owners, strict=True)))
        return list(map(self._fragments.__getitem__, keys))

    def _learn(self, owners: dict[int, Container]) -> None:
        if len(self._fragments) + len(owners) > self._LIMIT:
            self._fragments.clear()
            self._owners.clear()
        new = [owner for key, owner in owners.items() if key not in self._fragments]
        self._owners += new
        fragments = self._encode(Batch({}, new)).split("\n")[:-1]
        self._fragments.update(zip(map(id, new), fragments, strict=True))


_CHUNK = 4096
"""Events whose texts are held at once."""
_STRINGS: Cache[str, str] = Cache(json_string, 8192)
