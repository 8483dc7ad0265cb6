"""Write to a pipe, socket or terminal without waiting for its reader.

Setting O_NONBLOCK on the descriptor that we were given would set it for all who share it, the
user's shell among them.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections.abc import Callable

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
