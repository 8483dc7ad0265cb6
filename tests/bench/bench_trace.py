"""What tracing costs: run as root by `make bench`, prints a table; targets are not asserted."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tabulate import tabulate

IG = Path(sys.executable).with_name("ig")
ROUNDS, SHORT, LONG = 9, 100_003, 1_000_003
ENGINE = Path(__file__).with_name("busy_engine.py")


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
            assert tracer.poll() is None, "ig ended"
            if time.monotonic() > began + 300:
                tracer.kill()
                sys.exit("ig is not ready")
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
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def overhead(loop: str, *options: str, command: str = "tcpconnect") -> str:
    """Return how much more CPU a connection costs while traced: the rounds' median and quartiles.

    Each round is compared with the untraced ones before and after it: machines change their pace.
    """
    percents = []
    before = connect(loop, SHORT)
    for _ in range(ROUNDS):
        with running(*options, command=command):
            traced = connect(loop, SHORT)
        after = connect(loop, SHORT)
        percents.append((traced / statistics.mean((before, after)) - 1) * 100)
        before = after
    low, median, high = statistics.quantiles(percents, n=4)
    return f"{median:.1f} % ({low:.1f} to {high:.1f})"


def connect(loop: str, count: int) -> float:
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


def with_containers(loop: str) -> Iterator[Sequence[object]]:
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
        found = f"{other / one:.2f} ({other:.2f} for {one:.2f} {unit})"
        yield f"100 containers and ten changes a second: {what}", "1.2 times", found


def help_seconds() -> float:
    took = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([IG, "--help"], check=True, capture_output=True)
        took.append(time.monotonic() - began)
    return statistics.median(took)


def measure(loop: str) -> Iterator[Sequence[object]]:
    """Yield (what, target, found) of each measurement."""
    yield "a connection traced to JSON, more CPU", "8 %", overhead(loop, "-o", "json")
    yield "the same to a table", "15 %", overhead(loop)
    every = overhead(loop, "-o", "json", command="tcp")
    yield "connect, accept and close traced to JSON", "15 %", every
    each, first, last = cpu_an_event(loop, "-o", "json")
    yield f"{LONG} events to JSON, CPU each", "3 us", f"{each:.2f} us"
    yield "resident before and after them", "90 MB", f"{first:.0f}, {last:.0f} MB"
    yield f"{LONG} events to a table, CPU each", "5 us", f"{cpu_an_event(loop)[0]:.2f} us"
    yield "idle CPU", "0.5 %", f"{idle_percent():.2f} %"
    with running("-o", "json") as (_, ready):
        yield "from exec to ready", "0.6 s", f"{ready:.2f} s"
    yield from with_containers(loop)
    yield "ig --help", "0.2 s", f"{help_seconds():.2f} s"


def main() -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("The load is a C program: install a compiler (apt-get install gcc libc6-dev).")
    with tempfile.TemporaryDirectory() as folder:
        loop = f"{folder}/connect_loop"
        source = Path(__file__).with_name("connect_loop.c")
        subprocess.run([compiler, "-O2", "-o", loop, source], check=True)
        print(f"{platform.node()}, {os.cpu_count()} CPUs, Linux {platform.release()}")
        rows = []
        for row in measure(loop):
            print(f"{row[0]}: {row[2]}", file=sys.stderr)
            rows.append(row)
    print(tabulate(rows, ("what", "at most", "found"), tablefmt="github"))


if __name__ == "__main__":
    main()
