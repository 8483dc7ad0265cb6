"""Find the namespaces that the host itself is in, from wherever this process runs.

Source: include/linux/proc_ns.h (the inodes of the initial namespaces), namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

_PID, _CGROUP = 0xEFFFFFFC, 0xEFFFFFFB
_CLONE_NEWCGROUP = 0x02000000


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
    """Let this thread see the paths of cgroups as the first process sees them.

    Returns whether it does now. Otherwise they begin at a cgroup whose own path is not known.
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
