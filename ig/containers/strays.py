"""Where a container's first process is: in a cgroup that proves whose it is, or in none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from ig.containers import processes
from ig.containers.cgroup import container_id
from ig.containers.container import Container
from ig.containers.processes import Path
from ig.containers.registry import Key, key_of
from ig.containers.sources import ROOT


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
    mount namespace is their own all the same. One writer at a time; reading needs no lock.
    """

    def __init__(self) -> None:
        self.by_mntns: Mapping[int, Container] = {}
        """Inode of the mount namespace -> container; replaced as a whole."""
        self.paths: frozenset[Path] = frozenset()
        """The cgroups of those processes; () stands for a root."""
        self.unreadable: set[Key] = set()
        """Those whose mount namespace may not be read: their processes are taken for others'."""
        self._host = {processes.mount_namespace(pid) for pid in ("self", "1")}
        self._found: dict[tuple[int, Key], Container] = {}
        self._paths: dict[tuple[int, Key], tuple[Path, ...]] = {}

    def looked_up(self, container: Container, user: int) -> Container:
        """Return a container with where its first process is, if its runtime told of that one.

        A runtime of an ordinary user's may tell of that user's processes only.
        """
        if not (container.running and container.pid):
            return container
        paths = processes.cgroups(container.pid)
        if paths is None or (user != ROOT and not processes.is_of_user(container.pid, user)):
            return container
        mntns = 0
        if not has_own_cgroup(container, paths):
            self._paths[user, key_of(container)] = paths or ((),)
            mntns = processes.mount_namespace(container.pid)
            if not mntns:
                self.unreadable.add(key_of(container))
        return replace(container, cgroups=paths, mntns=0 if mntns in self._host else mntns)

    def take_in(self, user: int, container: Container) -> bool:
        """Note what became of a container; return whether any answer is another now."""
        key = user, key_of(container)
        before = self._found.get(key)
        if container.running and container.mntns:
            self._found[key] = container
        else:
            self._found.pop(key, None)
            self._paths.pop(key, None)
            self.unreadable.discard(key[1])
        if self._found.get(key) == before:
            return False
        shared = Counter(each.mntns for each in self._found.values())
        self.by_mntns = {
            each.mntns: each for each in self._found.values() if shared[each.mntns] == 1
        }
        self.paths = frozenset(path for each in self._found for path in self._paths.get(each, ()))
        return True
