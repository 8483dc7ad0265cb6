"""End servers that threads of the tests run."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from contextlib import suppress

from tests.host.waiting import PATIENCE


def end_serving(
    listener: socket.socket, thread: threading.Thread, connections: Iterable[socket.socket] = ()
) -> None:
    """Close a listener once the thread that accepts has ended, and connections that others read.

    A blocked accept() or recv() does not notice that its socket is closed. It may go on with the
    next socket that gets the descriptor's number, and take what is another test's.
    """
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)
    listener.close()
    for each in connections:
        with suppress(OSError):  # it is closed, or the other end has ended it
            each.shutdown(socket.SHUT_RDWR)
        each.close()
