"""Compare the cost of this checkout with that of a commit: `make bench BASE=COMMIT`, as root.

Both run alternately under the same loads, which are always those of this checkout. The two runs of
a round are adjacent and their order alternates, so that both see the same changes of speed of a
shared machine. The exit code is 1 if a figure exceeds its limit by more than the observed spread.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tests.bench import bench_snapshot
from tests.bench.bench_trace import (
    connect,
    connect_loop,
    cpu_seconds,
    engine,
    help_seconds,
    resident_megabytes,
    running,
)
from tests.bench.rows import NotMeasured, number

ROOT = Path(__file__).resolve().parents[2]
CPU, MEMORY, START = 1.03, 1.10, 1.10
BURSTS, BURST = 16, 8_009
"""Connections of a run. A burst fits in the ring buffer: lost events would cost less."""
IDLE = 3
"""Seconds for which an idle trace is measured."""


@dataclass(frozen=True)
class Figure:
    """What is compared."""

    what: str
    unit: str
    limit: float
    """The greatest ratio of now to base that is accepted."""


@dataclass(frozen=True)
class Case:
    """Figures that one run measures."""

    figures: Sequence[Figure]
    measure: Callable[[Path, Any], Sequence[float]]
    """Return the values of the figures for an `ig`, given the load."""
    load: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Comparison:
    """The values of a figure in each round."""

    figure: Figure
    base: Sequence[float]
    now: Sequence[float]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Return the quartiles of the ratios of now to base; the second is the median."""
        ratios = [now / base for now, base in zip(self.now, self.base, strict=True)]
        if len(ratios) == 1:
            ratios *= 2
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, median, high

    @property
    def verdict(self) -> str:
        """Return `WORSE` if three of four rounds exceed the limit, `unsure` if the median does.

        `better` if three of four rounds improve by as much as the limit allows a figure to worsen.
        """
        low, median, high = self.quartiles
        if median > self.figure.limit:
            return "WORSE" if low > self.figure.limit else "unsure"
        return "better" if high < 1 / self.figure.limit else ""

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        low, median, high = self.quartiles
        values = (number(statistics.median(each)) for each in (self.base, self.now))
        ratios = f"{median:.3f} ({low:.3f} to {high:.3f})"
        what = f"{self.figure.what}, {self.figure.unit}"
        return what, *values, ratios, f"{self.figure.limit:.2f}", self.verdict


def trace_figures(name: str, event: str) -> Sequence[Figure]:
    """Return the figures that `trace` measures."""
    return (
        Figure(f"{name}: from exec to ready", "s", START),
        Figure(f"{name}: resident when ready", "MB", MEMORY),
        Figure(f"{name}: CPU {event}", "us", CPU),
        Figure(f"{name}: cost of a connection", "ns", CPU),
        Figure(f"{name}: resident later", "MB", MEMORY),
    )


def trace(
    loop: str, *words: str, command: str = "tcpconnect"
) -> Callable[[Path, Any], list[float]]:
    """Return a function that measures a trace with these options and those of the load."""

    def measure(ig: Path, load: Sequence[str] | None) -> list[float]:
        with running(*words, *(load or ()), command=command, ig=ig) as (pid, ready):
            first, before = resident_megabytes(pid), cpu_seconds(pid)
            connections = []
            for _ in range(BURSTS):
                connections.append(connect(loop, BURST))
                time.sleep(0.12)  # until the ring buffer is drained
            each = (cpu_seconds(pid) - before) / (BURSTS * BURST) * 1e6
            last = resident_megabytes(pid)
        return [ready, first, each, statistics.median(connections), last]

    return measure


def idle(ig: Path, load: Sequence[str] | None) -> list[float]:
    with running("-o", "json", *(load or ()), ig=ig) as (pid, _):
        before = cpu_seconds(pid)
        time.sleep(IDLE)
        return [(cpu_seconds(pid) - before) / IDLE * 100]


def snapshot_figures(name: str) -> Sequence[Figure]:
    return (
        Figure(f"{name}: time", "s", START),
        Figure(f"{name}: CPU", "s", CPU),
        Figure(f"{name}: memory", "MB", MEMORY),
    )


def snapshot(*words: str) -> Callable[[Path, Any], list[float]]:
    def measure(ig: Path, _: object) -> list[float]:
        run = bench_snapshot.run((str(ig), *bench_snapshot.SNAPSHOT, *words))
        return [run.seconds, run.cpu, run.megabytes]

    return measure


INDEX = (
    Figure("a new cgroup's owner", "us", CPU),
    Figure("an event's owner", "us", CPU),
    Figure("a change of one container", "us", CPU),
    Figure("a far end's name", "us", CPU),
    Figure("memory more after passing containers", "MB", MEMORY),
)


def index(ig: Path, _: object) -> list[float]:
    """Measure the container index of the checkout of an `ig`, with its own Python."""
    words = (str(ig.with_name("python")), str(Path(__file__).with_name("bench_index.py")), "--json")
    process = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ig.parent)
    if process.returncode:
        raise NotMeasured(process.stderr.strip().rpartition("\n")[2])
    # Memory may not have grown at all; a ratio of less than a megabyte would mean nothing.
    return [
        max(found, 1) if unit == "MB" else found for _, unit, found in json.loads(process.stdout)
    ]


