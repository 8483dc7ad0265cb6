"""Find the network namespaces of this host, and run a function in each.

Source: namespaces(7), setns(2), proc(5).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from ig.kernel.mounts import mounts
from ig.kernel.processes import identifier, sees_all_processes

Result = TypeVar("Result")

_CLONE_NEWNET = 0x40000000
_DENIED = (errno.EPERM, errno.EACCES)
_LINK = "net:["
_ONE_THREAD = 3  # links of /proc/PID/task: two, and one a thread
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_DESCRIPTORS = 1024
"""Of a process with more the descriptors are not looked at: each costs 3 us."""


class Namespace(NamedTuple):
    """A network namespace."""

    id: int
    """Its inode number, as in /proc/PID/ns/net."""
    pids: tuple[int, ...] = ()
    """The processes with a thread in it; without any, those that hold it open or mounted."""
    tasks: tuple[str, ...] = ()
    """Threads that are in it, as folders of /proc: `PID`, or `PID/task/TID`."""
    paths: tuple[str, ...] = ()
    """Other files that refer to it: mounts by `ip netns add` or an engine, descriptors."""

    @property
    def files(self) -> Iterator[str]:
        """Return the files that can be opened to enter it."""
        yield from (f"/proc/{task}/ns/net" for task in self.tasks)
        yield from self.paths


def own() -> int:
    """Return the id of this process's network namespace."""
    return os.stat("/proc/self/ns/net").st_ino


def host() -> int:
    """Return the id of the first process's network namespace; our own if that is hidden."""
    return identifier("net") or own()


class Found(NamedTuple):
    """The network namespaces of this host, by their id."""

    namespaces: dict[int, Namespace]
    complete: bool
    """Whether /proc lets this user see the namespaces of all processes, as it does root."""
    all_processes: bool = True
    """Whether /proc has the processes of the whole host, not of one PID namespace alone."""


def find() -> Found:
    """Find the existing network namespaces.

    Each has a thread in it, or is mounted in some mount namespace, or is held by a descriptor;
    sockets alone keep one alive too, and then there is no way to it.
    """
    search = _Search()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            search.process(int(name))
    # A sandbox may hide a process even from root.
    complete = search.complete or os.geteuid() == 0
    return Found(search.namespaces(), complete, sees_all_processes())


class _Search:
    """Looks at one process after another."""

    def __init__(self) -> None:
        self.complete = True
        self._tasks: dict[int, list[str]] = {own(): []}
        self._pids: dict[int, list[int]] = {}
        self._holders: dict[int, list[int]] = {}
        self._paths: dict[int, list[str]] = {}
        self._mounts = {os.stat("/proc/self/ns/mnt").st_ino}
        self._mounted("self", "", os.getpid())

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

    def process(self, pid: int) -> None:
        """Add the namespaces of a process's threads, of its mounts and of its descriptors."""
        folder = f"/proc/{pid}"
        try:
            first = os.stat(f"{folder}/ns/net").st_ino
            self._pids.setdefault(first, []).append(pid)
            self._tasks.setdefault(first, []).append(str(pid))
            if os.stat(f"{folder}/task").st_nlink > _ONE_THREAD:
                self._threads(pid, first)
            mounts = os.stat(f"{folder}/ns/mnt").st_ino
            if mounts not in self._mounts:
                self._mounts.add(mounts)
                self._mounted(str(pid), f"{folder}/root", pid)
            self._descriptors(pid)
        except OSError as error:
            self.complete &= error.errno not in _DENIED

    def _threads(self, pid: int, first: int) -> None:
        for name in os.listdir(f"/proc/{pid}/task"):
            task = f"{pid}/task/{name}"
            try:
                identifier = os.stat(f"/proc/{task}/ns/net").st_ino
            except OSError:  # it has ended
                continue
            if identifier != first:
                pids = self._pids.setdefault(identifier, [])
                if pids[-1:] != [pid]:
                    pids.append(pid)
                self._tasks.setdefault(identifier, []).append(task)

    def _mounted(self, process: str, prefix: str, pid: int) -> None:
        for mount in mounts(process):
            if mount.kind == "nsfs" and mount.root.startswith(_LINK):
                self._held(mount.root, f"{prefix}{mount.point}", pid)

    def _descriptors(self, pid: int) -> None:
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
                    self._held(target, f"{path}/{name}", pid)
        finally:
            os.close(folder)

    def _held(self, link: str, path: str, pid: int) -> None:
        identifier = int(link[len(_LINK) : -1])
        self._holders.setdefault(identifier, []).append(pid)
        self._paths.setdefault(identifier, []).append(path)


def visit(
    wanted: Sequence[Namespace], act: Callable[[Namespace, bool], Result]
) -> Iterator[Result]:
    """Yield `act(namespace, entered)` of each, called in one thread that is in that namespace then.

    `entered` is false where the kernel does not let us in. A namespace that has vanished is left
    out. The thread has ended before the first result is yielded: no other work is ever done in a
    foreign namespace, and the two threads do not compete for the interpreter's lock.
    """
    results: deque[Result] = deque()
    failures: list[BaseException] = []
    abandoned = False

    def work() -> None:
        try:
            for namespace in wanted:
                if abandoned:
                    break
                entered = _enter(namespace)
                if entered is not None:
                    results.append(act(namespace, entered))
        except BaseException as error:  # raised in the other thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        thread.join()
    finally:
        abandoned = True
        thread.join()
    while results:
        yield results.popleft()
    for failure in failures:
        raise failure


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _enter(namespace: Namespace) -> bool | None:
    """Return whether this thread is in the namespace now, None if it is not reachable any more."""
    if os.stat("/proc/thread-self/ns/net").st_ino == namespace.id:
        return True
    denied = False
    for path in namespace.files:
        try:
            descriptor = _opened(path, namespace.id)
        except OSError as error:
            denied |= error.errno in _DENIED
            continue
        try:
            if _libc().setns(descriptor, _CLONE_NEWNET) == 0:
                return True
            denied |= ctypes.get_errno() in _DENIED
        finally:
            os.close(descriptor)
    return False if denied else None


def _opened(path: str, identifier: int) -> int:
    """Return a descriptor of a namespace. Raises OSError if that is not what is at the path."""
    # The process may have ended, and another may have got its number or changed place. In a mount
    # namespace of others the path may lead anywhere by now: nothing is opened that is no namespace.
    there = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not _is(os.fstat(there), identifier):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return os.open(f"/proc/thread-self/fd/{there}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(there)


def _is(found: os.stat_result, identifier: int) -> bool:
    return found.st_ino == identifier and found.st_dev == os.stat("/proc/self/ns/net").st_dev
