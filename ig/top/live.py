"""The live screen: intervals are taken in one thread, and drawn in the main one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from ig.gadget import Column
from ig.output.stream import Stream
from ig.stop import Stop
from ig.top.interval import Interval
from ig.top.screen import Screen
from ig.top.terminal import Messages, Terminal
from ig.top.view import View

_REDRAWN = 1.0  # seconds after which ended rows may be due to go
_COLUMNS, _ROWS = 80, 24
"""The size of a terminal that does not know its own, which then is 0: a serial console."""


class Live:
    """A screen that shows one interval after another until the user quits."""

    def __init__(
        self,
        view: View,
        shown: Sequence[Column],
        *,
        no_color: bool,
        by_process: Callable[[bool], None],
    ) -> None:
        """`by_process` is called with whether rows are to be those of processes."""
        self._view = view
        self._screen = Screen(shown, no_color)
        self._by_process = by_process
        self._terminal = Terminal()
        self._interval: Interval | None = None
        self._drawn: Interval | None = None
        self._failure: BaseException | None = None
        self.ended = False
        """Whether the user has quit."""

    def show(self, interval: Interval) -> None:
        """Take the next interval; in any thread."""
        self._interval = interval
        self._terminal.wake()

    def run(self, sample: Callable[[], None], stream: Stream, stop: Stop) -> None:
        """Draw what `sample` shows, which is called in another thread, until either ends.

        It is to end soon once `ended` is true. Signals to stop must only be noted. Raises what
        `sample` raises.
        """
        thread = threading.Thread(target=self._sample, args=(sample,), name="intervals")
        with ExitStack() as stack:
            messages = stack.enter_context(Messages(self._terminal.wake)) if os.isatty(2) else None
            stack.enter_context(self._terminal)
            thread.start()
            try:
                self._draw_all(lambda: thread.is_alive() and not stop(), stream, messages)
            finally:
                self.ended = True
                thread.join()
        if self._failure:
            raise self._failure

    def _sample(self, sample: Callable[[], None]) -> None:
        try:
            sample()
        except BaseException as error:  # raised in the main thread
            self._failure = error
        self._terminal.wake()

    def _draw_all(
        self, goes_on: Callable[[], bool], stream: Stream, messages: Messages | None
    ) -> None:
        last: object = None
        pressed: list[str] = []
        while goes_on():
            if not self._view.paused or self._drawn is None:
                self._drawn = self._interval
            if self._drawn:
                try:
                    width, height = os.get_terminal_size(1)
                except OSError:  # the terminal has hung up
                    return
                size = width or _COLUMNS, height or _ROWS
                said = messages.last if messages else ""
                now = self._drawn.now, size, said, self._terminal.begun
                if pressed or now != last or any(row.ended for row in self._screen.rows):
                    stream.write(self._screen.frame(self._view, self._drawn, said, size))
                    last = now
            pressed = self._terminal.wait(_REDRAWN)
            for key in pressed:
                if not self._view.press(key, self._screen.rows):
                    return
            self._by_process(self._view.by == "process")
