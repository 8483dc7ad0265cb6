"""Many connections and many changes of containers at once: nothing is lost, or it is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.host.namespace import Namespace, Program
from tests.host.tracer import IG
from tests.host.waiting import PATIENCE, until

BENCH = Path(__file__).parent.parent / "bench"
EVENTS = 4  # of a connection: connect, accept, two closes


@contextmanager
def counted(folder: Path, *words: object) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """Trace, and count the lines of its output; the losses that it tells are in `stderr`."""
    ready, lines = folder / "ready", [0]
    command = [str(IG), "trace", "tcp", *map(str, words), "--ready-file", str(ready)]

    def read(descriptor: int) -> None:
        while piece := os.read(descriptor, 1 << 20):
            lines[0] += piece.count(b"\n")

    with (
        (folder / "stderr").open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as tracer,
    ):
        assert tracer.stdout
        reader = threading.Thread(target=read, args=(tracer.stdout.fileno(),), daemon=True)
        reader.start()
        until(lambda: ready.exists() or tracer.poll() is not None, "ig to be ready")
        yield tracer, lines
        tracer.terminate()
        assert tracer.wait(4 * PATIENCE) == 0
        reader.join(PATIENCE)


def loops(namespace: Namespace, program: Path, count: int) -> None:
    """Let two loops connect at once, but only where `ig` and its reader leave time for it."""
    command = namespace.command("nice", "-n", "19", program, count)
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [each.wait(10 * PATIENCE) for each in running] == [0, 0]


def reached(lines: Sequence[int], wanted: int) -> bool:
    return lines[0] >= wanted


def lost(folder: Path) -> dict[str, int]:
    """Return the losses by cause that were told last."""
    told = [line for line in (folder / "stderr").read_text().splitlines() if line.startswith("{")]
    causes: dict[str, int] = json.loads(told[-1])["causes"] if told else {}
    return causes


def memory(tracer: subprocess.Popen[bytes]) -> int:
    """Return the most memory that it had, in MB."""
    status = Path(f"/proc/{tracer.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


@pytest.mark.anywhere
def test_three_hundred_thousand_connections_are_reported_without_a_loss(
    namespace: Namespace, tmp_path: Path, connect_loop: Path
) -> None:
    bursts, count = 61, 2_459
    only = ("--host", "-o", "csv=type", "-F", f"netns=={namespace.inode}", "-r", "docker")
    with counted(tmp_path, *only, "--docker-socketpath", "/nonexistent") as (tracer, lines):
        for burst in range(1, bursts + 1):  # each fits into the ring, however slow the machine is
            loops(namespace, connect_loop, count)
            wanted = 1 + 2 * burst * count * EVENTS
            until(partial(reached, lines, wanted), "a burst to be reported")
        assert memory(tracer) < 130
    assert lines[0] == 1 + 2 * bursts * count * EVENTS
    assert "lost" not in (tmp_path / "stderr").read_text()


@pytest.mark.anywhere
def test_flood_of_changes_of_containers_costs_no_event_that_is_not_counted(
    namespace: Namespace, tmp_path: Path, connect_loop: Path
) -> None:
    count = 5_003
    path = tmp_path / "docker.sock"
    Program([sys.executable, str(BENCH / "busy_engine.py"), str(path), "500", "10000"])
    until(path.exists, "the engine")
    only = ("--host", "-o", "json", "-F", f"netns=={namespace.inode}", "-r", "docker")
    with counted(tmp_path, *only, "--docker-socketpath", path) as (tracer, lines):
        loops(namespace, connect_loop, count)
        assert memory(tracer) < 200
    assert lines[0] + sum(lost(tmp_path).values()) == 2 * count * EVENTS
