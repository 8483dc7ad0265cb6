"""Write to stdout without ever hanging on a reader that does not read."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time
from collections.abc import Callable
from contextlib import suppress

from ig.errors import IgError
from ig.output.descriptor import waits, without_waiting

_PIPE = 1 << 20  # bytes that a pipe may hold: the most that everybody may ask for
_PORTION = 65536  # characters to encode at once: they stay in the processor's cache
_PATIENCE = 2.0  # seconds that a reader has to take the last events


class ReaderGone(Exception):
    """Whoever read stdout has closed it: nothing failed, there is just nobody left to tell."""


class Stream:
    """A file descriptor that text is written to.

    `stopping` says that the user wants to end: then a reader that does not read is given up.
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
                f"The output could not be written: {error.strerror}.",
                "What was written before is whole up to its last line.",
                "Make room, or send the output elsewhere.",
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
        self._ends = self._ends or time.monotonic() + _PATIENCE
        return time.monotonic() > self._ends
