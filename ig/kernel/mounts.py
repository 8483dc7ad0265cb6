"""Where cgroup file systems and tracefs are mounted; lockdown of the kernel."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ig.errors import KernelRefused

_CLONE_NEWNS = 0x00020000
_MS_REC_SLAVE = 0x4000 | 0x80000
_OCTAL = rb"\\([0-7]{3})"


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo."""

    point: str
    kind: str
    options: tuple[str, ...]
    """Those of the mount, then those of the file system."""
    root: str = "/"
    """What of the file system is mounted: `/` is all of it, a bind mount's is the folder bound."""


def mounts(process: str = "self") -> Iterator[Mount]:
    """Yield what is mounted in the mount namespace of a process. Raises OSError.

    Source: proc_pid_mountinfo(5).
    """
    text = Path(f"/proc/{process}/mountinfo").read_bytes()
    yield from map(parse_mount, text.splitlines())


def parse_mount(line: bytes) -> Mount:
    """Return the mount that a line of mountinfo describes, its paths unescaped."""
    mount, _, system = line.partition(b" - ")
    _, _, _, root, point, options, *_ = mount.split(b" ")
    kind, _, more = system.split(b" ", 2)
    every = (options + b"," + more).decode("ascii", "surrogateescape")
    return Mount(_unescaped(point), kind.decode(), tuple(every.split(",")), _unescaped(root))


def _unescaped(path: bytes) -> str:
    r"""Return the path with `\040` and similar escapes decoded."""
    if b"\\" not in path:
        return os.fsdecode(path)
    return os.fsdecode(re.sub(_OCTAL, lambda match: bytes([int(match[1], 8)]), path))


def legacy_cgroup_controller() -> str | None:
    """Name a controller whose cgroup v1 hierarchy is mounted here, None where there is no v1."""
    found = {option for mount in mounts() if mount.kind == "cgroup" for option in mount.options}
    return next((name for name in ("memory", "pids", "cpu", "cpuset") if name in found), None)


def reach_tracefs() -> None:
    """Mount tracefs where BCC looks for it, unless it is mounted there.

    The mount is in a private mount namespace and ends with the process. Raises KernelRefused.
    """
    # BCC before 0.25 looks under debugfs only.
    wanted = {"/sys/kernel/tracing": b"tracefs", "/sys/kernel/debug": b"debugfs"}
    missing = [point for point in wanted if not lists_tracepoints(point)]
    if len(missing) < len(wanted):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        _refuse(ctypes.get_errno())
    # In a chroot / may be no mount point; sysfs is one.
    if all(libc.mount(b"none", point, None, _MS_REC_SLAVE, None) for point in (b"/", b"/sys")):
        _refuse(ctypes.get_errno())
    refused = 0
    for point in missing:
        if libc.mount(b"none", point.encode(), wanted[point], 0, None):
            refused = ctypes.get_errno()
    if not any(map(lists_tracepoints, wanted)):
        _refuse(refused)


def lists_tracepoints(point: str) -> bool:
    """Return whether tracepoints are listed below a mount point of tracefs or debugfs."""
    return any(os.path.isdir(f"{point}/{folder}") for folder in ("events", "tracing/events"))


def _refuse(number: int) -> None:
    # A kernel locked down for confidentiality mounts an empty tracefs (since 5.4, bf8e602186ec).
    if locked := lockdown_refusal():
        raise locked
    raise KernelRefused(
        "Cannot access tracefs, which lists the kernel's tracepoints.",
        "/sys/kernel/tracing is empty, and mounting tracefs failed: "
        f"{os.strerror(number) if number else 'it is still empty'}.",
        "Mount it: mount -t tracefs tracefs /sys/kernel/tracing; for a container add "
        "--volume /sys/kernel/tracing:/sys/kernel/tracing:ro. "
        "`ig snapshot socket` works without tracefs.",
    )


_LOCKDOWN = Path("/sys/kernel/security/lockdown")


def lockdown_refusal() -> KernelRefused | None:
    """Return the refusal that a lockdown for confidentiality explains, None if none is known of.

    It is called to explain a refusal, not to predict one. Source: security/lockdown/lockdown.c.
    """
    try:
        levels = _LOCKDOWN.read_text("ascii")
    except OSError:  # no such feature, no securityfs mounted, or no right to look
        return None
    level = re.search(r"\[(\w+)\]", levels)
    if not level or level[1] != "confidentiality":
        return None
    return KernelRefused(
        "The kernel is locked down for confidentiality: tracing is disabled, even for root.",
        f"{_LOCKDOWN}: {level[1]}.",
        "Boot without lockdown=confidentiality (lockdown=integrity is fine); "
        "`ig snapshot socket` and `ig list-containers` still work.",
    )
