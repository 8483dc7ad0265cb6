"""The capabilities of this process: whether they suffice to trace, and how the rest is dropped.

Source: capabilities(7), capset(2), prctl(2), path_resolution(7).
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from ig.errors import KernelRefused


class Capability(IntEnum):
    """A capability by its number in include/uapi/linux/capability.h."""

    CAP_DAC_OVERRIDE = 1
    CAP_DAC_READ_SEARCH = 2
    CAP_NET_ADMIN = 12
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_SYSLOG = 34
    CAP_PERFMON = 38
    CAP_BPF = 39


_SEARCH = Capability.CAP_DAC_READ_SEARCH
_OVERRIDE = Capability.CAP_DAC_OVERRIDE
_VERSION_3 = 0x20080522
_FIRST_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO of include/linux/proc_ns.h
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 1, 24, 28, 38
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_NOBODY = 65534
_Sets = tuple[int, int, int]  # effective, permitted, inheritable, as in struct user_cap_data

_given_up = False


class Use(NamedTuple):
    """A file that is opened after privileges are dropped."""

    path: str
    access: int = os.W_OK
    """W_OK to write there, and to connect to a socket; R_OK to read."""
    expected: bool = False
    """Whether the user named it, so that it counts although it does not exist yet."""
    lasting: bool = True
    """Whether it is opened again later, when its owner may have changed."""


class Reach(NamedTuple):
    """Whether a file stays accessible after privileges are dropped."""

    kept: str = ""
    """The capability that is kept for it: its name, or "" if none is needed."""
    why: str = ""
    """Why that one is kept."""
    problem: str = ""
    """What denies access nevertheless, or "" if nothing does."""


def need_privileges() -> None:
    """Raise KernelRefused unless this process may load programs that read the kernel's memory."""
    needed = (Capability.CAP_SYS_ADMIN, Capability.CAP_BPF, Capability.CAP_PERFMON)
    admin, bpf, perfmon = map(holds, needed)
    if not (admin or (bpf and perfmon)):
        raise KernelRefused(
            "Tracing needs root.",
            f"This process runs as uid {os.geteuid()} without CAP_SYS_ADMIN, or CAP_BPF and "
            "CAP_PERFMON.",
            "Run it with sudo."
            if os.geteuid()
            else "Root in a container does not have them: run it on the host, or add them "
            "(docker run --pid host --cap-add BPF --cap-add PERFMON, see packaging/README.md).",
        )
    if not _in_first_user_namespace():
        raise KernelRefused(
            "Tracing needs root on the host.",
            "This process runs in its own user namespace, where CAP_BPF and CAP_PERFMON have no "
            "effect.",
            "Run it without unshare --user, and not in a container that is rootless or has "
            "userns-remap.",
        )


def _in_first_user_namespace() -> bool:
    try:
        return os.stat("/proc/self/ns/user").st_ino == _FIRST_USER_NAMESPACE
    except OSError:  # a kernel without user namespaces, or no /proc
        return True


def holds(capability: Capability) -> bool:
    """Return whether this thread has a capability now."""
    return bool(_capabilities()[0] & _bit(capability))


def drop(used: Iterable[Use], keep: Iterable[Capability] = (Capability.CAP_BPF,)) -> None:
    """Drop, for good, every capability but those to `keep` and those that files `used` need.

    CAP_BPF is needed to update maps before Linux 5.19 (c8644cd0efe7). It concerns the calling
    thread and those that it starts, so it must come before any other. Raises KernelRefused.
    """
    global _given_up
    held = _capabilities()[0]
    kept = {reach(use.path, use.access, use.expected, use.lasting).kept for use in used} - {""}
    if _OVERRIDE.name in kept:  # includes the other
        kept.discard(_SEARCH.name)
    needed = held & _bits([*keep, *(Capability[name] for name in kept)])
    libc = _libc()
    # What is run from here on gets nothing back, as root's programs otherwise do. Only who may not
    # drop (CAP_SETPCAP) is refused, and then has little.
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _set_capabilities((needed, needed, 0))
    _given_up = needed != held


def end_with_parent() -> None:
    """Have this process killed when its parent ends, also if it hangs or is stopped.

    A change of the effective user undoes it. Source: PR_SET_PDEATHSIG(2const).
    """
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def hide_kernel_symbols() -> None:
    """Keep BCC in this process from reading all of the kernel's symbols: a fifth of a start.

    It looks for one name among them, which nothing of ours needs. BCC before 0.29 reads them only
    if the effective user is root; later ones leave out those whose address is 0, as all are
    without CAP_SYSLOG. The process keeps its other capabilities, and opens files as before.
    Where that is refused, only time is lost.
    """
    libc = _libc()
    with suppress(OSError, KernelRefused):
        effective, permitted, inheritable = _capabilities()
        _set_capabilities((effective & ~_bit(Capability.CAP_SYSLOG), permitted, inheritable))
        root = os.geteuid() == 0
        if root and not libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0):
            os.seteuid(_NOBODY)
            libc.setfsuid(0)


