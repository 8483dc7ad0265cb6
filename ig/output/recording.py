"""Recordings: a gadget's batches in a file, as `--record` writes them and `ig replay` reads them.

A recording is lines of JSON in ASCII: a header, then batches by column, intervals and losses in
their order, and an end. Each line is written at once, so that one of a killed `ig` is whole up to
its last line. What is read is checked: anybody may have made it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ig.container import HOST, Container
from ig.errors import IgError
from ig.gadget import Batch
from ig.memo import Cache
from ig.output.stream import say

FORMAT = 1
LIMIT = 1 << 30  # bytes that a recording takes at most
_LINE = 4 << 20  # bytes of a line at most
_ROWS = 4096  # events of a line at most
_FIELDS = 256
_BYTES = 64 << 20  # bytes of the values of a line at most
_NESTED = 3  # tuples within each other at most
_TABLE = 1024  # containers after which those of before are written anew
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NUMBERS = range(-(1 << 63), 1 << 64)
_KEPT = (
    *("id", "name", "runtime", "image", "nested", "scope", "source"),
    *("pod_namespace", "pod_name", "pod_container", "pod_uid", "labels"),
)
"""What is recorded of a container: what columns show and what containers are selected by."""
DAMAGE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading and showing values raises that no gadget gives."""


