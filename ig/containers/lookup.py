"""Find the container that a cgroup belongs to: by its path, and by where first processes are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ig.container import HOST, UNKNOWN_RUNTIME, Container, Listing, Runtime
from ig.containers.cgroup import container_id, normalised, recognised
from ig.containers.sources import ROOT
from ig.containers.store import Key, Registry, key_of
from ig.kernel import processes
from ig.kernel.processes import Path

DOCKERS = ("", "moby")
"""What a container's id is unique in where Docker may yet report its name."""
RUNC_STATES = {"runc": "/run/runc", "crun": "/run/crun"}
"""Where runc and crun, run by root, keep a folder for each container."""
_UNITS = (".slice", ".scope", ".service")
_REMEMBERED = 4096

_Key = tuple[int, Key]


def has_own_cgroup(container: Container, paths: Collection[Path]) -> bool:
    """Return whether one of the cgroups is named after the container."""
    key = key_of(container)
    return any(
        key in (container_id(name), (above, name))
        for path in paths
        for above, name in zip(("", *path), path, strict=False)
    )


def is_proven(container: Container, path: Path) -> bool:
    """Return whether the container's first process is in that cgroup, or in one below it."""
    depth = len(path)
    return any(each[:depth] == path for each in container.cgroups)


class Strays:
    """The running containers whose first process is in no cgroup of its own.

    `podman run --cgroups=disabled` makes such, and rootless engines on cgroups of version 1. Their
    mount namespace is their own all the same. Who may not read it learns it from the first event
    of the first process. Writers hold the `lock`; reading needs none: what is read is replaced as a
    whole.
    """

    def __init__(self, lock: AbstractContextManager[Any]) -> None:
        self._lock = lock
        self.by_mntns: Mapping[int, Container] = {}
        """By the inode of the mount namespace, where that is theirs alone and not the host's."""
        self.by_pid: Mapping[int, Container] = {}
        """By the first process, those whose mount namespace is not known until `locate`."""
        self.paths: frozenset[Path] = frozenset()
        """The cgroups of those processes; () stands for a root."""
        self._host = {processes.mount_namespace(pid) for pid in ("self", "1")}
        self._found: dict[_Key, Container] = {}
        self._places: dict[_Key, tuple[int, tuple[Path, ...]]] = {}
        self._seen: dict[_Key, int] = {}

    def looked_up(self, container: Container, user: int) -> Container:
        """Return a container with where its first process is, if its runtime reported it.

        A runtime of an ordinary user's may report that user's processes only.
        """
        if not (container.running and container.pid):
            return container
        paths = processes.cgroups(container.pid)
        if paths is None:
            return container
        if user != ROOT and not processes.is_of_user(container.pid, user):
            return container.copy(pid=0)
        key = user, key_of(container)
        mntns = 0
        self._places.pop(key, None)
        if not has_own_cgroup(container, paths):
            mntns = processes.mount_namespace(container.pid)
            if mntns not in self._host or not mntns:
                self._places[key] = container.pid, paths or ((),)
        return container.copy(cgroups=paths, mntns=0 if mntns in self._host else mntns)

    def take_in(self, user: int, container: Container) -> None:
        """Note what became of a container; the lock is held."""
        key = user, key_of(container)
        before = self._found.get(key)
        if container.running and key in self._places:
            self._found[key] = container
        else:
            for remembered in (self._found, self._places, self._seen):
                remembered.pop(key, None)
        if self._found.get(key) != before:
            self._remake()

    def locate(self, pid: int, mntns: int) -> None:
        """Note which mount namespace a first process is in."""
        with self._lock:
            key = next((key for key in self._found if self._places[key][0] == pid), None)
            if key is not None and mntns not in self._host and pid in self.by_pid:
                self._seen[key] = mntns
                self._remake()

    def _remake(self) -> None:
        known = {key: each.mntns or self._seen.get(key, 0) for key, each in self._found.items()}
        shared = Counter(known.values())
        self.by_mntns = {
            mntns: self._found[key] for key, mntns in known.items() if mntns and shared[mntns] == 1
        }
        self.by_pid = {
            self._places[key][0]: self._found[key] for key, mntns in known.items() if not mntns
        }
        self.paths = frozenset(path for key in known for path in self._places[key][1])


