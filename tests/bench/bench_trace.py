"""What tracing costs: run as root by `make bench`, prints a table; missed targets are marked."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.rows import NotMeasured, Row, number, show

IG = Path(sys.executable).with_name("ig")
ROUNDS, SHORT, LONG = 9, 100_003, 1_000_003
COUNTED = 1.1
"""Microseconds: 3 % of a connection where one costs 37 us, as the target was set."""
ENGINE = Path(__file__).with_name("busy_engine.py")
_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED in include/linux/posix-timers.h


@contextmanager
def running(
    *options: str, command: str = "tcpconnect", ig: Path = IG
) -> Iterator[tuple[int, float]]:
    """Run the command, its output read and thrown away; give its pid and seconds to ready."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as cat,
    ):
        ready = Path(folder, "ready")
        line = [str(ig), "trace", command, "--host", "--ready-file", str(ready), *options]
        began = time.monotonic()
        tracer = subprocess.Popen(line, stdout=cat.stdin, stderr=subprocess.PIPE, text=True)
        while not ready.exists():
            if tracer.poll() is not None:
                raise NotMeasured(f"{' '.join(line)} ended: {tracer.communicate()[1]}")
            if time.monotonic() > began + 300:
                tracer.kill()
                raise NotMeasured(f"{' '.join(line)} is not ready")
            time.sleep(0.001)
        took = time.monotonic() - began
        try:
            yield tracer.pid, took
        finally:
            tracer.terminate()
            said = tracer.communicate()[1]
            if "lost" in said:
                print(said)
            assert cat.stdin
            cat.stdin.close()


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process's threads so far: clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | _PROCESS_CLOCK)


def resident_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def overhead(
    what: str, at_most: float, loop: str, *options: str, command: str = "tcpconnect"
) -> Row:
    """Return by how many percent a connection costs more CPU while traced: the rounds' median."""
    low, median, high = statistics.quantiles(
        (more for more, _ in costs(loop, *options, command=command)), n=4
    )
    return Row(what, "%", [median], at_most, f"{number(low)} to {number(high)}")


def added(what: str, at_most: float, loop: str, *options: str, command: str) -> Row:
    """Return how many us of CPU a connection costs more while traced, and the percentage."""
    percents, ns = zip(*costs(loop, *options, command=command), strict=True)
    detail = f"{number(statistics.median(percents))} %"
    return Row(what, "us", [statistics.median(ns) / 1000], at_most, detail)


def costs(loop: str, *options: str, command: str) -> Iterator[tuple[float, float]]:
    """Yield by how many percent, and ns, a connection costs more CPU while traced, of each round.

    Each is compared with the untraced ones before and after it: machines change their pace.
    """
    before = connect(loop, SHORT)
    for _ in range(ROUNDS):
        with running(*options, command=command):
            traced = connect(loop, SHORT)
        after = connect(loop, SHORT)
        untraced = statistics.mean((before, after))
        yield (traced / untraced - 1) * 100, traced - untraced
        before = after


def of_causes(loop: str) -> Iterator[Row]:
    """Yield by how many percent --why makes a good connection, and its event, cost more CPU."""
    percents: dict[str, list[float]] = {"a good connection": [], "its event to JSON": []}
    for number_of_round in range(ROUNDS):
        costs = {}
        for why in ((), ("--why",))[:: 1 if number_of_round % 2 else -1]:
            with running("-o", "json", *why) as (pid, _):
                before = cpu_seconds(pid)
                costs[why] = [connect(loop, SHORT)]
                time.sleep(1)
                costs[why].append((cpu_seconds(pid) - before) / SHORT)
        for name, with_it, without in zip(percents, costs["--why",], costs[()], strict=True):
            percents[name].append((with_it / without - 1) * 100)
    for name, found in percents.items():
        low, median, high = statistics.quantiles(found, n=4)
        detail = f"{number(low)} to {number(high)}"
        yield Row(f"--why: {name}, more CPU", "%", [median], 5, detail)


def connect(loop: str, count: int) -> float:
    """Return the CPU ns of a connection, of so many."""
    return float(subprocess.run([loop, str(count)], check=True, capture_output=True).stdout)


