"""Cgroups of the tests' own, in the version 2 hierarchy and in a version 1 hierarchy."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ig.kernel.mounts import legacy_cgroup_controller, mounts
from tests.host.waiting import until


def unified() -> Path:
    """Return where the version 2 hierarchy is mounted."""
    return Path(next(mount.point for mount in mounts() if mount.kind == "cgroup2"))


def legacy() -> Path:
    """Return where the version 1 hierarchy that `ig` looks at is mounted."""
    controller = legacy_cgroup_controller()
    points = (mount.point for mount in mounts() if controller in mount.options)
    return Path(next(points))


@contextmanager
def new_cgroup(root: Path) -> Iterator[Path]:
    """Make a cgroup, and remove it with all that is in it once no process is left there."""
    folder = root / f"igt-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        until(lambda: _removed(folder), f"{folder} to be empty")


def _removed(folder: Path) -> bool:
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(path)
    return not folder.exists()
