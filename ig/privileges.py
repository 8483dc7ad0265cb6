"""What this process may do: whether that is enough to trace, and how the rest is given up.

Source: capabilities(7), capset(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from ig.errors import KernelRefused

_DAC_OVERRIDE, _SYS_ADMIN, _PERFMON, _BPF = 1, 21, 38, 39
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38


def need_privileges() -> None:
    """Raise KernelRefused unless this process may load programs that read the kernel's memory."""
    effective = _held()
    has = [bool(effective >> bit & 1) for bit in (_SYS_ADMIN, _BPF, _PERFMON)]
    if not (has[0] or (has[1] and has[2])):
        raise KernelRefused(
            "Tracing needs root.",
            f"This process runs as uid {os.geteuid()} without CAP_SYS_ADMIN, or CAP_BPF and "
            "CAP_PERFMON.",
            "Run it with sudo."
            if os.geteuid()
            else "Root of a container is not enough: run it on the host itself, or in a privileged "
            "container (docker run --privileged --pid=host).",
        )


def drop(used: Iterable[str]) -> None:
    """Give up, for good, what a process that reads events of a loaded program does not need.

    CAP_BPF stays (before Linux 5.19 maps are not updated without it, c8644cd0efe7), and
    CAP_DAC_OVERRIDE where one of the paths that are `used` later belongs to somebody else. It
    concerns the calling thread and those that it starts, so it must come before any other.
    Raises KernelRefused.
    """
    held = _held()
    keep = held & 1 << _BPF
    libc = ctypes.CDLL(None, use_errno=True)
    # What is run from here on gets nothing back, as root's programs otherwise do. Only who may not
    # drop (CAP_SETPCAP) is refused, and then has little.
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _set(libc, keep, keep | held & 1 << _DAC_OVERRIDE)
    if not all(map(_reachable, used)):
        keep |= held & 1 << _DAC_OVERRIDE
    _set(libc, keep, keep)


def _held() -> int:
    status = Path("/proc/thread-self/status").read_text()
    return int(status.partition("CapEff:")[2].split(None, 1)[0], 16)


def _set(libc: ctypes.CDLL, effective: int, permitted: int) -> None:
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(
        *(s >> n & 0xFFFFFFFF for n in (0, 32) for s in (effective, permitted, 0))
    )
    if libc.capset(header, data):
        raise KernelRefused(
            "The privileges that are not needed any more could not be given up.",
            f"capset: {os.strerror(ctypes.get_errno())}",
            "--keep-privileges traces with all of them.",
        )


def _reachable(path: str) -> bool:
    """Say whether a file can be written to, or made where it is not there yet."""
    while not os.path.lexists(path) and path not in ("", "/"):
        path = os.path.dirname(path) or "."
    return os.access(path, os.W_OK, effective_ids=True)
