"""Find why attempts to connect failed, by what this host looks like now.

`Causes` answers one question after another, from one thread: each takes some milliseconds, enters
network namespaces in a thread of its own, and changes nothing. `Examiner` answers many: in a thread
of its own, once for attempts that are alike.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from queue import Empty, Full, Queue

from ig.causes.cause import Attempt, Cause
from ig.causes.evidence import Collector, Counters, Evidence
from ig.causes.judge import judge
from ig.causes.places import Places, Unreachable
from ig.container import HOST, Change, Container, Identity
from ig.containers.holdings import FORMER
from ig.errors import IgError
from ig.kernel import netns, nftables
from ig.kernel.cgroupfs import Cgroups
from ig.sockets.owner import Known, Owners

_AGAIN = 0.2  # seconds between two walks over all processes
_FRESH = 1.0  # seconds for which an answer serves attempts that are alike
_MOST = 256  # questions that wait
_MOST_ALIKE = 16384  # attempts that wait for the answer about one that is alike
_POLL = 0.2  # seconds in which the thread sees that it is to end
_AT_END = 1.0  # seconds that the last question may still take

_Containers = Callable[[], Iterable[Container]]


class Causes:
    """Finds causes; remembers the addresses of containers that end."""

    def __init__(
        self, containers: _Containers, host: int = 0, known: Callable[[], Known] | None = None
    ) -> None:
        """`containers` returns those that run now, with details; `host` is as in `Holdings`.

        `known` returns what identifies the containers of processes.
        """
        self._containers = containers
        self._known = known
        self._host = host or netns.host()
        self._places: Places | None = None
        self._lock = threading.Lock()
        self._running: dict[Identity, Container] = {}
        self._former: OrderedDict[str, Container] = OrderedDict()

    def on_change(self, change: Change) -> None:
        """Apply a change of a container, from any thread: subscribe it to the index."""
        container = change.container
        if change.kind == "synced":
            return
        identity = container.identity
        with self._lock:
            if change.kind in ("exited", "removed") or not container.running:
                ended = self._running.pop(identity, None)
                for address in ended.addresses if ended else ():
                    self._former[address] = container
                    self._former.move_to_end(address)
                while len(self._former) > FORMER:
                    self._former.popitem(last=False)
                return
            self._running[identity] = container
            for address in container.addresses:
                self._former.pop(address, None)

    def find(self, attempt: Attempt, before: Counters | None = None) -> Cause | None:
        """Return why an attempt failed, None where nothing shows it."""
        return judge(attempt, self.examine(attempt, before))

    def examine(
        self, attempt: Attempt, before: Counters | None = None, places: Iterable[int] = ()
    ) -> Evidence:
        """Return the evidence about an attempt; `before` is what `counters` returned before it.

        Its `owners` are also those of the network namespaces `places`.
        """
        known = self._places
        if known is None or known.stale or self._is_unknown(attempt, known):
            known = self._places = Places()
        collector = Collector(known, self._containers(), self._host, self._ended, self._owner)
        return collector.collect(attempt, before, places)

    def counters(self) -> Counters:
        """Return the packets that each counter of the firewall saw, by network namespace."""
        self._places = Places()
        return {each: read.counters() for each, read in self._places.each(nftables.read)}

    def _is_unknown(self, attempt: Attempt, places: Places) -> bool:
        """Return whether the attempt's namespace must be looked for, not too soon again.

        One that was not found when the attempt had ended is gone.
        """
        ended = attempt.moment + attempt.latency if attempt.moment else time.time_ns()
        if attempt.netns in places.namespaces or places.moment > ended:
            return False
        time.sleep(max(0.0, _AGAIN - places.age))
        return True

    def _owner(self, pids: Iterable[int]) -> Container:
        """Return the only container of all the processes; HOST where there is none."""
        if self._known is None:
            return HOST
        with Cgroups() as cgroups:
            owners = Owners(self._known(), cgroups)
            found = {id(owner): owner for owner, _ in map(owners.of_process, pids)}
        return found.popitem()[1] if len(found) == 1 else HOST

    def _ended(self, address: str) -> Container | None:
        with self._lock:
            return self._former.get(address)


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
