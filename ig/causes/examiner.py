"""Look at this host for many failures: in a thread of its own, once for those that are alike."""

from __future__ import annotations

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from queue import Empty, Full, Queue

from ig.causes.cause import Attempt
from ig.causes.evidence import Evidence
from ig.causes.find import Causes
from ig.causes.places import Unreachable
from ig.errors import IgError

_FRESH = 1.0  # seconds for which an answer serves attempts that are alike
_MOST = 256  # questions that wait
_MOST_KEPT = 4096  # answers
_POLL = 0.2  # seconds in which the thread notices that it is to end
_AT_END = 1.0  # seconds that the last question may still take


@dataclass(slots=True)
class Answer:
    """What was found about an attempt, once it is `ready`."""

    attempt: Attempt
    places: tuple[int, ...]
    """Network namespaces whose owners are asked for."""
    asked: float
    ready: bool = False
    evidence: Evidence | None = None
    """None where the host was not looked at."""

    def owner(self, netns: int) -> str:
        """Return whose a network namespace is, in words."""
        words = self.evidence.owners.get(netns) if self.evidence else None
        return words or f"network namespace {netns}"


class Examiner:
    """Answers questions about attempts, in their order. Close it to end its thread."""

    def __init__(self, causes: Causes) -> None:
        self._causes = causes
        self._questions: Queue[Answer] = Queue(_MOST)
        self._answers: OrderedDict[object, Answer] = OrderedDict()
        self._ending = threading.Event()
        self.bug = ""
        """The first error that is a bug, in words; "" if there was none. Answers go on."""
        self._thread = threading.Thread(target=self._run, name="ig-causes", daemon=True)
        self._thread.start()

    def ask(self, attempt: Attempt, places: Iterable[int]) -> Answer:
        """Return the answer, which is `ready` later; without evidence if too many wait.

        One about an attempt to the same destination, with the same outcome, serves for a moment.
        """
        wanted = tuple(sorted({attempt.netns, *places} - {0}))
        key = (attempt.address, attempt.port, attempt.outcome, attempt.error, wanted)
        now = time.monotonic()
        known = self._answers.get((attempt.netns, key))
        if known and now - known.asked < _FRESH:
            return known
        answer = Answer(attempt, wanted, now)
        try:
            self._questions.put_nowait(answer)
        except Full:
            answer.ready = True
            return answer
        self._answers[attempt.netns, key] = answer
        self._answers.move_to_end((attempt.netns, key))
        while len(self._answers) > _MOST_KEPT:
            self._answers.popitem(last=False)
        return answer

    def close(self) -> None:
        """End the thread after the question that it is at, or leave it at that after a second."""
        self._ending.set()
        self._thread.join(_AT_END)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                answer = self._questions.get(timeout=_POLL)
            except Empty:
                continue
            try:
                self._answer(answer)
            except (OSError, IgError, Unreachable):
                pass  # it stays without evidence, which is counted
            except Exception as error:
                self.bug = self.bug or _words(error)
            answer.ready = True

    def _answer(self, answer: Answer) -> None:
        answer.evidence = self._causes.examine(answer.attempt, places=answer.places)


def _words(error: Exception) -> str:
    """Return an error, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
    return f"{type(error).__name__}: {error} ({place})"
