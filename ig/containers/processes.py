"""What the kernel tells of a container's first process, where a runtime does not."""

from __future__ import annotations

import os
from pathlib import Path


def started(pid: int) -> int:
    """Give when the process began, in ns since the epoch; 0 if it cannot be told.

    Fields of `/proc/PID/stat` and `/proc/stat`: proc(5). Exact to 10 ms.
    """
    try:
        # The name may hold spaces and parentheses; what follows its end is numbers.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        ticks = int(fields[19])
        boot = next(
            int(line.split()[1])
            for line in Path("/proc/stat").read_text("ascii").splitlines()
            if line.startswith("btime ")
        )
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
    return boot * 1_000_000_000 + ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
