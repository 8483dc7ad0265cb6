"""Resolve the owner of each event from its cgroup, and write verdicts to the kernel's filter.

There is one state per cgroup, by the cgroup's id. Its owner comes from its path, which the kernel
sends before the first event; a path that could not be sent is looked up by the id. A verdict is
written to the kernel only for a cgroup whose path is known.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ig.container import HOST, UNKNOWN_RUNTIME, Change, Container
from ig.containers.cgroup import container_id
from ig.containers.lookup import Strays
from ig.kernel.cgroupfs import Paths, socket_only, unified_id

OWNER_TIMEOUT = 1_000_000_000
"""ns that the events of a cgroup wait, once, for a runtime to report its container."""
MOST_CGROUPS = 16384
"""As many as the kernel's map holds (`cgroups` in ig.h)."""
_LOOK_UP_EVERY = 1_000_000_000  # ns between walks through the cgroup file systems
_MOST_CHANGES = 65536


class Containers(Protocol):
    """What is asked of the runtimes' containers: ig.containers.index.Index."""

    @property
    def answering(self) -> frozenset[str]:
        """The runtimes that may still report a container."""

    @property
    def unlisted(self) -> frozenset[str]:
        """The runtimes that have not listed their containers yet."""

    @property
    def strays(self) -> Strays:
        """The containers without a cgroup of their own."""

    def catch_up(self) -> None:
        """Apply what the runtimes have reported so far."""

    def find(self, path: Sequence[str], trusted: int | None = None) -> tuple[Container, bool]:
        """Return whose a cgroup is, and whether that is final."""

    def subscribe(self, on_change: Callable[[Change], None]) -> Callable[[], None]:
        """Call `on_change` for each change from now on."""


class Kernel(Protocol):
    """The kernel's filter: ig.bpf.session.Source."""

    def decide(self, cgroup: int, keep: bool) -> None:
        """Write whether a cgroup's events are wanted."""

    def forget(self, cgroup: int) -> None:
        """Have the cgroup's path sent again with its next event."""


@dataclass(slots=True)
class CgroupState:
    """The state of one cgroup."""

    paths: Paths = ()
    """Empty while the path is not known."""
    owner: Container = HOST
    final: bool = False
    """Whether its events wait no longer for an owner."""
    verdict: bool = True
    """Whether the kernel reports its events; without a verdict it reports them."""
    deadline: int = 0
    """Kernel's time (ns) until which its events may wait; 0 before the first."""


