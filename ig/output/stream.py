"""Write to stdout and stderr without waiting for a reader: a pipe, a socket or a terminal.

Setting O_NONBLOCK on the descriptor that we were given would set it for all who share it, the
user's shell among them.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import select
import socket
import stat
import sys
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper

from ig.errors import IgError

STDOUT, STDERR = 1, 2

Write = Callable[[memoryview], int]
"""Write some bytes and return how many; raise BlockingIOError if there is no room for any."""

_PIECE = 4096  # PIPE_BUF: what a pipe that polls as writable takes without blocking


def waits(descriptor: int) -> bool:
    """Return whether writing there may have to wait for a reader."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def without_waiting(descriptor: int) -> Write:
    """Return a function that writes without waiting; to a file, it waits for the disk."""
    if not waits(descriptor):
        return lambda data: os.write(descriptor, data)
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        own = socket.socket(fileno=os.dup(descriptor))
        return lambda data: own.send(data, socket.MSG_DONTWAIT)
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        opened = os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:  # another user's, as after `su`; or there is no /proc
        return _Polled(descriptor)
    return lambda data: os.write(opened, data)


class _Polled:
    """Writes what there is room for, if nobody else takes it at the same moment."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._whole = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def __call__(self, data: memoryview) -> int:
        if self._whole:
            try:
                return os.pwritev(self._descriptor, [data], -1, os.RWF_NOWAIT)
            except BlockingIOError:
                raise
            except OSError as error:
                # Pipes can since 6.5 (afed6271f5b0).
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._whole = False
        if not self._poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self._descriptor, data[:_PIECE])


_PIPE = 1 << 20  # bytes that a pipe may hold: the most that everybody may ask for
_PORTION = 65536  # characters to encode at once: they stay in the processor's cache
_FINAL_WRITE_TIMEOUT = 2.0  # seconds that a reader has to take the last events


class ReaderGone(Exception):
    """The reader of stdout has closed it; this is not a failure."""


class Stream:
    """A file descriptor that text is written to.

    `stopping` returns whether the user wants to stop: then a reader that does not read is given up.
    """

    def __init__(self, descriptor: int, stopping: Callable[[], bool]) -> None:
        self._put = without_waiting(descriptor)
        self._stopping = stopping
        self._ends = 0.0  # when a reader that does not read is given up; 0 until `stopping`
        self._blocks = waits(descriptor)
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            # Else writer and reader take turns every 64 KiB, and a busy host makes each turn long.
            with suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
        self.waited = 0.0
        """Seconds that were spent on waiting for the reader, so far."""
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._gone = select.poll()
        self._gone.register(descriptor, 0)

    def write(self, text: str) -> None:
        """Write all of it. Raises ReaderGone, and IgError if the file takes no more."""
        try:
            for start in range(0, len(text), _PORTION):
                portion = text[start : start + _PORTION]
                data = memoryview(portion.encode("utf-8", "backslashreplace"))
                while data:
                    try:
                        data = data[self._put(data) :]
                    except BlockingIOError:
                        self._wait_writable()
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise IgError(
                f"Cannot write the output: {error.strerror}.",
                "The output is complete up to its last line.",
                "Free some space, or redirect the output elsewhere.",
            ) from error

    def rest(self, seconds: float) -> None:
        """Wait that long. Raises ReaderGone as soon as nobody reads any more."""
        self._given_up()
        for _, event in self._gone.poll(seconds * 1000):
            if event & select.POLLERR and self._blocks:
                raise ReaderGone
            time.sleep(seconds)  # something else than a pipe, that always reports

    def _wait_writable(self) -> None:
        began = time.monotonic()
        while not self._poll.poll(100):
            if self._given_up():
                raise ReaderGone
        if self._given_up():  # also one who reads so slowly that there is always some room
            raise ReaderGone
        self.waited += time.monotonic() - began

    def _given_up(self) -> bool:
        """Return whether the user has wanted to end for so long that the rest is not written."""
        if not self._stopping():
            return False
        self._ends = self._ends or time.monotonic() + _FINAL_WRITE_TIMEOUT
        return time.monotonic() > self._ends


_ROOM = 1 << 20  # bytes that wait for a reader; what comes beyond is dropped and counted


class Stderr(io.TextIOBase):
    """Replaces `sys.stderr`: buffers what the reader has not read, and counts what it drops.

    Any thread may write.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._write = without_waiting(descriptor)
        self._lock = threading.RLock()
        self._pending = b""
        self._dropped = 0

    def write(self, text: str) -> int:
        """Write the text, or as much as there is room for now. Never waits, never fails.

        Raises TypeError for bytes, as text streams do: Typer tells them apart by that.
        """
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            for line in text.splitlines(keepends=True):
                data = line.encode(self.encoding, self.errors)
                if len(self._pending) + len(data) > _ROOM:
                    self._dropped += 1
                else:
                    self._pending += data
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write buffered text, as far as there is room now."""
        with self._lock:
            try:
                while self._pending:
                    self._pending = self._pending[self._write(memoryview(self._pending)) :]
                    if self._dropped and not self._pending:
                        count, self._dropped = self._dropped, 0
                        told = f"ig: {count} messages dropped: stderr was not read\n"
                        self._pending = told.encode()
            except BlockingIOError:
                pass
            except OSError:  # nobody reads any more, or the disk is full
                self._pending = b""

    def drain(self, seconds: float) -> None:
        """Write buffered text, and wait that many seconds at most for the reader."""
        ends = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        self.flush()
        while self._pending and (left := ends - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self.flush()

    def fileno(self) -> int:
        """Return the descriptor that is written to."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return true."""
        return True


_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_as_json = False


def log_json() -> None:
    """Print messages as JSON from now on, an object a line: time, level and message."""
    global _as_json
    _as_json = True


def say(*lines: str, level: str = "info") -> None:
    """Print a message on stderr; unprintable characters and ends of lines within are escaped."""
    safe = "\n".join(map(_escaped, lines))
    sys.stderr.write(_json(safe, level) if _as_json else f"ig: {safe}\n")
    sys.stderr.flush()


class Once:
    """Passes each message on once, also if its numbers change."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, line: str) -> None:
        """Pass on a message unless it was before."""
        kind = re.sub(r"\d+", "", line)
        if kind not in self._said:
            self._said.add(kind)
            self._say(line)


def _json(message: str, level: str) -> str:
    for prefix in ("warning", "error"):
        if message.startswith(f"{prefix}: "):
            level, message = prefix, message.removeprefix(f"{prefix}: ")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps({"time": now, "level": level, "message": message}) + "\n"


def _escaped(line: str) -> str:
    return "".join(
        c if c == "\t" or unicodedata.category(c) not in _UNPRINTABLE else f"\\u{ord(c):04x}"
        for c in line
    )


def fill_standard_descriptors() -> list[int]:
    """Open /dev/null where 0 to 2 are closed, so that no other file gets there; return these."""
    closed = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            closed.append(descriptor)
    return closed


def make_standard_streams() -> Stderr:
    """Make stdout UTF-8 in every locale, and stderr non-blocking; return the latter."""
    if not os.environ.get("IG_DEBUG"):
        warnings.simplefilter("ignore")  # of libraries: nothing that a user could do about
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stderr = told = Stderr(STDERR)
    return told
