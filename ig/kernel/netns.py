"""Find the network namespaces of this host, and do something inside each.

Source: namespaces(7), setns(2), proc(5).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_CLONE_NEWNET = 0x40000000
_DENIED = (errno.EPERM, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace."""

    id: int
    """Its inode number, as in /proc/PID/ns/net."""
    pids: tuple[int, ...] = ()
    """The processes whose first thread is in it."""
    mounts: tuple[str, ...] = ()
    """The files where it is mounted, as `ip netns add` and engines do."""

    @property
    def files(self) -> Iterator[str]:
        """Give the files that can be opened to enter it."""
        yield from (f"/proc/{pid}/ns/net" for pid in self.pids)
        yield from self.mounts


def own() -> int:
    """Give the id of this process's network namespace."""
    return os.stat("/proc/self/ns/net").st_ino


def host() -> int:
    """Give the id of the first process's network namespace; the own where that may not be seen."""
    try:
        return os.stat("/proc/1/ns/net").st_ino
    except OSError:
        return own()


@dataclass(frozen=True, slots=True)
class Found:
    """The network namespaces of this host, by their id."""

    namespaces: dict[int, Namespace]
    complete: bool
    """Whether /proc lets this user see the namespaces of all processes, as it does root."""


def find() -> Found:
    """Find the network namespaces that a process is in or that are mounted somewhere."""
    complete = True
    pids: dict[int, list[int]] = {own(): []}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                pids.setdefault(os.stat(f"/proc/{name}/ns/net").st_ino, []).append(int(name))
            except OSError as error:
                complete &= error.errno not in _DENIED
    mounts: dict[int, list[str]] = {}
    for identifier, point in _mounted():
        mounts.setdefault(identifier, []).append(point)
    found = {
        each: Namespace(each, tuple(pids.get(each, ())), tuple(mounts.get(each, ())))
        for each in pids | mounts
    }
    # A sandbox may hide a process even from root.
    return Found(found, complete or os.geteuid() == 0)


def _mounted() -> Iterator[tuple[int, str]]:
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        if b" nsfs " not in line:
            continue
        _, _, _, root, point, *_ = line.split(b" ")
        if root.startswith(b"net:["):
            path = point.decode("unicode_escape").encode("latin-1")
            yield int(root[5:-1]), os.fsdecode(path)


def visit(
    wanted: Sequence[Namespace], act: Callable[[Namespace, bool], Result]
) -> Iterator[Result]:
    """Yield `act(namespace, entered)` of each, called in one thread that is in that namespace then.

    `entered` is false where the kernel does not let us in. A namespace that has vanished is left
    out. The thread ends with the iteration, so no other work is ever done in a foreign namespace.
    """

    def one(namespace: Namespace) -> list[Result]:
        entered = _enter(namespace)
        return [] if entered is None else [act(namespace, entered)]

    with ThreadPoolExecutor(1) as pool:
        for results in pool.map(one, wanted):
            yield from results


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _enter(namespace: Namespace) -> bool | None:
    """Say whether this thread is in the namespace now, None if there is no way to it any more."""
    if os.stat("/proc/thread-self/ns/net").st_ino == namespace.id:
        return True
    denied = False
    for path in namespace.files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            denied |= error.errno in _DENIED
            continue
        try:
            # The process may have ended, and another may have got its number or changed place.
            if os.fstat(descriptor).st_ino != namespace.id:
                continue
            if _libc().setns(descriptor, _CLONE_NEWNET) == 0:
                return True
            denied |= ctypes.get_errno() in _DENIED
        finally:
            os.close(descriptor)
    return False if denied else None
