"""What a trace costs a process that only makes system calls: run as root, prints a table.

On kernels whose tracepoints can be preempted (see ig.h) a program may run at each system call's
end. `python -m tests.kernels --kernel newest --run tests.bench.bench_syscalls` measures there.
"""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from tests.bench.bench_trace import connect, running

ROUNDS = 3
GADGETS = ("tcp", "bind")


def compiled(folder: str, name: str) -> str:
    """Compile a load into the folder, and return its path."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("The load is a C program: install a compiler (apt-get install gcc libc6-dev).")
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler, "-O2", "-o", f"{folder}/{name}", source], check=True)
    return f"{folder}/{name}"


def more(load: str, count: int, gadget: str, rounds: int) -> str:
    """Return by how many percent a call costs more while traced: median and extremes of rounds."""
    percents = []
    before = connect(load, count)
    for _ in range(rounds):
        with running("-o", "json", command=gadget):
            traced = connect(load, count)
        after = connect(load, count)
        percents.append((traced / statistics.mean((before, after)) - 1) * 100)
        before = after
    percents.sort()
    return f"{statistics.median(percents):.1f} % ({percents[0]:.1f} to {percents[-1]:.1f})"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_003
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        load = compiled(folder, "getpid_loop")
        once = connect(load, count)
        rows = [
            (f"getpid() during trace {gadget}", more(load, count, gadget, rounds))
            for gadget in GADGETS
        ]
    print(f"Linux {platform.release()}, {once:.0f} ns a call untraced")
    print(tabulate(rows, ("what", "more CPU"), tablefmt="github"))


if __name__ == "__main__":
    main()
