"""Find why attempts to connect failed, by what this host looks like now.

Ask once a failed attempt, from one thread: a question takes some milliseconds. It enters network
namespaces in a thread of its own, and changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from ig.causes.cause import Attempt, Cause
from ig.causes.evidence import Collector, Counters, Evidence
from ig.causes.judge import judge
from ig.causes.places import Places
from ig.container import HOST, Change, Container, Identity
from ig.containers.holdings import FORMER
from ig.kernel import netns, nftables
from ig.kernel.cgroupfs import Cgroups
from ig.sockets.owner import Known, Owners

_AGAIN = 0.2  # seconds between two walks over all processes

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