def reach(path: str, access: int = os.W_OK, expected: bool = False, lasting: bool = True) -> Reach:
    """Return whether a file stays accessible after `drop`, and what `drop` keeps for it.

    The parameters are those of `Use`. Anything but a path (tcp://…) is accessible. Files
    of another user, and expected ones that are not there yet, may become unreachable at any time:
    for those that are opened again later, the capability is kept that overcomes everything.
    """
    path = path.removeprefix("unix://")
    if "://" in path:
        return Reach()
    real = os.path.realpath(path)
    strongest = _OVERRIDE if access & os.W_OK else _SEARCH
    kept, first, found = _least(real, access, strongest)
    why = first.what
    if found.missing and expected:
        kept, why = strongest, found.what
    elif lasting and (kept or not found.what) and (owner := _stranger(real)):
        kept, why = strongest, why or owner
    if not kept or not holds(kept):
        return Reach(problem=found.what)
    return Reach(kept.name, why, found.what)


def _least(
    path: str, access: int, strongest: Capability
) -> tuple[Capability | None, _Obstacle, _Obstacle]:
    """Return the least capability that a file needs, what is in its way without, and with it.

    That it is not there is found out with the capability that its folders need.
    """
    effective, permitted, inheritable = sets = _capabilities()
    first: _Obstacle | None = None
    try:
        for capability in (None, _SEARCH, strongest):
            allowed = effective & _bit(capability) if capability else 0
            _set_capabilities((allowed, permitted, inheritable))
            found = _obstacle(path, access)
            first = first or found
            if not found.what or found.missing:
                return capability, first, found
        return None, first or found, found
    finally:
        _set_capabilities(sets)


def obstacle(path: str, access: int = os.W_OK) -> str:
    """Return what denies this thread access to a file, as a phrase; "" if nothing does.

    Anything but a path (tcp://…) is accessible.
    """
    path = path.removeprefix("unix://")
    if "://" in path:
        return ""
    found = _obstacle(os.path.realpath(path), access)
    if not found.what or found.missing or not _given_up:
        return found.what
    return f"{found.what}: ig dropped the privilege to access it at start; restart ig"


def is_missing(path: str) -> bool:
    """Return whether there is no such file; one that this thread cannot reach may be there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


class _Obstacle(NamedTuple):
    what: str = ""
    missing: bool = False


def _obstacle(path: str, access: int) -> _Obstacle:
    """Return what denies this thread access to a file: the first directory, or the file itself."""
    for place in (*reversed(Path(path).parents), Path(path)):
        wanted = access if str(place) == path else os.X_OK
        if os.access(place, wanted, effective_ids=True):
            continue
        try:
            status = place.stat()
        except (FileNotFoundError, NotADirectoryError):
            return _Obstacle(f"{place} does not exist", True)
        except OSError as error:
            return _Obstacle(f"{place}: {error.strerror}")
        return _Obstacle(
            f"{place} has mode {stat.S_IMODE(status.st_mode):04o} and belongs to uid "
            f"{status.st_uid}"
        )
    return _Obstacle()


def _stranger(path: str) -> str:
    """Return who else than root and this user owns the file or a folder above it, as a phrase."""
    for place in filter(os.path.exists, (Path(path), *Path(path).parents)):
        owner = place.stat().st_uid
        if owner not in (0, os.geteuid()):
            return f"{place} belongs to uid {owner}, who may change its mode"
    return ""


def _bit(capability: Capability) -> int:
    return 1 << capability


def _bits(capabilities: Iterable[Capability]) -> int:
    return sum(map(_bit, set(capabilities)))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _capabilities() -> _Sets:
    status = Path("/proc/thread-self/status").read_text("utf-8", "replace")
    effective, permitted, inheritable = (
        int(status.partition(f"{name}:")[2].split(None, 1)[0], 16)
        for name in ("CapEff", "CapPrm", "CapInh")
    )
    return effective, permitted, inheritable


def _set_capabilities(sets: _Sets) -> None:
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(*(each >> n & 0xFFFFFFFF for n in (0, 32) for each in sets))
    if _libc().capset(header, data):
        raise KernelRefused(
            "Cannot drop the privileges that are no longer needed.",
            f"capset: {os.strerror(ctypes.get_errno())}",
            "Use --keep-privileges to keep them.",
        )
