"""What a snapshot costs, against `ss`: run as root by `make bench`, prints a table.

Ratios count: both run on the same host in the same minute, each several times, and the fastest of
each is taken. Targets are not asserted.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
LOAD = (sys.executable, str(Path(__file__).with_name("sockets_load.py")))
FOREST = (sys.executable, str(ROOT / "tests/host/namespaces_program.py"))
IG = (str(Path(sys.executable).with_name("ig")), "snapshot", "socket", "--host", "-o", "json")
SOCKETS = "100000"
ROUNDS = 5


@contextmanager
def running(*words: str) -> Iterator[int]:
    """Run a program that says `ready` and ends with its input; give its process's number."""
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline().startswith("ready"):
            sys.exit(f"{words[1]} did not start")
        try:
            yield process.pid
        finally:
            process.stdin.close()


def fastest(words: Sequence[str]) -> tuple[float, float]:
    """Return the least seconds that a command took, and the most memory, in MB."""
    seconds, memory = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - began)
        memory.append(usage.ru_maxrss / 1024)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(words)}: exit code {process.returncode}")
    return min(seconds), max(memory)


def measure() -> Iterator[Sequence[object]]:
    """Yield (what, target, found) of each measurement."""
    with running("unshare", "--net", *LOAD, SOCKETS) as pid:
        inside = ("nsenter", "--target", str(pid), "--net")
        for ours, theirs, factor in (((), "-tan", 2), (("-p",), "-tanp", 1)):
            seconds, memory = fastest((*IG, *ours))
            limit = factor * fastest((*inside, "ss", theirs))[0]
            what = " ".join((f"{SOCKETS} sockets to JSON", *ours))
            yield f"{what}, to {factor} times `ss {theirs}`", f"{limit:.2f} s", f"{seconds:.2f} s"
            yield f"{what}, memory", "100 MB", f"{memory:.0f} MB"
    with running(*FOREST, "200", "50"):
        seconds, memory = fastest(IG)
        yield "200 namespaces with 50 sockets each", "1 s", f"{seconds:.2f} s"
        yield "the same, memory", "100 MB", f"{memory:.0f} MB"


def main() -> None:
    print(f"{platform.node()}, {os.cpu_count()} CPUs, Linux {platform.release()}")
    rows = []
    for row in measure():
        print(f"{row[0]}: {row[2]}", file=sys.stderr)
        rows.append(row)
    print(tabulate(rows, ("what", "at most", "found"), tablefmt="github"))


if __name__ == "__main__":
    main()
