"""The paths of cgroups, as the kernel's programs send them, or looked up by the ids of events.

Source: `struct cgroup_path` and current_wanted() in ebpf/ig.h; fs/kernfs (a cgroup's id is its
inode number, 1 that of a hierarchy's root).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ig.kernel.mounts import legacy_cgroup_controller, mounts

_LEGACY_KNOWN, _LEGACY_UNKNOWN = 1 << 63, 1 << 62
_ROOT = 1
_OTHERS_MAY_WRITE = 0o022


@dataclass(frozen=True, slots=True)
class CgroupPath:
    """Where a cgroup is in one hierarchy."""

    names: tuple[str, ...]
    """From the child of the root down to the cgroup."""
    trusted: int
    """How many leading names stand where only root could have made them."""
    complete: bool = True
    """False where the outermost names are missing."""


Paths = tuple[CgroupPath, ...]
"""The path in the version 2 hierarchy, then that in a version 1 hierarchy if it is known."""


def unified_id(identifier: int) -> int:
    """Return the id, or its lower 32 bits, in the version 2 hierarchy."""
    return identifier & 0xFFFFFFFF if identifier >= _LEGACY_UNKNOWN else identifier


def socket_only(identifier: int) -> bool:
    """Return whether the version 1 cgroup is not known, as where only a socket tells its cgroup."""
    return bool(identifier & _LEGACY_UNKNOWN) and not identifier & _LEGACY_KNOWN


def decode(text: bytes) -> Paths:
    """Return the paths in the text of a `struct cgroup_path`."""
    levels = text.split(b"\0")[:-1]
    if b"+" not in levels:
        return (_decode(levels),)
    plus = levels.index(b"+")
    return _decode(levels[:plus]), _decode(levels[plus + 1 :])


def _decode(levels: Sequence[bytes]) -> CgroupPath:
    """Return the path of some levels, leaf first, each a letter and a name."""
    names: list[str] = []
    trusted, roots = 0, True
    for level in reversed(levels):
        name = level[1:].decode(errors="backslashreplace")
        if name not in ("", "/"):
            names.append(name)
            trusted += roots
        # What is above `!` may be anybody's.
        roots = roots and level[:1] == b"r"
    return CgroupPath(tuple(names), trusted, complete=b"!" not in levels)


def look_up(identifiers: Collection[int]) -> dict[int, Paths]:
    """Return the paths of those cgroups that still exist, by walking the mounted hierarchies.

    Where only a part of a hierarchy is mounted, nothing in it is found. 10,000 cgroups take some
    50 ms.
    """
    unified = {unified_id(each) for each in identifiers}
    legacy = {_legacy_id(each) for each in identifiers if each & _LEGACY_KNOWN}
    controller = legacy_cgroup_controller() if legacy else None
    points = [mount for mount in mounts() if mount.kind.startswith("cgroup")]
    paths2 = _find([m.point for m in points if m.kind == "cgroup2"], unified)
    paths1 = _find([m.point for m in points if controller in m.options], legacy)
    found: dict[int, Paths] = {}
    for identifier in identifiers:
        path = paths2.get(unified_id(identifier))
        other = paths1.get(_legacy_id(identifier)) if identifier & _LEGACY_KNOWN else None
        if path and (other or not identifier & _LEGACY_KNOWN):
            found[identifier] = (path, other) if other else (path,)
    return found


def _legacy_id(identifier: int) -> int:
    return identifier >> 32 & 0x7FFFFFFF


def _find(points: Collection[str], wanted: Collection[int]) -> dict[int, CgroupPath]:
    for point in points:
        try:
            if os.stat(point).st_ino == _ROOT:
                return {inode: path for inode, path in _walk(point) if inode in wanted}
        except OSError:
            continue
    return {}


def _walk(point: str) -> Iterator[tuple[int, CgroupPath]]:
    """Yield the inode number and the path of each cgroup."""
    left: list[tuple[str, tuple[str, ...], int, bool]] = [(point, (), 0, True)]
    while left:
        folder, names, trusted, roots = left.pop()
        try:
            status = os.stat(folder)
            yield status.st_ino, CgroupPath(names, trusted)
            roots = roots and status.st_uid == 0 and not status.st_mode & _OTHERS_MAY_WRITE
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        name = os.fsencode(entry.name).decode(errors="backslashreplace")
                        left.append((entry.path, (*names, name), trusted + roots, roots))
        except OSError:
            continue  # removed meanwhile
