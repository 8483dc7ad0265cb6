"""Follow each runtime: connect, listen, ask for what events leave out, and connect again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ig.container import Change, Container, Runtime
from ig.errors import RuntimeUnavailable
from ig.kernel.capabilities import is_missing, obstacle

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
"""Seconds between attempts to reach a runtime: doubled each time, from the first to the longest."""
STABLE = 10.0
"""Seconds that a connection must have lasted for the pauses to begin anew."""

FIRST_RETRY = 0.5
LONGEST_RETRY = 60.0
"""Seconds between questions about one container that are not answered: doubled each time."""
RUNTIME_PAUSE = 5.0
"""Seconds at most for which a runtime that gives no answer is not asked about any container."""
WAITING = 65536
"""How many containers may wait to be asked about, of more the latest."""

_Key = tuple[str, str, str]

NAMES_UNAVAILABLE = "names of new containers are unavailable until it reconnects"
"""What the loss of a runtime means for a trace."""


class Listener(Protocol):
    """Receives what runtimes report, each by the name of its source."""

    def begin(self, source: str) -> None:
        """Note that the runtime is asked for all it has."""

    def apply(self, source: str, change: Change) -> None:
        """Apply a change that the runtime reported."""

    def lost(self, source: str) -> None:
        """Note that the runtime does not answer."""


class Follower:
    """Reports one runtime's containers to a listener, whatever becomes of the runtime.

    A loss is reported once through `say`, and so is the return. A runtime that was not asked for by
    name and whose socket does not exist is no loss.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: str,
        listener: Listener,
        say: Callable[[str], None],
        *,
        asked: bool,
        consequence: str = NAMES_UNAVAILABLE,
        longest_pause: float = LONGEST_PAUSE,
    ) -> None:
        self._runtime = runtime
        self._source = source
        self._listener = listener
        self._say = say
        self._expected = asked
        self._consequence = consequence
        self._longest_pause = longest_pause
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
        if self._thread.ident is not None:  # it was started
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
                self._report_lost(error)
                self._listener.lost(self._source)
            except BaseException as bug:
                # Nobody must wait for it, and whoever ends the trace raises it again.
                self.failure = bug
                self._say(
                    f"{self._runtime.name}: no more updates because of a bug in ig "
                    f"({type(bug).__name__}); the traceback is printed at the end"
                )
                self._listener.lost(self._source)
                return
            if time.monotonic() - began > STABLE:
                pause = FIRST_PAUSE
                if ended_well:
                    continue
            self._stopping.wait(pause)
            pause = min(pause * 2, self._longest_pause)

    def _listen(self) -> None:
        self._listener.begin(self._source)
        for change in self._runtime.watch(self._stopping.is_set):
            if change.kind in ("synced", "resumed"):
                self._report_back()
            self._listener.apply(self._source, change)

    def _report_lost(self, error: RuntimeUnavailable) -> None:
        socket = self._runtime.socket
        absent = socket.startswith("/") and is_missing(socket)
        if self._stopping.is_set() or (absent and not self._expected):
            return
        # What keeps us from the socket says more than that the permission was denied; and if it
        # stops us when an engine returns, it is reported though the loss was.
        barred = "" if absent else obstacle(socket)
        if self._warned and barred in ("", self._barred):
            return
        self._warned, self._barred = True, barred
        found = barred or error.found
        reason = f"{error.failed} ({found})" if found else error.failed
        self._say("; ".join(filter(None, (reason, self._consequence))))

    def _report_back(self) -> None:
        self._expected = True
        if self._warned:
            self._warned = False
            self._say(f"{self._runtime.name} answers again at {self._runtime.socket}")


@dataclass(slots=True)
class _Question:
    container: Container
    due: float = 0.0
    pause: float = 0.0
    """Seconds until the next attempt if this one fails too; 0 before the first."""


def _key(container: Container) -> _Key:
    return (container.engine, container.scope, container.id)


def _lacks_addresses(container: Container) -> bool:
    """Return whether it is a pod's, whose address containerd reports only when it is asked."""
    return bool(container.pod_uid and not container.addresses)


class Detailer:
    """Asks for the details of each running container that came without, in a thread of its own.

    Engines keep an inspection waiting while the container is being changed, so one that
    hears events must not ask. What is not answered is asked again until the container ends.
    """

    def __init__(
        self, ask: Callable[[Container], bool], idle: Callable[[], None] = lambda: None
    ) -> None:
        """`ask` returns whether there was an answer; `idle` is called when all were asked once."""
        self._ask = ask
        self._idle = idle
        self._questions: dict[_Key, _Question] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self.failure: BaseException | None = None
        """The bug that ended the thread, if any."""
        self._thread = threading.Thread(target=self._run, name="ig-details", daemon=True)

    def start(self) -> None:
        """Begin, in a thread that does not keep the process alive."""
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether there is a container that was not asked about yet."""
        with self._changed:
            return self.failure is None and any(
                not question.pause for question in self._questions.values()
            )

    def on_change(self, change: Change) -> None:
        """Apply a change."""
        container = change.container
        if threading.current_thread() is self._thread:
            return  # It is what has just been answered.
        with self._changed:
            self._questions.pop(_key(container), None)
        if container.running and (
            container.moved or not container.pid or _lacks_addresses(container)
        ):
            self.ask(container)

    def ask(self, container: Container) -> None:
        """Have the container asked about."""
        with self._changed:
            self._questions[_key(container)] = _Question(container)
            if len(self._questions) > WAITING:
                del self._questions[next(iter(self._questions))]
            self._changed.notify()

    def stop(self) -> None:
        """Ask the thread to end after what it is asking now."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _run(self) -> None:
        try:
            while (next_one := self._next()) is not None:
                key, question = next_one
                self._note(key, question, self._ask(question.container))
                if not self.busy:
                    self._idle()
        except BaseException as bug:
            self.failure = bug
            self._idle()

    def _next(self) -> tuple[_Key, _Question] | None:
        """Wait for the next container to ask about; None when stopped."""
        with self._changed:
            while not self._stopping:
                now, earliest = time.monotonic(), threading.TIMEOUT_MAX
                for key, question in self._questions.items():
                    due = self._due(key, question)
                    if due <= now:
                        return key, question
                    earliest = min(earliest, due - now)
                self._changed.wait(earliest)
        return None

    def _due(self, key: _Key, question: _Question) -> float:
        return max(question.due, self._failures.get(key[0], (0, 0.0))[1])

    def _note(self, key: _Key, question: _Question, answered: bool) -> None:
        runtime, now = key[0], time.monotonic()
        with self._changed:
            if answered:
                self._failures.pop(runtime, None)
                if self._questions.get(key) is question:
                    del self._questions[key]
                return
            count = self._failures.get(runtime, (0, 0.0))[0] + 1
            pause = min(FIRST_RETRY / 4 * 2 ** min(count, 10), RUNTIME_PAUSE)
            self._failures[runtime] = (count, now + pause)
            question.pause = min(question.pause * 2 or FIRST_RETRY, LONGEST_RETRY)
            question.due = now + question.pause
