"""What the kernel reports of processes: when they began, their cgroups, their namespaces.

Source: proc(5), namespaces(7), setns(2), include/linux/proc_ns.h (the inodes of the initial
namespaces).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address

from ig.kernel import monitor

_PID, _CGROUP = 0xEFFFFFFC, 0xEFFFFFFB  # PROC_PID_INIT_INO, PROC_CGROUP_INIT_INO
_CLONE_NEWCGROUP = 0x02000000

Path = tuple[str, ...]
"""A cgroup: the names from its hierarchy's root, which has none, down to its own."""


def started(pid: int) -> int:
    """Return when the process began, in ns since the epoch; 0 if it cannot be determined.

    Fields of `/proc/PID/stat` and `/proc/stat`: proc(5). Exact to 10 ms.
    """
    try:
        # The name may hold spaces and parentheses; what follows its end is numbers.
        fields = monitor.read(pid, "stat").rpartition(")")[2].split()
        ticks = int(fields[19])
        boot = next(
            int(line.split()[1])
            for line in _read("/proc/stat").splitlines()
            if line.startswith("btime ")
        )
    except (ValueError, IndexError, StopIteration):
        return 0
    return boot * 1_000_000_000 + ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def cgroups(pid: int) -> tuple[Path, ...] | None:
    """Return the cgroups of a process, of every hierarchy; None if it is gone or not ours to see.

    The roots are left out. A path outside of this process's own cgroup namespace begins with `..`:
    the names above it are not reported (cgroups(7)).
    """
    text = monitor.read(pid, "cgroup") if sees_host() else ""
    return paths(text) if text else None


def identifier(kind: str) -> int:
    """Return the inode of the first process's namespace of a kind (`net`, `pid`), 0 if unknown."""
    for path in _files(kind):
        try:
            return os.stat(path).st_ino
        except OSError:
            continue
    return 0


def sees_all_processes() -> bool:
    """Return whether /proc has the processes of the whole host: it is the first PID namespace's."""
    return (identifier("pid") or os.stat("/proc/self/ns/pid").st_ino) == _PID


def join_cgroups() -> bool:
    """Enter the first process's cgroup namespace, so that paths of cgroups are those of the host.

    Returns whether that worked. Otherwise paths begin at a cgroup whose own path is unknown.
    """
    own = os.stat("/proc/thread-self/ns/cgroup").st_ino
    wanted = identifier("cgroup") or _CGROUP
    if wanted == own:
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    for path in _files("cgroup"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if libc.setns(descriptor, _CLONE_NEWCGROUP) == 0:
                return True
        finally:
            os.close(descriptor)
    return False


def _files(kind: str) -> Iterator[str]:
    yield f"/proc/1/ns/{kind}"
    # The first process may be out of reach even for root. The second is the kernel's own, which is
    # in the first namespaces of all kinds, but only the first PID namespace has it.
    try:
        if os.stat("/proc/2/ns/pid").st_ino == _PID:
            yield f"/proc/2/ns/{kind}"
    except OSError:
        return


@lru_cache(maxsize=1)
def sees_host() -> bool:
    """Return whether processes have the numbers here that runtimes on the host report."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _PID
    except OSError:
        return False


def all_cgroups() -> set[Path]:
    """Return the cgroups that any process is in, as `cgroups` does."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return {path for text in {monitor.read(pid, "cgroup") for pid in pids} for path in paths(text)}


def threads_in(calls: Collection[str]) -> Iterator[int]:
    """Yield the threads of the host that wait in one of these system calls (`/proc/PID/syscall`).

    None where processes have other numbers than on the host, or cannot be looked into.
    """
    for pid in filter(str.isdigit, os.listdir("/proc") if sees_host() else ()):
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError), open(f"/proc/{pid}/task/{thread}/syscall") as file:
                    if file.read().partition(" ")[0] in calls:
                        yield int(thread)


def paths(text: str) -> tuple[Path, ...]:
    """Return the cgroups in the text of a `/proc/PID/cgroup`."""
    given = (line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2)
    found = (tuple(name for name in path.split("/") if name) for path in given)
    return tuple(dict.fromkeys(filter(None, found)))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except OSError:
        return ""


def mount_namespace(pid: int | str) -> int:
    """Return the inode of a process's mount namespace; 0 if it cannot be determined."""
    return monitor.namespace(pid, "mnt")


def network_namespace(pid: int, identifier: str, file: str = "") -> int:
    """Return the inode of a container's network namespace; 0 if it cannot be determined.

    `file` is where its engine mounted it, if it did. The first process is asked if its cgroup has
    the container's id: an engine elsewhere counts otherwise.
    """
    if file.startswith("/"):
        with suppress(OSError, ValueError):
            found = os.stat(file)
            if found.st_dev == os.stat("/proc/self/ns/net").st_dev:
                return found.st_ino
    if pid and identifier in monitor.read(pid, "cgroup"):
        return monitor.namespace(pid, "net")
    return 0


def has_address(pid: int, address: str) -> bool:
    """Return whether an address is one of a process's network namespace.

    A socket may have another: bound by IP_FREEBIND, or accepted by a transparent proxy.
    """
    if ":" in address:
        digits = ip_address(address).packed.hex()
        lines = monitor.read(pid, "net/if_inet6").splitlines()
        return any(line.startswith(digits) for line in lines)
    local = rf"\|-- {re.escape(address)}\n(?: +/\d+ .*\n)*? +/32 host LOCAL$"
    return re.search(local, monitor.read(pid, "net/fib_trie"), re.MULTILINE) is not None


def other_network(pid: int) -> int:
    """Return the inode of a process's network namespace; 0 if that is the host's, or not known.

    -1 stands for another one than the host's whose inode cannot be determined.
    """
    if not pid:
        return 0
    inode, host = (monitor.namespace(each, "net") for each in (pid, 1))
    if inode and host:
        return inode if inode != host else 0
    # The first process may be out of reach. That a file is not the same in both all may see.
    try:
        files = [os.stat(f"/proc/{each}/net/dev").st_ino for each in (pid, 1)]
    except OSError:
        return 0
    return inode or -1 if files[0] != files[1] else 0


def is_of_user(pid: int, uid: int) -> bool:
    """Return whether a process is in a user namespace of that user's, as a rootless engine's is.

    Such a namespace has the user's own id mapped, and root's not (user_namespaces(7)).
    """
    try:
        ranges = [
            tuple(map(int, line.split())) for line in monitor.read(pid, "uid_map").splitlines()
        ]
        outside = [range(first, first + count) for _, first, count in ranges]
    except ValueError:
        return False
    return any(uid in each for each in outside) and not any(0 in each for each in outside)
