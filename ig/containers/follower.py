"""Follow one runtime in a thread of its own: connect, listen, and connect again when it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from ig.containers.container import Change, Runtime
from ig.errors import RuntimeUnavailable
from ig.kernel.capabilities import is_missing, obstacle

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
"""Seconds between attempts to reach a runtime: doubled each time, from the first to the longest."""
STABLE = 10.0
"""Seconds that a connection must have lasted for the pauses to begin anew."""

NAMES_UNAVAILABLE = "names of new containers are unavailable until it reconnects"
"""What the loss of a runtime means for a trace."""


class Listener(Protocol):
    """Who wants to know what a runtime tells."""

    def begin(self, runtime: str) -> None:
        """Note that the runtime is asked for all it has."""

    def apply(self, runtime: str, change: Change) -> None:
        """Take in a change that the runtime told."""

    def lost(self, runtime: str) -> None:
        """Note that the runtime does not answer."""


class Follower:
    """Keeps a listener told of one runtime's containers, whatever becomes of the runtime.

    A loss is told once through `say`, and so is the return. A runtime that was not asked for by
    name and whose socket does not exist is no loss.
    """

    def __init__(
        self,
        runtime: Runtime,
        listener: Listener,
        say: Callable[[str], None],
        asked: bool,
        consequence: str = NAMES_UNAVAILABLE,
    ) -> None:
        self._runtime = runtime
        self._listener = listener
        self._say = say
        self._expected = asked
        self._consequence = consequence
        self._warned = False
        self._barred = ""
        self._stopping = threading.Event()
        self.failure: BaseException | None = None
        """The bug that ended the thread, if any."""
        self._thread = threading.Thread(target=self._run, name=f"ig-{runtime.name}", daemon=True)

    def start(self) -> None:
        """Begin, in a thread that does not keep the process alive."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stopping.set()
        self._runtime.stop()

    def join(self, timeout: float) -> None:
        """Wait for its end, `timeout` seconds at most."""
        self._thread.join(timeout)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            ended_well = False
            try:
                self._listen()
                ended_well = True
            except RuntimeUnavailable as error:
                self._tell_lost(error)
                self._listener.lost(self._runtime.name)
            except BaseException as bug:
                # Nobody must wait for it, and whoever ends the trace raises it again.
                self.failure = bug
                self._say(
                    f"{self._runtime.name}: no more updates because of a bug in ig "
                    f"({type(bug).__name__}); the traceback is printed at the end"
                )
                self._listener.lost(self._runtime.name)
                return
            if time.monotonic() - began > STABLE:
                pause = FIRST_PAUSE
                if ended_well:
                    continue
            self._stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _listen(self) -> None:
        name = self._runtime.name
        self._listener.begin(name)
        for change in self._runtime.watch(self._stopping.is_set):
            if change.kind == "synced":
                self._tell_back()
            self._listener.apply(name, change)

    def _tell_lost(self, error: RuntimeUnavailable) -> None:
        socket = self._runtime.socket
        absent = socket.startswith("/") and is_missing(socket)
        if self._stopping.is_set() or (absent and not self._expected):
            return
        # What keeps us from the socket says more than that the permission was denied; and if it
        # stops us when an engine returns, it is told though the loss was.
        barred = "" if absent else obstacle(socket)
        if self._warned and barred in ("", self._barred):
            return
        self._warned, self._barred = True, barred
        found = barred or error.found
        reason = f"{error.failed} ({found})" if found else error.failed
        self._say("; ".join(filter(None, (reason, self._consequence))))

    def _tell_back(self) -> None:
        self._expected = True
        if self._warned:
            self._warned = False
            self._say(f"{self._runtime.name} answers again at {self._runtime.socket}")
