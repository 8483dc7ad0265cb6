"""What a service needs: notifications to systemd, and a log file that can be rotated.

Source: sd_notify(3).
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from ig.errors import IgError
from ig.output.stream import STDERR, Stderr, say

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_MODE = 0o640
_TIMEOUT = 2.0  # seconds


def notify(state: str) -> None:
    """Send systemd a state (`READY=1`) if NOTIFY_SOCKET is set; a failure is reported."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.settimeout(_TIMEOUT)
            manager.sendto(state.encode(), address.replace("@", "\0", 1))
    except OSError as error:
        say(f"warning: cannot notify the service manager: {error.strerror or error}")


class LogFile:
    """The file that stderr is written to; SIGHUP opens it anew, after it was renamed."""

    def __init__(self, path: str) -> None:
        """Open the file, or make it. Raises IgError."""
        self.path = os.path.abspath(path)
        try:
            self._open()
        except OSError as error:
            raise IgError(
                f"Cannot open the log file {path}.",
                error.strerror or str(error),
                "Use a file in an existing, writable directory.",
            ) from error
        sys.stderr = Stderr(STDERR)  # the old one may hold on to the pipe that was there

    def _open(self) -> None:
        opened = os.open(self.path, _APPEND, _MODE)
        os.dup2(opened, STDERR)
        os.close(opened)

    def reopen(self) -> None:
        """Open the file anew; if that fails, the messages go on to the old one."""
        try:
            self._open()
        except OSError as error:
            say(f"warning: cannot reopen the log file: {error.strerror}")


def on_hangup(file: LogFile | None) -> None:
    """Reopen the log file at SIGHUP instead of ending; without a file, do nothing then."""
    signal.signal(signal.SIGHUP, lambda *_: file.reopen() if file else None)
