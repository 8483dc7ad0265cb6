"""The file by which other programs see that a command is ready."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress

from ig.errors import IgError
from ig.kernel.capabilities import Use, obstacle

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def use_of(path: str) -> Use:
    """Return what privileges must be kept for until the file is written."""
    return Use(os.path.dirname(os.path.abspath(path)), os.W_OK | os.X_OK, lasting=False)


def check(path: str | None) -> None:
    """Raise IgError if the file, if one is wanted, cannot be written later."""
    if not path:
        return
    try:
        kind = _KINDS.get(stat.S_IFMT(os.lstat(path).st_mode))
    except FileNotFoundError:
        kind = None
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    if kind:
        raise _refused(path, f"It is {kind}.")
    folder = use_of(path)
    if problem := obstacle(folder.path, folder.access):
        raise _refused(path, f"{problem}.")


def write(path: str | None) -> None:
    """Write this process's number into the file, if one is wanted. Raises IgError.

    A new file takes its place at once: what is there is not opened, followed or waited for, and
    nobody reads half of it.
    """
    check(path)
    if not path:
        return
    new = f".ig-{secrets.token_hex(8)}"
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _fill(folder, new)
            os.rename(new, os.path.basename(path), src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(OSError):
                os.unlink(new, dir_fd=folder)
            raise
        finally:
            os.close(folder)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error


def _fill(folder: int, name: str) -> None:
    descriptor = os.open(name, _NEW, 0o644, dir_fd=folder)
    try:
        os.write(descriptor, f"{os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


def _refused(path: str, found: str) -> IgError:
    return IgError(
        f"Cannot write the ready file {path}.",
        found,
        "Use a new file in an existing, writable directory.",
    )
