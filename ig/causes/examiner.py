"""Look at this host for many failures: in a thread of its own, once for those that are alike."""

from __future__ import annotations

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from queue import Empty, Full, Queue

from ig.causes.cause import Attempt
from ig.causes.evidence import Evidence
from ig.causes.find import Causes
from ig.causes.places import Unreachable
from ig.errors import IgError

_FRESH = 1.0  # seconds for which an answer serves attempts that are alike
_MOST = 256  # questions that wait
_MOST_ALIKE = 16384  # attempts that wait for the answer about one that is alike
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
    alike: list[Answer] = field(default_factory=list)
    """Those that this one also serves, unless the destination is translated."""

    @property
    def serves_others(self) -> bool:
        """Whether it serves attempts alike: each may be translated to another destination."""
        return not self.evidence or not (self.evidence.way.translations or self.evidence.doubt)

    def owner(self, netns: int) -> str:
        """Return whose a network namespace is, in words."""
        words = self.evidence.owners.get(netns) if self.evidence else None
        return words or f"network namespace {netns}"


class Examiner:
    """Answers questions about attempts, in their order. Close it to end its thread."""

    def __init__(self, causes: Causes) -> None:
        self._causes = causes
        self._questions: Queue[Answer] = Queue(_MOST)
        self._answers: OrderedDict[object, Answer] = OrderedDict()  # those asked for last
        self._lock = threading.Lock()  # of `ready` and `alike`
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
        key = (replace(attempt, source_port=0, moment=0, latency=0), wanted)
        now = time.monotonic()
        while self._answers and now - next(iter(self._answers.values())).asked >= _FRESH:
            self._answers.popitem(last=False)
        answer = Answer(attempt, wanted, now)
        with self._lock:
            known = self._answers.get(key)
            if known and known.ready and known.serves_others:
                return known
            if known and not known.ready:
                answer.ready = len(known.alike) >= _MOST_ALIKE
                if not answer.ready:
                    known.alike.append(answer)
                return answer
        if self._put(answer):
            self._answers[key] = answer
            self._answers.move_to_end(key)
        return answer

    def _put(self, answer: Answer) -> bool:
        """Have a question answered; return whether there was room for it."""
        try:
            self._questions.put_nowait(answer)
        except Full:
            answer.ready = True
            return False
        return True

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
                self.bug = self.bug or words_of(error)
            with self._lock:
                answer.ready = True
                alike, answer.alike = answer.alike, []
            for each in alike:
                if answer.serves_others:
                    each.evidence, each.ready = answer.evidence, True
                else:
                    self._put(each)

    def _answer(self, answer: Answer) -> None:
        answer.evidence = self._causes.examine(answer.attempt, places=answer.places)


def words_of(error: Exception) -> str:
    """Return an error, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
    return f"{type(error).__name__}: {error} ({place})"