class Recorder:
    """The sink that writes a new file, for its owner only. Raises IgError if it cannot."""

    interval = 0.0

    def __init__(self, path: str, header: Mapping[str, Any], limit: int = LIMIT) -> None:
        self._path, self._limit = path, limit
        self._header = {"recording": FORMAT, **header}
        self._numbers: dict[int, int] = {}
        self._containers: list[Container] = []  # kept alive: an identity is not given to another
        self._size = self._events = self._left_out = 0
        self._fresh = False  # whether the next line says that numbers of before are forgotten
        try:
            self._file = os.open(path, _NEW, 0o600)
        except OSError as error:
            remedy = "Use a new file in an existing, writable directory."
            raise IgError(f"Cannot record to {path}: {error.strerror}.", "", remedy) from error

    def open(self) -> None:
        """Write the header."""
        self._put(_encoded(self._header))

    def write(self, batch: Batch) -> None:
        """Write the events; those beyond the limit are counted, and that is said once."""
        for start in range(0, len(batch), _ROWS):
            self._write(batch.part(start, start + _ROWS))

    def _write(self, batch: Batch) -> None:
        if len(self._containers) > _TABLE:
            self._forget(0)
            self._fresh = True
        before = len(self._containers)
        line: dict[str, Any] = {"rows": len(batch), "owners": self._pack(batch.owners)}
        line["fields"] = {name: self._pack(values) for name, values in batch.fields.items()}
        line |= {"containers": list(map(_described, self._containers[before:]))}
        data = _encoded({**line, "fresh": True} if self._fresh else line)
        if not self._left_out and max(len(data) - _LINE, self._size + len(data) - self._limit) <= 0:
            self._put(data)
            self._events += len(batch)
            self._fresh = False
            return
        self._forget(before)
        if len(data) > _LINE and len(batch) > 1:
            self._write(batch.part(0, len(batch) // 2))
            self._write(batch.part(len(batch) // 2, len(batch)))
            return
        if not self._left_out:
            say(f"the recording is full after {self._events} events; others are not recorded")
        self._left_out += len(batch)

    def _forget(self, start: int) -> None:
        """Take back from `start` on what containers have a number."""
        for container in self._containers[start:]:
            del self._numbers[id(container)]
        del self._containers[start:]

    def tick(self, now: int) -> None:
        """Note the end of an interval."""
        if not self._left_out:
            self._put(_encoded({"tick": now}))

    def lost(self, counts: Mapping[str, int]) -> None:
        """Note what was lost so far."""
        self._put(_encoded({"lost": dict(counts)}))

    def close(self) -> None:
        """Write the end, and close the file; remove it if the recording has not begun."""
        if self._file < 0:
            return
        if self._size:
            self._put(_encoded({"end": self._events, "left_out": self._left_out}))
        else:
            with suppress(OSError):
                os.unlink(self._path)
        os.close(self._file)
        self._file = -1

    def _put(self, data: bytes) -> None:
        """Write a line. Raises IgError, and takes back a part of it, if there is no room."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise IgError(
                f"Cannot record to {self._path}: {error.strerror}.",
                f"The recording is complete up to {self._events} events.",
                "Free some space, or record elsewhere.",
            ) from error
        self._size += len(data)

    def _pack(self, values: Sequence[Any]) -> list[Any]:
        """Return the kind of the values and, as JSON has them, the values, or one if all are so."""
        kind = _KINDS.get(type(values[0]), "")
        if not kind:
            raise IgError(f"Values of the type {type(values[0]).__name__} cannot be recorded.")
        if kind == "container":
            values = [self._number(container) for container in values]
        elif kind == "bytes":
            width = len(values[0])
            kind = f"bytes {width}"
            values = list(map(_HEX.__getitem__, values))
        same = values.count(values[0]) == len(values)
        return [kind, values[0]] if same else [kind, None, values]

    def _number(self, container: Container) -> int:
        """Return the place of a container in the recording, 0 for the host."""
        if container is HOST:
            return 0
        number = self._numbers.get(id(container))
        if number is None:
            self._containers.append(container)
            number = self._numbers[id(container)] = len(self._containers)
        return number


_KINDS = {int: "number", bool: "number", str: "text", tuple: "tuple", bytes: "bytes"}
_KINDS |= {Container: "container"}
_HEX: Cache[bytes, str] = Cache(lambda raw: raw.rstrip(b"\0").hex())


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def _described(container: Container) -> dict[str, Any]:
    known = {name: getattr(container, name) for name in _KEPT}
    return {name: value for name, value in known.items() if value}


class Recording:
    """A recording that is read. Raises IgError for what is none, and where it is damaged."""

    def __init__(self, path: str) -> None:
        self._path, self._line = path, 0
        self._containers: list[Container] = [HOST]
        self._room = 0
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - it is read until the end of the process
            line = self._file.readline(_LINE + 1)
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

    def damaged(self, why: object) -> IgError:
        """Return the error that something in the current line is not as `ig` writes it."""
        missing = " is missing" if isinstance(why, KeyError) else ""
        found = f"Line {self._line + 1}: {str(why)[:100]}{missing}."
        return IgError(f"The recording {self._path} is damaged.", found)

    def records(self) -> Iterator[tuple[str, Any]]:
        """Yield `batch` with events, `tick` with its time, and `lost` with counts by cause.

        A recording that just stops is said to; one that stops within a line is damaged.
        """
        events = 0
        while line := self._file.readline(_LINE + 1):
            self._line += 1
            if not line.endswith(b"\n"):
                raise self.damaged("it is cut off here" if len(line) <= _LINE else "too long")
            try:
                kind, value = self._read(_mapping(json.loads(line)))
            except DAMAGE as error:
                raise self.damaged(error) from error
            if kind == "end":
                if value:
                    say(f"the recording was full: {value} events were not recorded")
                return
            events += len(value) if kind == "batch" else 0
            yield kind, value
        say(f"warning: the recording has no end (ig was killed): it stops after {events} events")

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
        if type(rows) is not int or not 0 < rows <= _ROWS or len(named) > _FIELDS:
            raise ValueError("too many events")
        if line.get("fresh"):
            del self._containers[1:]
        if len(self._containers) > _TABLE + 2 * _ROWS:
            raise ValueError("too many containers")
        self._containers += map(_container, line["containers"])
        self._room = _BYTES
        owners = self._unpack(rows, line["owners"], "container")
        return Batch({name: self._unpack(rows, field) for name, field in named.items()}, owners)

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
    known = {name: _mapping(described).get(name, "") for name in _KEPT if name != "labels"}
    labels = _mapping(described.get("labels", {}))
    _texts([*known.values(), *labels.values()])
    return Container(**known, labels=labels)
