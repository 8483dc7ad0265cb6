"""Read a recording: a gadget's batches in a file, as `--record` writes them (`ig.output.recorder`).

A recording is lines of JSON in ASCII: a header, then batches by column, intervals and losses in
their order, and an end. Each line is written at once, so that one of a killed `ig` is whole up to
its last line. What is read is checked and bounded: anybody may have made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from ig.container import HOST, Container
from ig.errors import IgError
from ig.gadget import Batch
from ig.memo import Cache
from ig.output.stream import say

FORMAT = 1
LINE = 4 << 20  # bytes of a line at most
ROWS = 4096  # events of a line at most
TABLE = 1024  # containers after which those of before are written anew
TEXT = 8 << 20  # characters of containers after which those of before are written anew
KEPT = (
    *("id", "name", "runtime", "image", "nested", "scope", "source"),
    *("pod_namespace", "pod_name", "pod_container", "pod_uid", "service", "labels"),
)
"""What is recorded of a container: what columns show and what containers are selected by."""
DAMAGE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading and showing values raises that no gadget gives."""
_FIELDS = 256
_BYTES = 64 << 20  # bytes of the values of a line at most
_NESTED = 3  # tuples within each other at most
_NUMBERS = range(-(1 << 63), 1 << 64)
_CELL = 16  # bytes of a list's item, in the events of a line and in those of an interval
_COLUMNS = 16  # of each event, beside its fields: what is computed to sort and print it
_OBJECT = 8  # bytes of objects that a byte of a line becomes, about


class Damaged(IgError):
    """Something in a recording is not as `ig` writes it."""


def characters(container: Container) -> int:
    """Return how many characters of a container are recorded."""
    labels = container.labels
    texts = [getattr(container, name) for name in KEPT if name != "labels"]
    return sum(map(len, (*texts, *labels, *labels.values())))


