"""The paths of cgroups by the ids that the kernel reports, and who could have created them.

Source: fs/kernfs/mount.c (file handles that hold a bare id, since Linux 5.5: 33c5ac917519 "kernfs:
implement custom exportfs ops and fid type"), open_by_handle_at(2), fsopen(2), fsmount(2),
cgroup_namespaces(7); for paths in records `struct cgroup_path` and current_wanted() in ebpf/ig.h. A
cgroup's id is its inode number, 1 that of a hierarchy's root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ig.kernel import processes
from ig.kernel.mounts import Mount, legacy_cgroup_controller, mounts

_HANDLE = struct.Struct("=IiQ")  # file_handle: bytes of the handle, its type, the handle: an id
_FILEID_KERNFS = 0xFE
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture, since Linux 5.2
_CLOSE_ON_EXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_CREATE = 6  # FSCONFIG_CMD_CREATE
_LEGACY_KNOWN, _LEGACY_UNKNOWN = 1 << 63, 1 << 62  # see current_wanted() in ig.h
_ROOT = 1
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Cgroups:
    """The paths of cgroups by their id; those asked for are remembered. Close it after use.

    Paths are those that the first process sees, wherever cgroup2 is mounted, if at all: where this
    user may, it is mounted anew, out of everybody's sight. The thread that makes this object leaves
    a cgroup namespace of its own, so that /proc/PID/cgroup shows it the same paths.
    """

    def __init__(self) -> None:
        self.complete = processes.join_cgroups()
        """Whether paths begin at the host's root; else at a cgroup whose own path is unknown."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.roots: dict[str, int] = {}
        self._prefix = ""
        self.root = self._opened()
        """The folder of the hierarchy's root, or of the part that is mounted; -1 if none is."""
        # Where the walk and the links of /proc/self/fd begin, which are cut off.
        self._point = os.readlink(f"/proc/self/fd/{self.root}").rstrip("/") if self else ""
        self.roots[""] = self.root
        self._paths: dict[int, str | None] = {0: None}
        self._makers: dict[tuple[str, str], bool] = {}
        self._walked = False
        if self:
            self._paths[os.fstat(self.root).st_ino] = self._prefix or "/"

    def __bool__(self) -> bool:
        return self.root >= 0

    def __enter__(self) -> Cgroups:
        return self

    def __exit__(self, *_: object) -> None:
        for root in self.roots.values():
            if root >= 0:
                os.close(root)

    def path(self, identifier: int) -> str | None:
        """Return the path below the hierarchy's root (`/` is the root itself).

        None if the cgroup is gone, or cannot be seen from here.
        """
        if identifier not in self._paths:
            self._paths[identifier] = self._find(identifier) if self and self.complete else None
        return self._paths[identifier]

    def trusted(self, path: str, controllers: str = "") -> int | None:
        """Return how many leading names of a cgroup's path only root could have made.

        `controllers` are those of a version 1 hierarchy. None if that hierarchy cannot be seen from
        its root.
        """
        root = self._hierarchy(controllers)
        if root < 0 or (self._prefix and not controllers):
            return None
        names = [name for name in path.split("/") if name]
        folder = "."
        for count, name in enumerate(names):
            key = (controllers, folder)
            if key not in self._makers:
                self._makers[key] = _only_roots(folder, root)
            if not self._makers[key] or name == "..":
                return count
            folder += f"/{name}"
        return len(names)

    def _hierarchy(self, controllers: str) -> int:
        if controllers not in self.roots:
            wanted = set(controllers.split(","))
            whole = (
                mount.point
                for mount in mounts()
                if mount.kind == "cgroup" and mount.root == "/" and wanted <= set(mount.options)
            )
            self.roots[controllers] = next((os.open(point, _FOLDER) for point in whole), -1)
        return self.roots[controllers]

    def _opened(self) -> int:
        """Open the root of the hierarchy, or of the part of it that is mounted; -1 if none is."""
        mounted = self._mounted_anew()
        if mounted >= 0:
            try:
                return os.open(".", _FOLDER, dir_fd=mounted)
            finally:
                os.close(mounted)
        # A root that begins with /.. is outside of what this cgroup namespace has paths for.
        found = [m for m in mounts() if m.kind == "cgroup2" and not m.root.startswith("/..")]
        if not found:
            return -1
        largest: Mount = min(found, key=lambda mount: len(mount.root))
        self._prefix = largest.root.rstrip("/")
        return os.open(largest.point, _FOLDER)

    def _mounted_anew(self) -> int:
        """Mount cgroup2 without a place in any tree, as only root may; -1 if that is refused."""
        call = self._libc.syscall
        context = call(_FSOPEN, b"cgroup2", _CLOSE_ON_EXEC)
        if context < 0:
            return -1
        try:
            if call(_FSCONFIG, context, _CREATE, None, None, 0) < 0:
                return -1
            return int(call(_FSMOUNT, context, _CLOSE_ON_EXEC, 0))
        finally:
            os.close(context)

    def _find(self, identifier: int) -> str | None:
        handle = _HANDLE.pack(8, _FILEID_KERNFS, identifier)
        opened = -1
        if not self._walked:
            opened = self._libc.open_by_handle_at(self.root, handle, _FOLDER)
        if opened < 0:
            if ctypes.get_errno() != errno.EPERM and not self._walked:
                return None
            return self._walk(identifier)
        try:
            path = os.readlink(f"/proc/self/fd/{opened}").removeprefix(self._point)
        finally:
            os.close(opened)
        # What is not below the folder that is mounted has no path: the kernel shows the mount's.
        return self._prefix + path if path.strip("/") else None

    def _walk(self, identifier: int) -> str | None:
        """Look at all cgroups, once: handles need CAP_DAC_READ_SEARCH."""
        if not self._walked:
            self._walked = True
            point = f"/proc/self/fd/{self.root}"
            for inode, path in _walk(point):
                below = "".join(f"/{name}" for name in path.names)
                self._paths[inode] = self._prefix + below or "/"
        return self._paths.get(identifier)


def open_root() -> int:
    """Return a descriptor of the root of the version 2 hierarchy, wherever it is mounted.

    The calling thread leaves a cgroup namespace of its own. Raises OSError.
    """
    with Cgroups() as found:
        if found and found.path(_ROOT) == "/":
            return os.dup(found.root)
    raise OSError(errno.ENOENT, "the root of the cgroup v2 hierarchy cannot be seen from here")


def _only_roots(folder: str, root: int) -> bool:
    """Return whether nobody but root can make folders in this one."""
    try:
        found = os.stat(folder, dir_fd=root)
    except OSError:  # it is gone, or was never seen from here
        return False
    return found.st_uid == 0 and not found.st_mode & _OTHERS_MAY_WRITE


class CgroupPath(NamedTuple):
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
    """Return whether the version 1 cgroup is unknown, as for a cgroup taken from a socket."""
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
