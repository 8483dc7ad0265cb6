"""Whether processes are frozen, as those of a paused container are.

Source: Documentation/admin-guide/cgroup-v2.rst (cgroup.events), cgroup-v1/freezer-subsystem.rst.
"""

from __future__ import annotations

from collections.abc import Iterable

from ig.kernel.mounts import mounts
from ig.sockets import proc


def all_frozen(pids: Iterable[int]) -> bool:
    """Return whether there are processes, and each is in a frozen cgroup."""
    unified, legacy = "", ""
    for mount in mounts():
        if mount.kind == "cgroup2":
            unified = unified or mount.point
        elif mount.kind == "cgroup" and "freezer" in mount.options:
            legacy = legacy or mount.point
    verdicts = [_frozen(pid, unified, legacy) for pid in pids]
    return bool(verdicts) and all(verdicts)


def _frozen(pid: int, unified: str, legacy: str) -> bool:
    for controllers, path in proc.cgroup_paths(pid):
        if not controllers:
            found = unified and "frozen 1" in _lines(f"{unified}{path}/cgroup.events")
        elif "freezer" in controllers.split(","):
            found = legacy and "FROZEN" in _lines(f"{legacy}{path}/freezer.state")
        else:
            continue
        if found:
            return True
    return False


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
