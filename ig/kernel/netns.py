"""The network namespaces of this host: enter one after another, and run a function in each.

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
from typing import NamedTuple, TypeVar

from ig.kernel.processes import identifier

Result = TypeVar("Result")

_CLONE_NEWNET = 0x40000000
DENIED = (errno.EPERM, errno.EACCES)


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
        yield from map(file_of, self.tasks)
        yield from self.paths


def file_of(task: str) -> str:
    """Return the file of a thread's namespace; `task` is a folder of /proc as in `tasks`."""
    return f"/proc/{task}/ns/net"


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
            denied |= error.errno in DENIED
            continue
        try:
            if _libc().setns(descriptor, _CLONE_NEWNET) == 0:
                return True
            denied |= ctypes.get_errno() in DENIED
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