def cases(loop: str) -> Iterator[Case]:
    """Yield all cases."""
    json_out = ("-o", "json")
    yield Case(trace_figures("tcpconnect", "per event"), trace(loop, *json_out))
    yield Case(trace_figures("tcpconnect to a table", "per event"), trace(loop))
    every = trace(loop, *json_out, command="tcp")
    yield Case(trace_figures("tcp", "per connection"), every)
    busy = functools.partial(engine, 100, 10)
    name = "tcpconnect, 100 containers that change"
    yield Case(trace_figures(name, "per event"), trace(loop, *json_out), busy)
    yield Case([Figure("tcpconnect: idle CPU", "%", CPU)], idle)
    yield Case([Figure(f"{name}: idle CPU", "%", CPU)], idle, busy)
    yield Case([Figure("ig --help", "s", START)], lambda ig, _: [help_seconds(ig)])
    load = ("unshare", "--net", *bench_snapshot.LOAD, bench_snapshot.SOCKETS)
    many = functools.partial(bench_snapshot.running, *load)
    name = f"snapshot of {bench_snapshot.SOCKETS} sockets"
    yield Case(snapshot_figures(name), snapshot(), many)
    yield Case(snapshot_figures(f"{name} with processes"), snapshot("-p"), many)
    spread = functools.partial(bench_snapshot.running, *bench_snapshot.FOREST, "200", "50")
    yield Case(snapshot_figures("snapshot of 200 namespaces"), snapshot(), spread)
    yield Case(INDEX, index)


class OnlyNow(Exception):
    """The base commit cannot run a case."""


def compare(case: Case, base: Path, now: Path, rounds: int) -> list[Comparison]:
    """Return the comparisons of a case's figures; the first round warms caches, and is dropped.

    Raises OnlyNow, and NotMeasured if it is this checkout that fails.
    """
    found: dict[Path, list[Sequence[float]]] = {base: [], now: []}
    with case.load() as load:
        for turn in range(rounds + 1):
            for ig in (base, now) if turn % 2 else (now, base):
                try:
                    values = case.measure(ig, load)
                except NotMeasured as error:
                    if ig == now:
                        raise
                    raise OnlyNow(f"{case.figures[0].what}: {error}") from error
                if turn:
                    found[ig].append(values)
    columns = (zip(*found[ig], strict=True) for ig in (base, now))
    return [
        Comparison(figure, one, other)
        for figure, one, other in zip(case.figures, *columns, strict=True)
    ]


def git(*words: str | Path) -> int:
    """Run git, also as root in another user's checkout; return its exit code."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *map(str, words)]
    return subprocess.run(command, check=False).returncode


@contextmanager
def installed(commit: str) -> Iterator[Path]:
    """Install a commit in a temporary worktree and venv; yield its `ig`, and remove both."""
    with tempfile.TemporaryDirectory(prefix="ig-base-", ignore_cleanup_errors=True) as folder:
        tree = Path(folder, "checkout")
        try:
            if git("worktree", "add", "--quiet", "--detach", tree, commit):
                sys.exit(f"BASE={commit} cannot be checked out.")
            subprocess.run(["sh", tree / "scripts/venv", tree / ".venv"], check=True)
            yield tree / ".venv/bin/ig"
        finally:
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_IGN)  # finish the clean-up
            if tree.exists():
                git("worktree", "remove", "--force", tree)


def wanted(figure: Figure, only: str) -> bool:
    """Return whether a figure's name contains one of these texts, separated by commas."""
    return any(each.strip().lower() in figure.what.lower() for each in only.split(","))


def show(comparisons: Sequence[Comparison], left_out: Sequence[str]) -> None:
    print(f"{platform.node()}, {os.cpu_count()} CPUs, Linux {platform.release()}")
    headers = ("what", "base", "now", "now / base (quartiles)", "limit", "")
    rows = [each.cells() for each in comparisons]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    for each in left_out:
        print(f"not compared: {each}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--only", default="", help="figures with this text in their names")
    parser.add_argument("--rounds", type=int, default=9, help="as few as one; %(default)s")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every run compiles what was never cached
    comparisons: list[Comparison] = []
    left_out: list[str] = []
    now = Path(sys.executable).with_name("ig")
    try:
        with connect_loop() as loop, installed(options.commit) as base:
            for case in cases(loop):
                if not any(wanted(figure, options.only) for figure in case.figures):
                    continue
                try:
                    found = compare(case, base, now, options.rounds)
                except OnlyNow as error:
                    left_out.append(str(error))
                    continue
                found = [each for each in found if wanted(each.figure, options.only)]
                for each in found:
                    print(" | ".join(each.cells()), file=sys.stderr)
                comparisons += found
    except KeyboardInterrupt:
        show(comparisons, left_out)
        return 130
    if not comparisons and not left_out:
        parser.error(f"no figure's name contains {options.only!r}")
    show(comparisons, left_out)
    return 1 if any(each.verdict == "WORSE" for each in comparisons) else 0


if __name__ == "__main__":
    sys.exit(main())