class Recording:
    """A recording that is read. Raises IgError for what is none, and where it is damaged."""

    def __init__(self, path: str) -> None:
        self._path, self._line = path, 0
        self._containers: list[Container] = [HOST]
        self._names: AbstractSet[str] = set()
        self._text = self._room = 0
        self.weight = 0
        """The bytes of memory that the last events take, roughly, until they are printed."""
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - it is read until the end of the process
            line = self._file.readline(LINE + 1)
        except OSError as error:
            raise IgError(f"Cannot read {path}: {error.strerror}.") from error
        try:
            self.header = _mapping(json.loads(line))
            form = self.header["recording"]
        except DAMAGE as error:
            remedy = "Recordings are made by --record FILE of a trace or a snapshot."
            raise IgError(f"{path} is not a recording of ig.", "", remedy) from error
        if form != FORMAT:
            found = f"Its format is {form!r:.32}; this version of ig reads {FORMAT}."
            raise IgError(f"{path} cannot be read.", found)

    def damaged(self, why: object) -> Damaged:
        """Return the error that something in the current line is not as `ig` writes it."""
        missing = " is missing" if isinstance(why, KeyError) else ""
        found = f"Line {self._line + 1}: {str(why)[:100]}{missing}."
        return Damaged(f"The recording {self._path} is damaged.", found)

    def records(self) -> Iterator[tuple[str, Any]]:
        """Yield `batch` with events, `tick` with its time, and `lost` with counts by cause.

        A recording that just stops is said to; one that stops within a line is damaged.
        """
        events = 0
        while line := self._file.readline(LINE + 1):
            self._line += 1
            if not line.endswith(b"\n"):
                raise self.damaged("it is cut off here" if len(line) <= LINE else "too long")
            try:
                kind, value = self._read(_mapping(json.loads(line)))
            except DAMAGE as error:
                raise self.damaged(error) from error
            if kind == "end":
                if value:
                    say(f"the recording was full: {value} events were not recorded")
                return
            if kind == "batch":
                events += len(value)
                self.weight += _OBJECT * len(line)
            yield kind, value
        why = "ig was killed, or had no room"
        say(f"warning: the recording has no end ({why}): it stops after {events} events")

    def _read(self, line: Mapping[str, Any]) -> tuple[str, Any]:
        if "rows" in line:
            return "batch", self._batch(line)
        if "lost" in line:
            counts = _mapping(line["lost"])
            return "lost", dict(zip(map(str, counts), _numbers(list(counts.values())), strict=True))
        if "end" in line:
            return "end", _numbers([line["left_out"]])[0]
        return "tick", _numbers([line["tick"]])[0]

    def _batch(self, line: Mapping[str, Any]) -> Batch:
        rows, named = line["rows"], _mapping(line["fields"])
        if type(rows) is not int or not 0 < rows <= ROWS or len(named) > _FIELDS:
            raise ValueError("too many events")
        if line.get("fresh"):
            del self._containers[1:]
            self._text = 0
        described = line["containers"]
        if len(self._containers) + len(described) > TABLE + 2 * ROWS:
            raise ValueError("too many containers")
        added = list(map(_container, described))
        self._text += sum(map(characters, added))
        if self._text > TEXT + LINE:
            raise ValueError("its containers' names and labels are too long")
        self._containers += added
        self._room = _BYTES
        owners = self._unpack(rows, line["owners"], "container")
        fields = {name: self._unpack(rows, field) for name, field in named.items()}
        self._names = self._names or fields.keys()
        if fields.keys() != self._names:
            raise ValueError("its events have other fields than those before")
        self.weight = _CELL * rows * (len(fields) + _COLUMNS) + _BYTES - self._room
        return Batch(fields, owners)

    def _unpack(self, rows: int, field: list[Any], wanted: str = "") -> list[Any]:
        kind, width = field[0].partition(" ")[::2]
        if wanted not in ("", kind):
            raise ValueError(f"a {kind} is not a {wanted}")
        packed = [field[1]] if len(field) == 2 else field[2]
        if type(packed) is not list or (len(field) > 2 and len(packed) != rows):
            raise ValueError("a field has too few or too many values")
        values = _UNPACK[kind](packed) if kind in _UNPACK else self._special(kind, width, packed)
        return values if len(field) > 2 else values * rows

    def _special(self, kind: str, width: str, packed: list[Any]) -> list[Any]:
        if kind == "container":
            if min(_numbers(packed), default=0) < 0:
                raise ValueError("a container's number is negative")
            return list(map(self._containers.__getitem__, packed))
        if kind != "bytes" or not width.isdecimal() or len(width) > 8:
            raise ValueError("a field is of an unknown kind")
        self._room -= len(packed) * int(width)
        if self._room < 0:
            raise ValueError("its values are too long")
        cache: Cache[str, bytes] = Cache(lambda text: bytes.fromhex(text).ljust(int(width), b"\0"))
        return cache.of(_texts(packed))


def _mapping(value: Any) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise ValueError("an object is missing")
    return value


def _texts(values: list[Any], types: tuple[type, ...] = (str,)) -> list[Any]:
    if not set(map(type, values)).issubset(types):
        raise ValueError("a value is of another type than its field's")
    return values


def _numbers(values: list[Any]) -> list[Any]:
    if any(each not in _NUMBERS for each in _texts(values, (int, bool))):
        raise ValueError("a number is too large")
    return values


def _tuples(values: list[Any], depth: int = _NESTED) -> list[Any]:
    if any(type(each) is not list for each in values):
        raise ValueError("a list is missing")
    return [tuple(_nested(each, depth) for each in value) for value in values]


def _nested(value: Any, depth: int) -> Any:
    if type(value) is list and depth:
        return _tuples([value], depth - 1)[0]
    return _texts([value])[0] if type(value) is str else _numbers([value])[0]


_UNPACK: Mapping[str, Callable[[list[Any]], list[Any]]]
_UNPACK = {"number": _numbers, "text": _texts, "tuple": _tuples}


def _container(described: Any) -> Container:
    known = {name: _mapping(described).get(name, "") for name in KEPT if name != "labels"}
    labels = _mapping(described.get("labels", {}))
    _texts([*known.values(), *labels.values()])
    return Container(**known, labels=labels)
