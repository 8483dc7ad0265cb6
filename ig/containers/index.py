"""Say which container a cgroup belongs to, kept current by the runtimes' own events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from ig.containers.cgroup import container_id
from ig.containers.container import HOST, UNKNOWN_RUNTIME, Change, Container, Runtime
from ig.containers.detailer import Detailer
from ig.containers.follower import Follower
from ig.containers.registry import Registry, key_of
from ig.errors import RuntimeUnavailable

CLOSING = 1.0
"""Seconds that the threads are given to end; they are daemons and hold nothing that outlives us."""


class Index:
    """The containers of all runtimes, found by their cgroups.

    One thread a runtime follows what it tells. What a lost runtime told stays valid until it
    tells anew. Reading takes no lock, so it never waits for a runtime.
    """

    def __init__(
        self,
        runtimes: Sequence[Runtime],
        say: Callable[[str], None],
        asked: Collection[str] = (),
        detailed: bool = False,
    ) -> None:
        """Follow `runtimes`; `say` is given a line for the user where one is lost or back.

        Those whose names are `asked` for are missed also if they never were there. `detailed`
        asks for pid, addresses and ports of each running container that was told without, so
        that `containers()` has them soon after.
        """
        self.version = 0
        """Grows with every change that could alter an answer of `find`."""
        self._runtimes = {runtime.name: runtime for runtime in runtimes}
        self._registry = Registry(list(self._runtimes))
        self._subscribers: tuple[Callable[[Change], None], ...] = ()
        self._changed = threading.Condition()
        # Both are replaced as a whole, so readers need no lock.
        self.unheard = frozenset(self._runtimes)
        """The runtimes that have neither told all they have nor failed yet."""
        self.telling = frozenset(self._runtimes)
        """The runtimes that could yet tell of a container."""
        self.strays: Mapping[int, Container] = {}
        self.stray_paths: frozenset[tuple[str, ...]] = frozenset()
        self._detailer = Detailer(self.details) if detailed else None
        if self._detailer is not None:
            self.subscribe(self._detailer.told)
        self._followers = [
            Follower(runtime, self, say, runtime.name in asked) for runtime in runtimes
        ]

    @property
    def sockets(self) -> list[tuple[str, str]]:
        """Each runtime's name, and where it is asked: a path, or an address with its scheme."""
        return [(runtime.name, runtime.socket) for runtime in self._runtimes.values()]

    def start(self) -> None:
        """Begin to follow every runtime, without waiting for any."""
        if self._detailer is not None:
            self._detailer.start()
        for follower in self._followers:
            follower.start()

    def wait_synced(self, timeout: float) -> None:
        """Wait until each runtime has told all it has or has failed once, or `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self.unheard, timeout)

    def close(self) -> None:
        """Stop following what was started; what is known stays known."""
        if self._detailer is not None:
            self._detailer.stop()
        for follower in self._followers:
            follower.stop()
        deadline = time.monotonic() + CLOSING
        for follower in self._followers:
            follower.join(max(0.0, deadline - time.monotonic()))

    def find(self, path: Sequence[str], _trusted: int | None = None) -> tuple[Container, bool]:
        """Give whose a cgroup is, and whether that is final: asking again could give no better.

        `path` is the names of the cgroup's ancestors from the root down, then its own. The
        outermost container wins, as with an engine inside a container. A cgroup that looks like a
        container's but that nobody told of belongs to a container of the runtime `unknown`; where
        nothing looks like one, it is the host's.
        """
        get = self._registry.get
        guess = parent = ""
        for component in path:
            identifier = container_id(component)
            found = get(identifier) if identifier else None
            if found is None and parent and component:
                found = get((parent, component))
            if found is not None:
                return found, found.named or self.telling <= {found.runtime}
            guess = guess or identifier
            parent = component
        if not guess:
            return HOST, True
        return Container(guess, guess[:12], UNKNOWN_RUNTIME), not self.telling

    def containers(self, stopped: bool = False, sandboxes: bool = False) -> list[Container]:
        """Give the containers that run now; with those that do not, and pods' pauses, if asked."""
        return [
            container
            for container in self._registry
            if (stopped or container.running) and (sandboxes or not container.sandbox)
        ]

    def details(self, container: Container) -> Container:
        """Give the container with its pid, start, addresses and ports, as far as they can be had.

        Asks the runtime, so it may take seconds. The index remembers the answer, unless the
        container changed meanwhile.
        """
        runtime = self._runtimes.get(container.runtime)
        if runtime is None:
            return container
        try:
            detailed = runtime.details(container)
        except RuntimeUnavailable:
            return container
        self._keep(container, detailed)
        return detailed

    def _keep(self, asked: Container, detailed: Container) -> None:
        with self._changed:
            now = self._registry.get(key_of(asked))
            if now is None or not (now.running and detailed.running):
                return
            if (now.runtime, now.started) != (asked.runtime, asked.started):
                return  # It was started anew while it was asked about.
            found = replace(
                now,
                pid=detailed.pid,
                started=detailed.started,
                addresses=detailed.addresses,
                ports=detailed.ports,
            )
            changes = self._registry.apply(now.runtime, Change("updated", found))
            self.version += len(changes)
        self._publish(changes)

    def subscribe(self, told: Callable[[Change], None]) -> Callable[[], None]:
        """Call `told` with every change from now on; give a function that ends this.

        It is called in the thread that follows the runtime, so it must not block.
        """
        with self._changed:
            self._subscribers += (told,)

        def unsubscribe() -> None:
            with self._changed:
                self._subscribers = tuple(each for each in self._subscribers if each is not told)

        return unsubscribe

    def begin(self, runtime: str) -> None:
        """Note that a runtime is asked for all it has."""
        with self._changed:
            self._registry.begin(runtime)

    def apply(self, runtime: str, change: Change) -> None:
        """Take in a change that a runtime told."""
        with self._changed:
            changes = self._registry.apply(runtime, change)
            if changes:
                self.version += 1
            self._set_telling(self.telling | {runtime})
            if change.kind == "synced":
                self._heard(runtime)
        self._publish(changes)

    def lost(self, runtime: str) -> None:
        """Note that a runtime does not answer."""
        with self._changed:
            self._set_telling(self.telling - {runtime})
            self._heard(runtime)

    def _publish(self, changes: Sequence[Change]) -> None:
        subscribers = self._subscribers
        for change in changes:
            for told in subscribers:
                told(change)

    def _set_telling(self, telling: frozenset[str]) -> None:
        if telling != self.telling:
            self.telling = telling
            self.version += 1

    def _heard(self, runtime: str) -> None:
        self.unheard -= {runtime}
        self._changed.notify_all()
