"""Write a recording, for `--record`; `ig.output.recording` has what it consists of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ig.container import HOST, Container
from ig.errors import IgError
from ig.gadget import Batch
from ig.memo import Cache
from ig.output.recording import FORMAT, KEPT, LINE, ROWS, TABLE, TEXT, characters
from ig.output.stream import say

LIMIT = 1 << 30  # bytes that a recording takes at most
_NEW = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Recorder:
    """The sink that writes a new file, for its owner only. Raises IgError if it cannot begin.

    A later failure is reported and ends the recording only: other sinks take what follows.
    """

    interval = 0.0

    def __init__(self, path: str, header: Mapping[str, Any], limit: int = LIMIT) -> None:
        self._path, self._limit = path, limit
        self._header = {"recording": FORMAT, **header}
        self._numbers: dict[int, int] = {}
        self._containers: list[Container] = []  # kept alive: an identity is not given to another
        self._text = 0  # characters of these
        self._size = self._events = self._left_out = 0
        self._ended = False  # whether what follows is not recorded: it is full, or failed
        self._failure: IgError | None = None
        self._fresh = False  # whether the next line says that numbers of before are forgotten
        try:
            self._file = os.open(path, _NEW, 0o600)
        except OSError as error:
            remedy = "Use a new file in an existing, writable directory."
            raise IgError(f"Cannot record to {path}: {error.strerror}.", "", remedy) from error

    def open(self) -> None:
        """Write the header."""
        self._put(_encoded(self._header))
        self.check()

    def check(self) -> None:
        """Raise IgError if something could not be recorded."""
        if self._failure:
            raise self._failure

    def write(self, batch: Batch) -> None:
        """Write the events; those beyond the limit or after a failure are counted."""
        for start in range(0, len(batch), ROWS):
            self._write(batch.part(start, start + ROWS))

    def _write(self, batch: Batch) -> None:
        if len(self._containers) > TABLE or self._text > TEXT:
            self._forget(0)
            self._fresh = True
        before = len(self._containers)
        data = b"" if self._ended else self._line(batch)
        if len(data) > LINE and len(batch) > 1:
            self._forget(before)
            self._write(batch.part(0, len(batch) // 2))
            self._write(batch.part(len(batch) // 2, len(batch)))
            return
        if not self._ended and max(len(data) - LINE, self._size + len(data) - self._limit) > 0:
            say(f"the recording is full after {self._events} events; others are not recorded")
            self._ended = True
        if self._ended or not self._put(data):
            self._left_out += len(batch)
            return
        self._events += len(batch)
        self._fresh = False

    def _line(self, batch: Batch) -> bytes:
        """Return the line of a batch; empty, and note the failure, if its values cannot be one."""
        before = len(self._containers)
        try:
            line: dict[str, Any] = {"rows": len(batch), "owners": self._pack(batch.owners)}
            line["fields"] = {name: self._pack(values) for name, values in batch.fields.items()}
        except IgError as error:
            self._fail(error)
            return b""
        line |= {"containers": list(map(_described, self._containers[before:]))}
        return _encoded({**line, "fresh": True} if self._fresh else line)

    def _forget(self, start: int) -> None:
        """Take back from `start` on what containers have a number."""
        for container in self._containers[start:]:
            del self._numbers[id(container)]
            self._text -= characters(container)
        del self._containers[start:]

    def tick(self, now: int) -> None:
        """Note the end of an interval."""
        if not self._ended:
            self._put(_encoded({"tick": now}))

    def lost(self, counts: Mapping[str, int]) -> None:
        """Note what was lost so far."""
        if not self._failure:
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
        file, self._file = self._file, -1
        try:
            os.close(file)
        except OSError as error:  # a network's file system, which writes as late as that
            self._fail(self._refused(error))

    def _put(self, data: bytes) -> bool:
        """Write a line, and return true; if it fails, note that, and take back a part of it."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            self._fail(self._refused(error))
            return False
        self._size += len(data)
        return True

    def _refused(self, error: OSError) -> IgError:
        return IgError(
            f"Cannot record to {self._path}: {error.strerror}.",
            f"The recording is complete up to {self._events} events.",
            "Free some space, or record elsewhere.",
        )

    def _fail(self, error: IgError) -> None:
        """Note the first failure; report it at once if the recording has begun."""
        if not self._failure and self._size:
            say(f"warning: {error.failed} Events are printed, but no longer recorded.")
        self._failure = self._failure or error
        self._ended = True

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
            self._text += characters(container)
            number = self._numbers[id(container)] = len(self._containers)
        return number


_KINDS = {int: "number", bool: "number", str: "text", tuple: "tuple", bytes: "bytes"}
_KINDS |= {Container: "container"}
_HEX: Cache[bytes, str] = Cache(lambda raw: raw.rstrip(b"\0").hex())


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def _described(container: Container) -> dict[str, Any]:
    known = {name: getattr(container, name) for name in KEPT}
    return {name: value for name, value in known.items() if value}
