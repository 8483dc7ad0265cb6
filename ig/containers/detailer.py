"""Ask for what events and lists leave out of a running container, beside who hears events."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from ig.containers.container import Change, Container

WAITING = 1024
"""How many containers may wait to be asked about; of more that start at once, some stay without."""


class Detailer:
    """Asks for the details of each running container that came without, in a thread of its own.

    Engines keep an inspection waiting while the container is being changed, so one that
    hears events must not ask.
    """

    def __init__(self, ask: Callable[[Container], object]) -> None:
        self._ask = ask
        self._started: queue.Queue[Container | None] = queue.Queue(WAITING)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ig-details", daemon=True)

    def start(self) -> None:
        """Begin, in a thread that does not keep the process alive."""
        self._thread.start()

    def told(self, change: Change) -> None:
        """Take note of a change."""
        container = change.container
        if (
            change.kind in ("exists", "created", "started")
            and container.running
            and not (container.pid or container.addresses)
        ):
            self.ask(container)

    def ask(self, container: Container) -> None:
        """Have the container asked about, if fewer than `WAITING` are waiting."""
        self._put(container)

    def stop(self) -> None:
        """Ask the thread to end after what it is asking now."""
        self._stopping = True
        self._put(None)

    def _put(self, container: Container | None) -> None:
        with suppress(queue.Full):
            self._started.put_nowait(container)

    def _run(self) -> None:
        while (container := self._started.get()) is not None and not self._stopping:
            self._ask(container)
