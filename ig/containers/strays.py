"""Where a container's first process is: in a cgroup that proves whose it is, or in none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from ig.containers import processes
from ig.containers.cgroup import container_id
from ig.containers.container import Container
from ig.containers.processes import Path
from ig.containers.sources import ROOT
from ig.containers.store import Key, key_of

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
    of the first process. One writer at a time; reading needs no lock.
    """

    def __init__(self) -> None:
        self.by_mntns: Mapping[int, Container] = {}
        """Inode of the mount namespace -> container; replaced as a whole."""
        self.by_pid: Mapping[int, Container] = {}
        """First process -> container, while its mount namespace is not known; the same."""
        self.paths: frozenset[Path] = frozenset()
        """The cgroups of those processes; () stands for a root."""
        self._host = {processes.mount_namespace(pid) for pid in ("self", "1")}
        self._found: dict[_Key, Container] = {}
        self._places: dict[_Key, tuple[int, tuple[Path, ...]]] = {}
        self._seen: dict[_Key, int] = {}

    def looked_up(self, container: Container, user: int) -> Container:
        """Return a container with where its first process is, if its runtime told of that one.

        A runtime of an ordinary user's may tell of that user's processes only.
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

    def take_in(self, user: int, container: Container) -> bool:
        """Note what became of a container; return whether any answer is another now."""
        key = user, key_of(container)
        before = self._found.get(key)
        if container.running and key in self._places:
            self._found[key] = container
        else:
            for remembered in (self._found, self._places, self._seen):
                remembered.pop(key, None)
        if self._found.get(key) == before:
            return False
        self._remake()
        return True

    def locate(self, pid: int, mntns: int) -> bool:
        """Note which mount namespace a first process is in; return whether that was missing."""
        key = next((key for key in self._found if self._places[key][0] == pid), None)
        if key is None or mntns in self._host or pid not in self.by_pid:
            return False
        self._seen[key] = mntns
        self._remake()
        return True

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
