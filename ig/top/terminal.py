"""A terminal while a screen is drawn on it: its keys and signals, and how it was before.

Source: termios(3), xterm's control sequences: 1049 is the alternate screen, 25 the cursor.
"""

from __future__ import annotations

import io
import os
import re
import select
import signal
import sys
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ig.output.stream import without_waiting

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_LOCAL, _CONTROL = 3, 6  # places in what tcgetattr() returns
_ESCAPE = 0.05  # seconds after which a lone escape character is the key
_SIGNALS = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
_NAMED = {
    b"A": "up",
    b"B": "down",
    b"C": "right",
    b"D": "left",
    b"H": "home",
    b"F": "end",
    b"1~": "home",
    b"4~": "end",
    b"5~": "pageup",
    b"6~": "pagedown",
    b"7~": "home",
    b"8~": "end",
}
_SEQUENCE = re.compile(rb"\x1b(?:\[|O)([0-9;]*)([A-Za-z~])")
_BEGUN = re.compile(rb"\x1b(?:(?:\[|O)[0-9;]*)?")
_CONTROLS = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x1b": "escape"}


class Terminal:
    """Stdin and stdout, which are a terminal, between `with` and its end.

    Signals that stop the process must be noted only meanwhile (see Stop.noted): they end `wait`.
    """

    def __init__(self) -> None:
        self._write = without_waiting(1)
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._typed = b""
        self._suspended = self._continued = False
        self.begun = 0
        """How often the screen was cleared: what is on it has to be drawn again."""
        self._mode: list[Any] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Terminal:
        self._wakeup = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._signalled)
        self._mode = termios.tcgetattr(0)
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        woken, wake = self._woken, self._wake
        self._woken = self._wake = -1
        os.close(woken)
        os.close(wake)

    def wake(self) -> None:
        """End `wait` in another thread, or the next call of it."""
        with suppress(OSError):  # full, so it ends anyway; or closed
            os.write(self._wake, b"\0")

    def wait(self, seconds: float) -> list[str]:
        """Wait for keys, signals or `wake`; return the keys (see `keys_in`)."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        ready = dict(poll.poll((_ESCAPE if self._typed else seconds) * 1000))
        with suppress(BlockingIOError):
            if self._woken in ready:
                os.read(self._woken, 4096)
        if self._suspended:
            self._suspend()
        elif self._continued:  # after a stop that cannot be handled
            self._begin()
        if 0 not in ready:
            typed, self._typed = self._typed, b""
            return keys_at_end(typed)
        data = os.read(0, 1024)
        if not data:  # it was hung up
            return ["q"]
        found, self._typed = keys_in(self._typed + data)
        return found

    def _begin(self) -> None:
        self._suspended = self._continued = False
        mode = termios.tcgetattr(0)
        mode[_LOCAL] &= ~(termios.ICANON | termios.ECHO)
        mode[_CONTROL][termios.VMIN], mode[_CONTROL][termios.VTIME] = 1, 0
        termios.tcsetattr(0, termios.TCSANOW, mode)
        self._put(_ENTER)
        self.begun += 1

    def _end(self) -> None:
        self._put(_LEAVE)
        with suppress(termios.error):  # it was hung up
            termios.tcsetattr(0, termios.TCSANOW, self._mode)

    def _put(self, text: str) -> None:
        """Write without waiting: a terminal that is held up (Ctrl-S) may not hold up the end."""
        with suppress(OSError):
            self._write(memoryview(text.encode()))

    def _signalled(self, number: int, _: object) -> None:
        self._suspended |= number == signal.SIGTSTP
        self._continued |= number == signal.SIGCONT

    def _suspend(self) -> None:
        """Stop as the user wants (Ctrl-Z), with the terminal as it was, until continued."""
        self._end()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._begin()


_KEPT = 100  # messages


class Messages(io.TextIOBase):
    """Replaces `sys.stderr` while it is the terminal that is drawn on; printed at the end."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._on_change = on_change

    def __enter__(self) -> Messages:
        self._stderr, sys.stderr = sys.stderr, self
        return self

    def __exit__(self, *_: object) -> None:
        sys.stderr = self._stderr
        for line in self._lines:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def write(self, text: str) -> int:
        """Keep the lines of a text; the oldest are dropped if there are too many."""
        self._lines.extend(text.splitlines())
        self._on_change()
        return len(text)

    @property
    def last(self) -> str:
        """The last line, empty if there is none."""
        return self._lines[-1] if self._lines else ""


def keys_in(data: bytes) -> tuple[list[str], bytes]:
    """Return the keys in what was read, and what is the beginning of another.

    A key is a printable character, or `up`, `down`, `left`, `right`, `home`, `end`, `pageup`,
    `pagedown`, `enter`, `escape` or `backspace`. Others are left out.
    """
    keys: list[str] = []
    while data:
        match = _SEQUENCE.match(data)
        if match:
            name = match[2] if match[2] != b"~" else match[1] + match[2]
            keys += [_NAMED[name]] if name in _NAMED else []
            data = data[match.end() :]
            continue
        if _BEGUN.fullmatch(data):
            return keys, data
        size = _size(data[0])
        if len(data) < size:
            return keys, data
        text = data[:size].decode("utf-8", "replace")
        keys += [key] if (key := _CONTROLS.get(text, text)) and key.isprintable() else []
        data = data[size:]
    return keys, b""


def keys_at_end(data: bytes) -> list[str]:
    """Return the key of a beginning after which nothing came: the escape key alone."""
    return ["escape"] if data[:1] == b"\x1b" else []


def _size(first: int) -> int:
    """Return the bytes of a character in UTF-8 by its first one."""
    return 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
