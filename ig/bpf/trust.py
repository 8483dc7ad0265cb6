"""Check whether other users could have changed a file that is loaded into the kernel."""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from collections.abc import Collection
from pathlib import Path

from ig.errors import IgError


def need_trust(folder: Path) -> None:
    """Raise IgError unless only root, this user and the owner of this module may change a folder.

    That includes all that is in it, and what the folders above it hold in its place.
    """
    owners = frozenset({0, os.geteuid(), os.stat(__file__).st_uid})
    for path in (folder, *folder.rglob("*")):
        _need(path, owners, folder)
    for path in {*folder.absolute().parents, *folder.resolve().parents}:
        # In a sticky one nobody replaces what belongs to another (sticky(7)).
        _need(path, owners, folder, sticky=True)


def _need(path: Path, owners: Collection[int], folder: Path, sticky: bool = False) -> None:
    status = path.stat()
    writable = _others_write(path, status, owners)
    if status.st_uid in owners and not (
        writable and not (sticky and status.st_mode & stat.S_ISVTX)
    ):
        return
    raise IgError(
        f"The BPF programs in {folder} are not loaded: other users can modify them.",
        f"{path} belongs to uid {status.st_uid} and gid {status.st_gid} and has mode "
        f"{stat.S_IMODE(status.st_mode):04o}.",
        "Make it writable only by root (chown root, chmod go-w), or reinstall ig.",
    )


def _others_write(path: Path, status: os.stat_result, owners: Collection[int]) -> bool:
    """Return whether users other than the owners may write to a file."""
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    # With an access control list these bits are the most that it grants to anybody.
    if "system.posix_acl_access" in os.listxattr(path):
        return True
    members = _members(status.st_gid)
    return members is None or not members <= set(owners)


@functools.cache
def _members(group: int) -> frozenset[int] | None:
    """Return the uids of a group's members, None if there is no such group.

    Many distributions give each user a group of its own, and let it write to the user's files.
    """
    if group == 0:
        return frozenset({0})
    try:
        names = grp.getgrgid(group).gr_mem
        return frozenset(
            each.pw_uid for each in pwd.getpwall() if each.pw_gid == group or each.pw_name in names
        )
    except KeyError:
        return None