class Attribution:
    """The owners of the cgroups that events came from."""

    def __init__(
        self,
        containers: Containers,
        wants: Callable[[Container], bool],
        kernel: Kernel,
        look_up: Callable[[Collection[int]], Mapping[int, Paths]],
    ) -> None:
        """`wants` returns whether a container's events are shown; `look_up` returns paths by id."""
        self._containers = containers
        self.wants = wants
        self._kernel = kernel
        self._look_up = look_up
        self._states: OrderedDict[int, CgroupState] = OrderedDict()
        self._named: dict[str, set[int]] = {}
        """The cgroups with a container's id, or a name, in their paths."""
        self._changes: deque[str] = deque(maxlen=_MOST_CHANGES)
        self._answering = containers.answering
        self._unlisted = containers.unlisted
        self._stray_paths = containers.strays.paths
        self._looked_up = 0
        self.owners: dict[int, Container] = {0: _nobody(0)}
        """The owner of each known cgroup."""
        containers.subscribe(lambda change: self._changes.append(change.container.id))

    def catch_up(self) -> None:
        """Have changes of containers read that have come but were not read yet."""
        self._containers.catch_up()

    def update(self, cgroups: Iterable[tuple[int, Paths]]) -> None:
        """Update the states from paths sent by the kernel and changes reported by runtimes."""
        for cgroup, paths in cgroups:
            # A path that comes again was forgotten there, with the verdict.
            state = self._state(cgroup)
            state.verdict = True
            self._locate(cgroup, state, paths)
        for cgroup in self._changed():
            self._resolve(cgroup, self._states[cgroup])
        while len(self._states) > MOST_CGROUPS:
            self._forget()

    def undecided(self, cgroups: Collection[int], now: int) -> set[int]:
        """Return the cgroups of new events whose owner is not known yet but may become known.

        `now` is the kernel's time, in ns. A cgroup is among them for `OWNER_TIMEOUT` at most, once.
        """
        waiting = set()
        for cgroup in cgroups:
            if not cgroup:
                continue
            state = self._state(cgroup)
            self._states.move_to_end(cgroup)
            if not state.final:
                state.deadline = state.deadline or now + OWNER_TIMEOUT
                waiting.add(cgroup)
        self._ask_paths(waiting, now)
        return {cgroup for cgroup in waiting if not self._over(cgroup, now)}

    def give_up(self, cgroup: int) -> None:
        """Stop waiting for the owner of a cgroup."""
        state = self._state(cgroup)
        state.final = True
        self._write_verdict(cgroup, state)

    def wanted(self, cgroups: Iterable[int]) -> dict[int, bool]:
        """Return of each cgroup whether its events are to be shown."""
        return {cgroup: self.wants(self.owners[cgroup]) for cgroup in cgroups}

    def unsure(self, cgroup: int) -> bool:
        """Return whether the owner of a cgroup may still change."""
        owner = self.owners[cgroup]
        return not owner.known and (cgroup not in self._states or self._unsure(cgroup))

    @property
    def strays(self) -> Strays:
        """The containers without a cgroup of their own."""
        return self._containers.strays

    def _unsure(self, cgroup: int) -> bool:
        return not self._states[cgroup].paths or bool(self._containers.unlisted)

    def _state(self, cgroup: int) -> CgroupState:
        state = self._states.get(cgroup)
        if state is None:
            state = self._states[cgroup] = CgroupState(owner=_nobody(cgroup))
            self.owners[cgroup] = state.owner
        return state

    def _locate(self, cgroup: int, state: CgroupState, paths: Paths) -> None:
        self._unlist(cgroup, state)
        state.paths = paths if all(path.complete for path in paths) else ()
        for name in _names(state.paths):
            self._named.setdefault(name, set()).add(cgroup)
        if state.paths:
            self._resolve(cgroup, state)

    def _unlist(self, cgroup: int, state: CgroupState) -> None:
        for name in _names(state.paths):
            cgroups = self._named.get(name)
            if cgroups is not None:
                cgroups.discard(cgroup)
                if not cgroups:
                    del self._named[name]

    def _changed(self) -> Iterator[int]:
        """Yield the cgroups whose owner may have changed since the last call."""
        if self._stray_paths is not self._containers.strays.paths:
            self._stray_paths = self._containers.strays.paths
            yield from [each for each, state in self._states.items() if state.owner is HOST]
        if (self._answering, self._unlisted) != (
            self._containers.answering,
            self._containers.unlisted,
        ):
            self._answering, self._unlisted = self._containers.answering, self._containers.unlisted
            yield from [each for each, state in self._states.items() if not state.owner.known]
        if len(self._changes) == _MOST_CHANGES:
            self._changes.clear()  # there may have been more changes than it holds
            yield from list(self._states)
        if not self._changes:  # as nearly always
            return
        changed = {self._changes.popleft() for _ in range(len(self._changes))}
        for name in changed:
            yield from list(self._named.get(name, ()))

    def _resolve(self, cgroup: int, state: CgroupState) -> None:
        if not state.paths:
            return
        owner, final = HOST, True
        for path in state.paths:
            found, sure = self._containers.find(path.names, path.trusted)
            final = final and sure
            if found is not HOST:
                owner, final = found, sure
                break
        if owner is HOST and socket_only(cgroup):
            owner = _nobody(cgroup)  # its version 1 cgroup may be a container's
        state.owner = self.owners[cgroup] = owner
        state.final = state.final or final
        self._write_verdict(cgroup, state)

    def _write_verdict(self, cgroup: int, state: CgroupState) -> None:
        """Write the verdict to the kernel if it differs from the last one."""
        if not (state.paths and state.final):
            return
        keep = self.wants(state.owner)
        if not keep and state.owner is HOST and self._stray_paths:
            keep = any(path.names in self._stray_paths for path in state.paths)
        if not keep and not state.owner.known:
            keep = bool(self._containers.unlisted)  # a runtime that has not answered may know it
        if keep != state.verdict:
            self._kernel.decide(cgroup, keep)
            state.verdict = keep

    def _ask_paths(self, cgroups: Iterable[int], now: int) -> None:
        """Look up the paths that were not sent: the ring was full, or a path too long."""
        missing = [cgroup for cgroup in cgroups if not self._states[cgroup].paths]
        if not missing or now - self._looked_up < _LOOK_UP_EVERY:
            return
        self._looked_up = now
        for cgroup, paths in self._look_up(missing).items():
            self._locate(cgroup, self._states[cgroup], paths)

    def _over(self, cgroup: int, now: int) -> bool:
        """Return whether a cgroup's events wait no longer; if so, they never wait again."""
        state = self._states[cgroup]
        if not state.final and now >= state.deadline:
            self.give_up(cgroup)
        return state.final

    def _forget(self) -> None:
        """Remove the least recently used cgroup, here and in the kernel."""
        cgroup, state = self._states.popitem(last=False)
        self._unlist(cgroup, state)
        del self.owners[cgroup]
        self._kernel.forget(cgroup)


def _nobody(cgroup: int) -> Container:
    """Return the owner of events whose cgroup has no known path."""
    shown = unified_id(cgroup)
    name = f"cgroup:{shown}" if shown else "unknown"
    return Container(id=name, name=name, runtime=UNKNOWN_RUNTIME)


def _names(paths: Paths) -> set[str]:
    """Return what a container's id may be in the paths: the names, and the ids that are in them."""
    names = {name for path in paths for name in path.names}
    return names | {identifier for name in names if (identifier := container_id(name))}
