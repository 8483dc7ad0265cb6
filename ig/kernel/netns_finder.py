"""Find the network namespaces of this host, once or again and again.

Source: namespaces(7), proc(5).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ig.kernel.mounts import mounts
from ig.kernel.netns import DENIED, Found, Namespace, file_of, own
from ig.kernel.processes import sees_all_processes

_LINK = "net:["
_ONE_THREAD = 3  # links of /proc/PID/task: two, and one a thread
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_DESCRIPTORS = 1024
"""Of a process with more the descriptors are not looked at: each costs 3 us."""
_AGAIN, _PARTS = 10.0, 16
"""Seconds after which a known process is looked at again, and into how many groups they are split.
"""


def find() -> Found:
    """Find the existing network namespaces.

    Each has a thread in it, or is mounted in some mount namespace, or is held by a descriptor;
    sockets alone keep one alive too, and then there is no way to it.
    """
    return Finder().find()


Link = tuple[int, str]
"""The id of a namespace, and a folder of a thread or a file by which it is reached."""


class _Process(NamedTuple):
    """What a process has to do with network namespaces."""

    until: float
    """When to look again, by the monotonic clock."""
    first: int
    """The namespace of its first thread."""
    mounts: int
    """Its mount namespace."""
    threads: tuple[Link, ...]
    """Its other threads, of those that are in another one."""
    held: tuple[Link, ...]
    """What it holds open."""
    mounted: tuple[Link, ...]
    """What is mounted where it is, if it was the first one asked there."""
    asked: bool

    def confirmed(self) -> _Process:
        """Return it without threads that are elsewhere now, and without closed descriptors."""
        if not self.threads and not self.held:
            return self
        threads = tuple(each for each in self.threads if _leads(file_of(each[1]), each[0]))
        held = tuple(each for each in self.held if _leads(each[1], each[0]))
        return self._replace(threads=threads, held=held)


class Finder:
    """Finds the existing network namespaces, again and again, as `find` does.

    The namespace of each process's first thread is read every time: a namespace with a process in
    it is found at once. Other threads, descriptors and mounts take most of the time. They are read
    of a new process at once, of others every ten seconds (`_AGAIN`): what was added since may be
    missing for so long. Threads that have left and closed descriptors are never in the answer.
    A process is identified by its number and the inode of its folder in /proc: another process
    that gets the number has another inode.
    """

    def __init__(self, again: float = _AGAIN) -> None:
        """Read everything of a known process every `again` seconds."""
        self._again = again
        self._known: dict[tuple[int, int], _Process] = {}
        self._own: tuple[float, tuple[Link, ...]] = 0.0, ()
        self._complete = True
        self._asked: set[int] = set()
        """The mount namespaces whose mounts have been read."""

    def find(self) -> Found:
        """Return the existing network namespaces."""
        now = time.monotonic()
        if now >= self._own[0]:
            self._own = now + self._again, tuple(_mounted("self", ""))
        present = _processes()
        known = {key: self._known[key] for key in present if key in self._known}
        asked = (each.mounts for each in known.values() if each.asked and each.until > now)
        self._asked = {os.stat("/proc/self/ns/mnt").st_ino, *asked}
        self._known, self._complete = {}, True
        places = _Places(self._own[1])
        for key in present:
            pid = key[0]
            try:
                first = os.stat(f"/proc/{pid}/ns/net").st_ino
            except OSError as error:
                self._complete &= error.errno not in DENIED
                continue
            process = known.get(key)
            if process is not None and self._holds(process, first, now):
                process = process.confirmed()
            else:
                process = self._looked(pid, first, now, process is None)
            places.add(pid, process)
            if process.until > now:
                self._known[key] = process
        # A sandbox may hide a process even from root.
        complete = self._complete or os.geteuid() == 0
        return Found(places.namespaces(), complete, sees_all_processes())

    def _holds(self, process: _Process, first: int, now: float) -> bool:
        """Return whether what is known of a process may be used."""
        return process.until > now and process.first == first and process.mounts in self._asked

    def _looked(self, pid: int, first: int, now: float, new: bool) -> _Process:
        """Return what a process has; not to be kept if a part of it could not be read."""
        folder = f"/proc/{pid}"
        threads: list[Link] = []
        held: list[Link] = []
        mounted: list[Link] = []
        mounts, asked = 0, False
        # Not all at the same time.
        until = now + self._again * ((pid % _PARTS + 1) / _PARTS if new else 1)
        try:
            if os.stat(f"{folder}/task").st_nlink > _ONE_THREAD:
                threads += _threads(pid, first)
            mounts = os.stat(f"{folder}/ns/mnt").st_ino
            if mounts not in self._asked:
                self._asked.add(mounts)
                asked = True
                mounted += _mounted(str(pid), f"{folder}/root")
            held += _descriptors(pid)
        except OSError as error:
            self._complete &= error.errno not in DENIED
            until = now
        links = tuple(threads), tuple(held), tuple(mounted)
        return _Process(until, first, mounts, *links, asked)


class _Places:
    """The namespaces of one process after another."""

    def __init__(self, mounted: Sequence[Link]) -> None:
        """Begin with what is `mounted` where this process is."""
        self._tasks: dict[int, list[str]] = {own(): []}
        self._pids: dict[int, list[int]] = {}
        self._holders: dict[int, list[int]] = {}
        self._paths: dict[int, list[str]] = {}
        self._held(os.getpid(), mounted)

    def add(self, pid: int, process: _Process) -> None:
        """Add those of a process."""
        for namespace, task in ((process.first, str(pid)), *process.threads):
            pids = self._pids.setdefault(namespace, [])
            if pids[-1:] != [pid]:
                pids.append(pid)
            self._tasks.setdefault(namespace, []).append(task)
        self._held(pid, (*process.mounted, *process.held))

    def namespaces(self) -> dict[int, Namespace]:
        """Return what was found, by id."""
        none: list[Any] = []
        return {
            each: Namespace(
                each,
                tuple(self._pids.get(each) or self._holders.get(each, none)),
                tuple(self._tasks.get(each, none)),
                tuple(self._paths.get(each, none)),
            )
            for each in self._tasks | self._paths
        }

    def _held(self, pid: int, links: Sequence[Link]) -> None:
        for namespace, path in links:
            self._holders.setdefault(namespace, []).append(pid)
            self._paths.setdefault(namespace, []).append(path)


def _processes() -> list[tuple[int, int]]:
    """Return the number of each process, and the inode of its folder."""
    with os.scandir("/proc") as entries:
        return [(int(each.name), each.inode()) for each in entries if each.name.isdecimal()]


def _threads(pid: int, first: int) -> Iterator[Link]:
    for name in os.listdir(f"/proc/{pid}/task"):
        task = f"{pid}/task/{name}"
        try:
            namespace = os.stat(file_of(task)).st_ino
        except OSError:  # it has ended
            continue
        if namespace != first:
            yield namespace, task


def _mounted(process: str, prefix: str) -> Iterator[Link]:
    for mount in mounts(process):
        if mount.kind == "nsfs" and mount.root.startswith(_LINK):
            yield _identifier(mount.root), f"{prefix}{mount.point}"


def _descriptors(pid: int) -> Iterator[Link]:
    path = f"/proc/{pid}/fd"
    folder = os.open(path, _FOLDER)
    try:
        # Their number, since Linux 6.2 (f1f1f2569901 "proc: report open files as size in stat()
        # for /proc/pid/fd").
        if os.fstat(folder).st_size > _MOST_DESCRIPTORS:
            return
        names = os.listdir(folder)
        for name in names if len(names) <= _MOST_DESCRIPTORS else ():
            try:
                target = os.readlink(name, dir_fd=folder)
            except OSError:  # it is closed
                continue
            if target.startswith(_LINK):
                yield _identifier(target), f"{path}/{name}"
    finally:
        os.close(folder)


def _leads(path: str, namespace: int) -> bool:
    try:
        return os.readlink(path) == f"{_LINK}{namespace}]"
    except OSError:
        return False


def _identifier(link: str) -> int:
    return int(link[len(_LINK) : -1])
