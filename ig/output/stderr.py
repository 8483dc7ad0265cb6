"""Tell the user something on stderr, without ever waiting for somebody to read it."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
import unicodedata

from ig.output.descriptor import without_waiting

_ROOM = 1 << 20  # bytes that wait for a reader; what comes beyond is dropped and counted


class Stderr(io.TextIOBase):
    """Stands for `sys.stderr`: keeps what its reader has no room for, and counts what it drops.

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
        """Write the text, or as much as there is room for now. Never waits, never fails."""
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
        """Write what waits, as far as there is room now."""
        with self._lock:
            try:
                while self._pending:
                    self._pending = self._pending[self._write(memoryview(self._pending)) :]
                    if self._dropped and not self._pending:
                        count, self._dropped = self._dropped, 0
                        told = f"ig: {count} lines for stderr were dropped: it was not read.\n"
                        self._pending = told.encode()
            except BlockingIOError:
                pass
            except OSError:  # nobody reads any more, or the disk is full
                self._pending = b""

    def drain(self, seconds: float) -> None:
        """Write what waits, and wait so many seconds at most for somebody to read it."""
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


def say(line: str) -> None:
    """Tell the user something on stderr, whatever it contains made harmless."""
    safe = "".join(
        c
        if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
        else f"\\u{ord(c):04x}"
        for c in line
    )
    sys.stderr.write(f"ig: {safe}\n")
    sys.stderr.flush()
