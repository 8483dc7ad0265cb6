"""Find the name of a version 2 cgroup whose id the kernel told.

Source: fs/kernfs/mount.c (file handles that hold a bare id, since Linux 5.5), open_by_handle_at(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

from ig.kernel.mounts import mounts

_HANDLE = struct.Struct("=IiQ")  # file_handle: bytes of the handle, its type, the handle: an id
_FILEID_KERNFS = 0xFE


class Cgroups:
    """The names of cgroups by their id; those asked for are remembered. Close it after use."""

    def __init__(self) -> None:
        self._point = next((mount.point for mount in mounts() if mount.kind == "cgroup2"), "")
        self._paths: dict[int, str | None] = {0: None}
        self._root = -1
        self._walked = False
        if self._point:
            self._root = os.open(self._point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._open_by_handle = ctypes.CDLL(None, use_errno=True).open_by_handle_at

    def __enter__(self) -> Cgroups:
        return self

    def __exit__(self, *_: object) -> None:
        if self._root >= 0:
            os.close(self._root)

    def path(self, identifier: int) -> str | None:
        """Give the path below the hierarchy's root (`/` is the root itself), None if it is gone."""
        if identifier not in self._paths:
            self._paths[identifier] = self._find(identifier) if self._root >= 0 else None
        return self._paths[identifier]

    def _find(self, identifier: int) -> str | None:
        handle = _HANDLE.pack(8, _FILEID_KERNFS, identifier)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        opened = -1 if self._walked else self._open_by_handle(self._root, handle, flags)
        if opened < 0:
            if ctypes.get_errno() != errno.EPERM and not self._walked:
                return None
            return self._walk(identifier)
        try:
            path = os.readlink(f"/proc/self/fd/{opened}")
        finally:
            os.close(opened)
        return path.removeprefix(self._point) or "/"

    def _walk(self, identifier: int) -> str | None:
        """Look at all cgroups, once: handles need CAP_DAC_READ_SEARCH."""
        if not self._walked:
            self._walked = True
            for inode, path in _tree(self._point):
                self._paths[inode] = path.removeprefix(self._point) or "/"
        return self._paths.get(identifier)


def _tree(point: str) -> Iterator[tuple[int, str]]:
    for path, _, _ in os.walk(point):
        try:
            yield os.stat(path).st_ino, path
        except OSError:
            continue
