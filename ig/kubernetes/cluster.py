"""Say which pod or Service of a Kubernetes cluster an address and a port belonged to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ig.container import Change, Container
from ig.containers.holdings import Holding, Holdings
from ig.containers.store import Registry, key_of
from ig.containers.watcher import Follower
from ig.kubernetes.api import KEPT, Objects
from ig.kubernetes.credentials import Access, Credentials
from ig.kubernetes.objects import KINDS

MOST = 50_000
"""How many pods and Services have names."""
LONGEST_PAUSE = 30.0
"""Seconds between attempts to reach the API, at most."""
SHUTDOWN_TIMEOUT = 1.0
CONSEQUENCE = (
    "new pods and Services have no names until it does, and none has one after five minutes"
)


class Cluster:
    """The pods and Services of a cluster, followed by a thread for each kind.

    A pod has its addresses from its start until the API reports that it has ended or moved. What
    two claim has no name.
    """

    def __init__(
        self,
        credentials: Credentials,
        access: Access,
        say: Callable[[str], None],
        most: int = MOST,
    ) -> None:
        """`access` is where the API is now; `say` is given a line where it is lost or back.

        `most` is how many objects are kept.
        """
        self.url = access.url
        self.files: Sequence[str] = credentials.files()
        """The files that are read for each connection."""
        self._say, self._last = say, ""
        self._most = most
        self._left_out = dict.fromkeys(KINDS, 0)
        """How many objects of each kind there was no room for, since the last list."""
        self._reported = 0
        """How many of those were reported."""
        self._registry = Registry(KINDS, most + 1)
        self._holdings = Holdings(host=0)
        self._lost: dict[str, float] = {}
        """When each kind was lost, by time.monotonic()."""
        self._awaited = set(KINDS)
        """The kinds that were neither listed nor lost."""
        self._changed = threading.Condition()
        self._followers = [
            Follower(
                Objects(kind, credentials, self.url),
                kind,
                self,
                self._report,
                asked=True,
                consequence=CONSEQUENCE,
                longest_pause=LONGEST_PAUSE,
            )
            for kind in KINDS
        ]

    def start(self) -> None:
        """Begin to follow the API, without waiting for it."""
        for follower in self._followers:
            follower.start()

    def wait_synced(self, timeout: float) -> None:
        """Wait until all was listed or asking has failed, `timeout` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._awaited, timeout)

    @property
    def pending(self) -> bool:
        """Whether the API has neither listed all nor failed."""
        return bool(self._awaited)

    def close(self) -> None:
        """Stop following it. Raises what ended a thread of ours that should not have ended."""
        for follower in self._followers:
            follower.stop()
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT
        for follower in self._followers:
            follower.join(max(0.0, deadline - time.monotonic()))
        for follower in self._followers:
            if follower.failure is not None:
                raise follower.failure

    def find(self, address: str, port: int, moment: int, outgoing: bool) -> Container | None:
        """Return the pod or Service that a far end was at a moment; None if it is not known.

        `address` is in its canonical spelling, `moment` in ns since the epoch. An address of a
        Service that hosts may have too names it only if the near end connected (`outgoing`).
        """
        holdings = self._holdings
        with holdings.lock:
            found: list[Holding] = holdings.addresses.at(address, moment)
            if port and holdings.published:
                services = holdings.published.at((address, port), moment)
                found = [*found, *(each for each in services if each.port or outgoing)]
            distinct = {each.container.identity: each.container for each in found}
        return next(iter(distinct.values())) if len(distinct) == 1 else None

    def begin(self, source: str) -> None:
        """Note that the API is asked for all of a kind, or for the changes since."""
        with self._changed:
            self._registry.begin(source)
            self._left_out[source] = 0

    def apply(self, source: str, change: Change) -> None:
        """Apply a change that the API reported."""
        with self._changed:
            if change.kind in ("synced", "resumed"):
                self._awaited.discard(source)
                self._lost.pop(source, None)
                self._changed.notify_all()
            if change.kind == "synced":
                self._take(source, change)
                self._report_left_out()
            elif change.kind != "resumed" and self._has_room(source, change):
                # All of an object is in each change, so none completes another.
                kind = "removed" if change.kind == "removed" else "exists"
                self._take(source, Change(kind, self._moved(source, change.container)))

    def lost(self, source: str) -> None:
        """Note that the API does not answer; what it reported is dropped after a while."""
        with self._changed:
            self._awaited.discard(source)
            self._changed.notify_all()
            if time.monotonic() - self._lost.setdefault(source, time.monotonic()) > KEPT:
                self._registry.begin(source)
                self._take(source, Change("synced"))

    def _take(self, source: str, change: Change) -> None:
        for each in self._registry.apply(source, change):
            self._holdings.on_change(each)

    def _moved(self, source: str, container: Container) -> Container:
        """Return the container with the time of a change of its addresses, if this is one."""
        before = self._registry.of_runtime(source, key_of(container))
        if before is None or before.addresses == container.addresses:
            return container
        return container.copy(addressed=time.time_ns())

    def _has_room(self, source: str, change: Change) -> bool:
        known = self._registry.of_runtime(source, key_of(change.container)) is not None
        if known or change.kind == "removed" or len(self._registry) < self._most:
            return True
        self._left_out[source] += change.kind != "updated"  # it was counted when it was created
        if change.kind == "created" and not self._reported:
            self._report_left_out()
        return False

    def _report_left_out(self) -> None:
        count = sum(self._left_out.values())
        if count and count != self._reported:
            self._reported = count
            self._say(
                f"warning: the Kubernetes API has more pods and Services than ig keeps: at most "
                f"{self._most} have names, {count} have none"
            )

    def _report(self, line: str) -> None:
        """Report a line that concerns all kinds once, whatever the reason of each."""
        what = line.partition(" (")[0]
        with self._changed:
            if what == self._last:
                return
            self._last = what
        self._say(line)


def of(credentials: Credentials, say: Callable[[str], None]) -> Cluster:
    """Return the cluster of these credentials, not started yet. Raises IgError."""
    return Cluster(credentials, credentials.access(), say)
