"""Say which container a cgroup belongs to, kept current by the runtimes' events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from ig.container import HOST, Batching, Change, Cluster, Container, Runtime
from ig.containers import sources
from ig.containers.lookup import Lookup, Strays, has_own_cgroup
from ig.containers.sources import ROOT
from ig.containers.store import Registry, key_of, with_details
from ig.containers.watcher import NAMES_UNAVAILABLE, Detailer, Follower
from ig.errors import RuntimeUnavailable
from ig.kernel import processes

SHUTDOWN_TIMEOUT = 1.0
"""Seconds that the threads are given to end; they are daemons and hold nothing that outlives us."""
CATCH_UP = 0.02
"""Seconds that a trace waits for changes that were not read yet."""
_STRAYING = frozenset(("podman",))
"""The runtimes that start containers without a cgroup of their own, if asked."""


class Index:
    """The containers of all runtimes, found by their cgroups.

    One thread a runtime follows what it reports. What a lost runtime reported stays valid until it
    reports anew. Reading takes no lock, so it never waits for a runtime.

    A runtime is distinguished from others by its `source`: its name, or name and socket where an
    earlier one has that name. What a runtime of an ordinary user's reports is kept apart from
    root's: it may name no cgroup but those that its containers' first processes are in.
    """

    def __init__(
        self,
        runtimes: Sequence[Runtime],
        say: Callable[[str], None],
        asked: Collection[str] = (),
        detailed: bool = False,
        consequence: str = NAMES_UNAVAILABLE,
        *,
        cluster: Cluster | None = None,
    ) -> None:
        """Follow `runtimes`; `say` is given a line for the user where one is lost or back.

        The line for a lost one ends with the `consequence`. A `cluster` is started, waited for and
        closed with them.

        Those whose names are `asked` for are missed also if they never were there. `detailed`
        asks for pid, addresses and ports of each running container that was reported without, so
        that `containers()` has them soon after.
        """
        self.answering: frozenset[str] = frozenset(runtime.name for runtime in runtimes)
        """The names of the runtimes that could yet report a container; replaced as a whole."""
        self.cluster = cluster
        self.sources: Mapping[str, Runtime] = sources.named(runtimes)
        """The runtimes by their source."""
        self._users = dict.fromkeys(self.sources, ROOT)
        self._networks: dict[str, int] = {}
        self._subscribers: tuple[Callable[[Change], None], ...] = ()
        self._changed = threading.Condition()
        self.strays = Strays(self._changed)
        """The running containers whose first process has no cgroup of its own."""
        self.synced: frozenset[str] = frozenset()
        """The sources that have listed all their containers, once at least; replaced as a whole."""
        self._detailer = Detailer(lambda each: self._asked(each) is not None, self._notify)
        everybody = frozenset(self.sources)
        registries = {ROOT: Registry(list(self.sources))}
        self._lookup = Lookup(self.sources, registries, everybody, everybody, self._detailer.ask)
        self._detailed = detailed
        self._batching: tuple[Batching, ...] = ()
        self._seeking = False
        """Whether a first process was asked for, since it may be in no cgroup of its own."""
        if detailed:
            self.subscribe(self._detailer.on_change)
        self._followers = [
            Follower(
                runtime,
                source,
                self,
                say if runtime.name in asked or sources.owner(runtime.socket) == ROOT else _ignore,
                asked=runtime.name in asked,
                consequence=consequence,
            )
            for source, runtime in self.sources.items()
        ]

    @property
    def _registries(self) -> Mapping[int, Registry]:
        return self._lookup.registries

    @property
    def unlisted(self) -> frozenset[str]:
        """The sources that have neither listed their containers nor failed; replaced as a whole."""
        return self._lookup.unlisted

    def start(self) -> None:
        """Begin to follow every runtime, without waiting for any."""
        self._detailer.start()
        for follower in self._followers:
            follower.start()
        if self.cluster:
            self.cluster.start()

    def wait_synced(self, timeout: float) -> frozenset[str]:
        """Wait until each runtime has listed its containers or failed once, or `timeout` seconds.

        With `detailed`, wait also until it was asked once about each of its containers, and
        without about those that seem to be in no cgroup of their own. Return the sources that have
        listed all their containers.
        """
        ends = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(
                lambda: not (self.unlisted or (self._asks and self._detailer.busy)), timeout
            )
        if self.cluster:
            self.cluster.wait_synced(max(0.0, ends - time.monotonic()))
        return self.synced

    @property
    def _asks(self) -> bool:
        return self._detailed or self._seeking

    def close(self) -> None:
        """Stop following what was started; what is known stays known.

        Raises what ended a thread of ours that should not have ended: a bug.
        """
        self._detailer.stop()
        for follower in self._followers:
            follower.stop()
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT
        for follower in self._followers:
            follower.join(max(0.0, deadline - time.monotonic()))
        for failure in (self._detailer.failure, *(each.failure for each in self._followers)):
            if failure is not None:
                raise failure
        if self.cluster:
            self.cluster.close()

    def find(self, path: Sequence[str], trusted: int | None = None) -> tuple[Container, bool]:
        """Return whose a cgroup is, and whether that is final: asking again could give no better.

        `path` is the names of the cgroup's ancestors from the root down, then its own; `trusted` is
        how many of them, from the root down, only root could have made, None if all. A trusted
        name is believed, the outermost first, as with an engine inside a container. Any other, and
        any below a container that nobody reported, is believed if a runtime reported that container
        and its first process is there.

        A trusted cgroup that looks like a container's but that nobody reported belongs to a
        container whose runtime is known by its name, else `unknown`. An untrusted one is a
        container called `unproven-…`, whose id is the path, unless it has the id of one that a
        runtime reported. All else is the host's.
        """
        return self._lookup.find(path, trusted)

    def batch(self) -> None:
        """Have changes read in batches while they keep coming, and all there are by `catch_up`.

        Not those of runtimes that start containers without a cgroup of their own: the events of
        these may be dropped until their start is known.
        """
        self._batching = tuple(
            each
            for each in self.sources.values()
            if isinstance(each, Batching) and each.name not in _STRAYING
        )

    def catch_up(self) -> None:
        """Apply what runtimes have reported so far, if that takes no longer than a moment."""
        ends = time.monotonic() + CATCH_UP
        read = [each.catch_up(CATCH_UP) for each in self._batching]
        if any(read):
            with self._changed:
                self._changed.wait_for(lambda: not self._detailer.busy, ends - time.monotonic())

    def containers(self, stopped: bool = False, sandboxes: bool = False) -> list[Container]:
        """Return the containers that run now; stopped ones and pods' sandboxes if asked."""
        return [
            container
            for user, registry in self._registries.items()
            for container in registry
            if (stopped or container.running)
            and (sandboxes or not container.sandbox)
            and not (user and self._lookup.is_taken(user, key_of(container)))
        ]

    def unnamed(self) -> int:
        """Return how many containers there are that no runtime reported, by all processes' cgroups.

        10,000 processes take some 200 ms.
        """
        owners = (self.find(path)[0] for path in processes.all_cgroups())
        keys = {key_of(owner) for owner in owners if owner is not HOST}
        return sum(not self._lookup.is_reported(key) for key in keys)

    def details(self, container: Container) -> Container:
        """Return the container with its pid, start, addresses and ports, as far as they can be had.

        Asks the runtime, so it may take seconds. The index remembers the answer, unless the
        container changed meanwhile.
        """
        return self._asked(container) or container

    def _asked(self, container: Container) -> Container | None:
        """Ask for a container's details; return None where the runtime does not answer."""
        source = container.engine
        runtime = self.sources.get(source)
        if runtime is None:
            return container
        try:
            detailed = runtime.details(container)
        except RuntimeUnavailable:
            return None
        self._keep(source, container, detailed)
        if self._users[source] != ROOT:
            kept = self._registries[self._users[source]].of_runtime(source, key_of(container))
            return detailed.copy(pid=kept.pid if kept else 0)  # not one that is not theirs
        return detailed

    def _keep(self, source: str, asked: Container, detailed: Container) -> None:
        with self._changed:
            registry = self._registries[self._users[source]]
            now = registry.of_runtime(source, key_of(asked))
            if now is None or not (now.running and detailed.running):
                return
            if (now.started, now.addressed) != (asked.started, asked.addressed):
                return  # It was started anew, or moved, while it was asked about.
            found = with_details(now, detailed)
            self._publish(self._taken_in(source, Change("detailed", found)))

    def subscribe(self, on_change: Callable[[Change], None]) -> Callable[[], None]:
        """Call `on_change` with every change from now on; give a function that ends this.

        It is called in the thread that follows the runtime, before the next change is taken in,
        so it must not block.
        """
        with self._changed:
            self._subscribers += (on_change,)

        def unsubscribe() -> None:
            with self._changed:
                self._subscribers = tuple(
                    each for each in self._subscribers if each is not on_change
                )

        return unsubscribe

    def begin(self, source: str) -> None:
        """Note that a runtime is asked for all it has."""
        user = sources.owner(self.sources[source].socket)
        self._networks.pop(source, None)
        changes: list[Change] = []
        with self._changed:
            before = self._users[source]
            if user != before:
                self._registries[before].begin(source)
                changes = self._taken_in(source, Change("synced"))
                if user not in self._registries:
                    fresh = {user: Registry(list(self.sources))}
                    self._lookup.registries = {**self._registries, **fresh}
                self._users[source] = user
            self._registries[user].begin(source)
            self._publish(changes)
        runtime = self.sources[source]
        if isinstance(runtime, Batching) and runtime in self._batching:
            runtime.batch(user == ROOT)  # a user's may run containers in the user's own cgroup

    def apply(self, source: str, change: Change) -> None:
        """Apply a change that a runtime reported."""
        if source not in self._networks:  # only now does it surely serve its socket
            self._networks[source] = sources.network(self.sources[source].socket)
        with self._changed:
            changes = self._taken_in(source, change)
            self._set_answering(self._lookup.answering | {source})
            self._publish(changes)
        if change.kind == "synced":
            self._find_strays(source)
            with self._changed:
                self.synced |= {source}
                self._heard(source)
        elif change.kind == "started" and self.sources[source].name in _STRAYING:
            self._detailer.ask(change.container)

    def lost(self, source: str) -> None:
        """Note that a runtime does not answer."""
        with self._changed:
            self._set_answering(self._lookup.answering - {source})
            self._heard(source)

    def _taken_in(self, source: str, change: Change) -> list[Change]:
        user = self._users[source]
        if change.kind != "synced":
            base = self._networks.get(source, 0)
            container = sources.attributed(change.container, source, base, user)
            if change.kind != "removed" and self._lookup.is_taken(user, key_of(container)):
                return []
            container = self.strays.looked_up(container, user)
            if user == ROOT and container.running and container.pid and not container.netns:
                netns = processes.network_namespace(container.pid, container.id)
                container = container.copy(netns=netns)
            change = Change(change.kind, container)
        changes = self._registries[user].apply(source, change)
        for each in changes:
            self.strays.take_in(user, each.container)
        return changes

    def _find_strays(self, source: str) -> None:
        """Ask for the first processes of containers that no process's cgroup names."""
        registry = self._registries[self._users[source]]
        mine = (each for each in registry if each.engine == source)
        pidless = [each for each in mine if each.running and not each.pid]
        if not pidless or not processes.sees_host():
            return
        known = processes.all_cgroups()
        for container in pidless:
            if not has_own_cgroup(container, known):
                self._seeking = True
                self._detailer.ask(container)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _publish(self, changes: Sequence[Change]) -> None:
        # The lock is held, so that all subscribers see the changes in their order.
        subscribers = self._subscribers
        for change in changes:
            for on_change in subscribers:
                on_change(change)

    def _set_answering(self, answering: frozenset[str]) -> None:
        if answering != self._lookup.answering:
            self._lookup.answering = answering
            self.answering = frozenset(self.sources[source].name for source in answering)

    def _heard(self, source: str) -> None:
        self._lookup.unlisted -= {source}
        self._changed.notify_all()


def _ignore(_line: str) -> None:
    """Say nothing: an ordinary user may let a socket come and go as often as there is time for."""