@dataclass
class Lookup:
    """Answers whose a cgroup is. What it knows is replaced as a whole: reading takes no lock."""

    sources: Mapping[str, Runtime]
    """The runtimes, by source."""
    registries: Mapping[int, Registry]
    """The containers that were reported, by the user whose runtimes reported them."""
    unlisted: frozenset[str]
    """The sources that have neither listed all their containers nor failed yet."""
    answering: frozenset[str]
    """The sources that could yet report a container."""
    ask: Callable[[Container], None]
    """Has a runtime asked for a container's first process."""
    _asked: set[tuple[int, Key, int]] = field(default_factory=set)
    _listing: Sequence[Listing] = ()

    def __post_init__(self) -> None:
        self._listing = [each for each in self.sources.values() if isinstance(each, Listing)]

    def find(self, path: Sequence[str], trusted: int | None = None) -> tuple[Container, bool]:
        """Return whose a cgroup is, and whether that is final: see `Index.find`."""
        names, limit = normalised(path, trusted)
        guess: tuple[int, Container] | None = None
        sure = True
        parent = ""
        for place, component in enumerate(names):
            key = container_id(component) or (parent, component)
            found, proven = self._claimed(key, names[: place + 1], place < limit)
            if found is not None:
                return _with_nested(found, names[place + 1 :]), proven
            sure &= proven
            if guess is None:
                looks = self._guessed(key, names[: place + 1], place < limit)
                if looks is not None:
                    guess = place, looks
                    limit = min(limit, place + 1)
            parent = component
        if guess is None:
            return HOST, sure and not self._may_be_reported(names, limit)
        place, owner = guess
        # Who is named by the name of its cgroup alone is of no runtime that could report more.
        final = sure and (not self.answering or owner.runtime != UNKNOWN_RUNTIME)
        if not final:
            self._want(owner)
        return _with_nested(owner, names[place + 1 :]), final

    def is_reported(self, key: Key) -> bool:
        """Return whether a runtime reported a container with that key."""
        return any(registry.get(key) is not None for registry in self.registries.values())

    def is_taken(self, user: int, key: Key) -> bool:
        """Return whether a user's runtime reported a container that has the id of one of root's."""
        return user != ROOT and self.registries[ROOT].get(key) is not None

    def _claimed(self, key: Key, path: Path, trusted: bool) -> tuple[Container | None, bool]:
        """Return whose a cgroup is by its own name, and whether no runtime could change that."""
        sure = True
        for user, registry in self.registries.items():
            found = registry.get(key)
            if found is None or self.is_taken(user, key):
                continue
            if (trusted and user == ROOT) or is_proven(found, path):
                return found, self._is_final(found)
            if found.running and not found.pid:
                sure &= not self._prove(user, key, found)
        return None, sure

    def _guessed(self, key: Key, path: Path, trusted: bool) -> Container | None:
        """Return the container that a cgroup must be that of, though no runtime reported it."""
        looks = recognised(path[-2] if len(path) > 1 else "", path[-1])
        if trusted:
            return looks or _of_runc(path[-1])
        if looks is None or self.is_reported(key):
            return None
        # Nothing that an ordinary user may choose is part of the name.
        what = looks.name if isinstance(key, str) else looks.runtime
        return Container("/" + "/".join(path), f"unproven-{what}", UNKNOWN_RUNTIME)

    def _is_final(self, found: Container) -> bool:
        # Docker's containers are containerd's too, where they have no name.
        if found.named or found.scope not in DOCKERS:
            return True
        return self.answering <= {found.engine}

    def _prove(self, user: int, key: Key, container: Container) -> bool:
        """Have a container's first process asked for, once; return whether it may be reported."""
        mark = (user, key, container.started)
        if mark not in self._asked:
            if len(self._asked) >= _REMEMBERED:
                self._asked.clear()
            self._asked.add(mark)
            self.ask(container)
        return container.engine in self.answering

    def _may_be_reported(self, path: Path, trusted: int) -> bool:
        """Return whether containerd could yet report that a cgroup without an id is a container's.

        It makes `/NAMESPACE/ID` unless configured otherwise.
        """
        if len(path) < 2 or trusted < 2 or path[0].endswith(_UNITS):
            return False
        return any(
            source in self.answering
            and (source in self.unlisted or path[0] in getattr(runtime, "namespaces", ()))
            for source, runtime in self.sources.items()
            if hasattr(runtime, "namespaces")
        )

    def _want(self, container: Container) -> None:
        """Have those runtimes asked at once that are asked but now and then."""
        for runtime in self._listing:
            runtime.wanted(container.id)


def _of_runc(name: str) -> Container | None:
    """Return the container of that name that root's runc or crun has: its cgroup has no mark."""
    if name.endswith(_UNITS):
        return None
    for runtime, folder in RUNC_STATES.items():
        if os.path.isdir(f"{folder}/{name}"):
            return Container(name, name, runtime, scope=runtime)
    return None


def _with_nested(owner: Container, below: Path) -> Container:
    """Return the container with the id of the innermost one within it, by the cgroups below."""
    inner = next(filter(None, map(container_id, reversed(below))), "")
    return owner.copy(nested=inner) if inner and inner != owner.id else owner
