"""What a snapshot costs, against `ss`: run as root by `make bench`, prints a table.

Ratios count: both run on the same host in the same minute, each several times, and the fastest of
each is taken. Missed targets are marked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rows import NotMeasured, Row, show

ROOT = Path(__file__).resolve().parents[2]
LOAD = (sys.executable, str(Path(__file__).with_name("sockets_load.py")))
FOREST = (sys.executable, str(ROOT / "tests/host/namespaces_program.py"))
IG = Path(sys.executable).with_name("ig")
SNAPSHOT = ("snapshot", "socket", "--host", "-o", "json")
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
            raise NotMeasured(f"{words[1]} did not start")
        try:
            yield process.pid
        finally:
            process.stdin.close()


@dataclass(frozen=True)
class Run:
    """What a command used."""

    seconds: float
    cpu: float
    megabytes: float
    """Resident, at most."""


def run(words: Sequence[str]) -> Run:
    """Return what a command and those of its children that it waited for used."""
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise NotMeasured(f"{' '.join(words)}: exit code {process.returncode}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def fastest(*words: str) -> tuple[float, float]:
    """Return the least seconds that a command took, and the most memory, in MB."""
    runs = [run(words) for _ in range(ROUNDS)]
    return min(each.seconds for each in runs), max(each.megabytes for each in runs)


def measure() -> Iterator[Row]:
    snapshot = (str(IG), *SNAPSHOT)
    with running("unshare", "--net", *LOAD, SOCKETS) as pid:
        inside = ("nsenter", "--target", str(pid), "--net")
        for ours, theirs, factor in (((), "-tan", 2), (("-p",), "-tanp", 1)):
            seconds, memory = fastest(*snapshot, *ours)
            limit = factor * fastest(*inside, "ss", theirs)[0]
            what = " ".join((f"{SOCKETS} sockets to JSON", *ours))
            yield Row(f"{what}, to {factor} times `ss {theirs}`", "s", [seconds], limit)
            yield Row(f"{what}, memory", "MB", [memory], 100)
    with running(*FOREST, "200", "50"):
        seconds, memory = fastest(*snapshot)
        yield Row("200 namespaces with 50 sockets each", "s", [seconds], 1)
        yield Row("the same, memory", "MB", [memory], 100)


def main() -> None:
    show(measure())


if __name__ == "__main__":
    main()
