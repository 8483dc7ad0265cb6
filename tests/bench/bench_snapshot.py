"""Measure `ig snapshot socket` against `ss`, side by side, and fail where a promise is not kept.

Run as root: `python tests/bench/bench_snapshot.py [SOCKETS]`. Ratios count: both run on the same
host in the same minute, each several times, and the fastest of each is taken.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOAD = (sys.executable, str(Path(__file__).with_name("sockets_load.py")))
FOREST = (sys.executable, str(ROOT / "tests/host/namespaces_program.py"))
START = "import sys; from ig.cli import main; sys.exit(main())"
IG = (sys.executable, "-c", START, "snapshot", "socket", "--host", "-o", "json")
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
    """Give the least seconds that a command took, and the most memory, in MB."""
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


def main() -> int:
    """Print a line for each promise; give 1 if one is not kept."""
    count = sys.argv[1] if len(sys.argv) > 1 else "100000"
    kept = []

    def promise(what: str, found: float, limit: float, unit: str) -> None:
        kept.append(found <= limit)
        verdict = "ok" if kept[-1] else "MISSED"
        sys.stdout.write(f"{what:58} {found:8.2f} {unit:2} of {limit:.2f}  {verdict}\n")

    with running("unshare", "--net", *LOAD, count) as pid:
        inside = ("nsenter", "--target", str(pid), "--net")
        plain, _ = fastest((*inside, "ss", "-tan"))
        ours, memory = fastest(IG)
        promise(f"{count} sockets as JSON, to `ss -tan` twice", ours, 2 * plain, "s")
        promise(f"{count} sockets, memory", memory, 100, "MB")
        named, _ = fastest((*inside, "ss", "-tanp"))
        ours, memory = fastest((*IG, "-p"))
        promise(f"{count} sockets with processes, to `ss -tanp`", ours, named, "s")
        promise(f"{count} sockets with processes, memory", memory, 100, "MB")
    with running(*FOREST, "200", "50"):
        ours, memory = fastest(IG)
        promise("200 namespaces with 50 sockets each", ours, 1, "s")
        promise("200 namespaces with 50 sockets each, memory", memory, 100, "MB")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