def cpu_an_event(loop: str, *options: str) -> tuple[float, float, float]:
    """Return microseconds of CPU an event, and the resident megabytes before and after."""
    with running(*options) as (pid, _):
        before, first = cpu_seconds(pid), resident_megabytes(pid)
        connect(loop, LONG)
        time.sleep(1)
        return (cpu_seconds(pid) - before) / LONG * 1e6, first, resident_megabytes(pid)


def idle_percent(*options: str) -> float:
    with running("-o", "json", *options) as (pid, _):
        before = cpu_seconds(pid)
        time.sleep(10)
        return (cpu_seconds(pid) - before) * 10


@contextmanager
def engine(containers: int, changes: int) -> Iterator[tuple[str, ...]]:
    """Run an engine of so many containers and changes a second; give the options that name it."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/docker.sock"
        command = [sys.executable, str(ENGINE), socket, str(containers), str(changes)]
        server = subprocess.Popen(command)
        try:
            while not os.path.exists(socket):
                assert server.poll() is None, "the engine ended"
                time.sleep(0.01)
            yield "-r", "docker", "--docker-socketpath", socket
        finally:
            server.kill()
            server.wait()


def with_containers(loop: str) -> Iterator[Row]:
    """Yield how much more an engine with containers that change costs than one without any."""
    costs: dict[int, list[tuple[float, float, float]]] = {0: [], 100: []}
    for containers in [0, 100] * 3:
        with engine(containers, containers // 10) as options:
            each, _, _ = cpu_an_event(loop, "-o", "json", *options)
            idle = idle_percent(*options)
            with running("-o", "json", *options) as (_, ready):
                costs[containers].append((each, idle, ready))
    alone, busy = (list(map(statistics.median, zip(*rows, strict=True))) for rows in costs.values())
    for what, unit, one, other in zip(
        ("CPU an event to JSON", "idle CPU", "from exec to ready"),
        ("us", "%", "s"),
        alone,
        busy,
        strict=True,
    ):
        detail = f"{number(other)} for {number(one)} {unit}"
        name = f"100 containers and ten changes a second: {what}"
        yield Row(name, "times", [other / one], 1.2, detail)


def help_seconds(ig: Path = IG) -> float:
    began = time.monotonic()
    subprocess.run([ig, "--help"], check=True, capture_output=True)
    return time.monotonic() - began


@contextmanager
def connect_loop() -> Iterator[str]:
    """Compile the load; give the path of the program."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("The load is a C program: install a compiler (apt-get install gcc libc6-dev).")
    with tempfile.TemporaryDirectory() as folder:
        loop = f"{folder}/connect_loop"
        source = Path(__file__).with_name("connect_loop.c")
        subprocess.run([compiler, "-O2", "-o", loop, source], check=True)
        yield loop


def measure(loop: str) -> Iterator[Row]:
    yield overhead("a connection traced to JSON, more CPU", 8, loop, "-o", "json")
    yield overhead("the same to a table", 15, loop)
    what = "connect, accept and close traced to JSON"
    yield overhead(what, 15, loop, "-o", "json", command="tcp")
    what = "a connection counted by --summary, more CPU"
    yield added(what, COUNTED, loop, "--summary", command="tcpconnect")
    what = "connect, accept and close counted by --summary, more CPU"
    yield added(what, 2 * COUNTED, loop, "--summary", command="tcp")
    each, _, _ = cpu_an_event(loop, "--summary")
    yield Row(f"{LONG} connections counted by --summary, CPU each of ig", "us", [each], 0.1)
    yield Row("idle CPU with --summary", "%", [idle_percent("--summary")], 0.5)
    yield from of_causes(loop)
    each, first, last = cpu_an_event(loop, "-o", "json")
    yield Row(f"{LONG} events to JSON, CPU each", "us", [each], 3)
    yield Row("resident before and after them", "MB", [first, last], 90)
    yield Row(f"{LONG} events to a table, CPU each", "us", [cpu_an_event(loop)[0]], 5)
    yield Row("idle CPU", "%", [idle_percent()], 0.5)
    with running("-o", "json") as (_, ready):
        yield Row("from exec to ready", "s", [ready], 0.6)
    yield from with_containers(loop)
    yield Row("ig --help", "s", [statistics.median(help_seconds() for _ in range(5))], 0.2)


def main() -> None:
    with connect_loop() as loop:
        show(measure(loop))


if __name__ == "__main__":
    main()
