"""The real command on a terminal of a real size, and what it prints there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import tempfile
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.host.tracer import IG
from tests.host.waiting import PATIENCE, until

_SGR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A running `ig` whose stdout is a terminal; stderr is not."""

    def __init__(
        self,
        *arguments: object,
        size: tuple[int, int] = (80, 24),
        environment: Mapping[str, str] | None = None,
        ready: bool = True,
        within: Sequence[str] = (),
    ) -> None:
        """Start `ig ARGUMENTS` on a terminal of so many columns and rows."""
        self._folder = tempfile.TemporaryDirectory(prefix="ig-")
        ready_file = Path(self._folder.name) / "ready"
        command = [*within, str(IG), *map(str, arguments)]
        command += ["--ready-file", str(ready_file)] if ready else []
        self._ours, theirs = pty.openpty()
        self._printed = b""
        self.mode = termios.tcgetattr(self._ours)
        """How the terminal was set before."""
        self.resize(*size)
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**kept, "TERM": "xterm-256color", **(environment or {})},
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if ready:
            until(lambda: ready_file.exists() or self.process.poll() is not None, "ig to be ready")

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # nobody has the other side any more
                return
            self._printed += data

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal so large."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type on the terminal."""
        os.write(self._ours, keys.encode())

    def is_as_before(self) -> bool:
        """Return whether the terminal's settings are those from before the command."""
        return termios.tcgetattr(self._ours) == self.mode

    @property
    def frame(self) -> list[str]:
        """The lines of the last whole screen that was drawn, with colours; none at first."""
        frames = [each for each in self.text.split("\x1b[H") if each.endswith("\x1b[J")]
        return re.split(r"\x1b\[K\r*\n", frames[-1].removesuffix("\x1b[K\x1b[J")) if frames else []

    @property
    def screen(self) -> list[str]:
        """The same without colours."""
        return [_SGR.sub("", line).rstrip() for line in self.frame]

    def see(self, condition: Callable[[list[str]], object]) -> list[str]:
        """Return the screen once there is one for which the condition holds."""
        until(lambda: self.screen and condition(self.screen), f"another screen than {self.frame}")
        return self.screen

    @property
    def text(self) -> str:
        """All that was printed, with its colours."""
        return self._printed.decode().replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """The whole lines that were printed, without colours."""
        return _SGR.sub("", self.text).split("\n")[:-1]

    def wait_for(self, condition: Callable[[list[str]], object]) -> list[str]:
        """Return the lines once the condition holds for them."""
        until(lambda: condition(self.lines), f"other lines than {self.lines}")
        return self.lines

    def stop(self) -> tuple[list[str], str, int]:
        """Send Ctrl-C; return the lines, stderr and the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.finished()

    def finished(self) -> tuple[list[str], str, int]:
        """Wait for the end; return the lines, stderr and the exit code."""
        said = self.process.communicate(timeout=PATIENCE)[1].decode()
        self._reader.join(PATIENCE)
        os.close(self._ours)
        self._folder.cleanup()
        return self.lines, said, self.process.returncode

    def kill(self) -> None:
        """End it, whatever it does; nothing happens if it has ended."""
        if self.process.returncode is None:
            self.process.kill()
            self.finished()
