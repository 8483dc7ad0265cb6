"""Stages and sinks that other packages bring: what sums up, and what keeps state."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.host.gadget_package import install, started
from tests.host.namespace import Namespace
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere

ATTEMPTS = 7

GADGETS = """
from dataclasses import replace

from ig.columns import integer
from ig.container import HOST
from ig.gadget import NOTHING, Batch, Column
from ig.gadgets import snapshot_socket, trace_tcpconnect

COUNTED = (
    integer("dst.port", "port", hidden=False, description="Port."),
    Column("outcome", "outcome", hidden=False, description="Outcome."),
    integer("attempts", "attempts", hidden=False, description="Number of attempts."),
)


class Tally:
    def __init__(self, columns):
        self._columns = columns
        self._counts = {}

    def feed(self, batch):
        for key in zip(*map(batch.read, self._columns)):
            self._counts[key] = self._counts.get(key, 0) + 1
        return NOTHING

    def flush(self):
        rows = [(*key, count) for key, count in self._counts.items()]
        self._counts = {}
        if not rows:
            return NOTHING
        return Batch(dict(zip(self._names(), map(list, zip(*rows)))), [HOST] * len(rows))

    def _names(self):
        return *(column.name for column in self._columns), COUNTED[-1].name


def by(gadget, *names):
    def stages(options):
        columns = {column.name: column for column in gadget.columns}
        shown = tuple(each for each in COUNTED if each.name in (*names, "attempts"))
        return [Tally([columns[name] for name in names])], shown

    return stages


ATTEMPTS = replace(
    trace_tcpconnect.GADGET,
    name="trace_tally",
    command=("trace", "tally"),
    stages=by(trace_tcpconnect.GADGET, "dst.port", "outcome"),
)
SOCKETS = replace(
    snapshot_socket.GADGET,
    name="snapshot_tally",
    command=("snapshot", "tally"),
    stages=by(snapshot_socket.GADGET, "dst.port"),
)
"""
SINK = """
import json


class Total:
    interval = 0

    def __init__(self, columns, path):
        self._ports = [column for column in columns if column.name == "dst.port"]
        self._path = path
        self._told = []
        self._seen = 0

    def open(self):
        self._told.append("open")

    def write(self, batch):
        for port in self._ports:
            self._seen += len(batch.read(port))

    def tick(self, now):
        self._told.append("tick")

    def lost(self, counts):
        self._told.append(dict(counts))

    def close(self):
        with open(self._path, "w") as file:
            json.dump({"told": [*self._told, "close"], "seen": self._seen}, file)


class Screen(Total):
    interval = 0.1
"""
OFFERS = """
[ig.gadgets]
attempts = tally:ATTEMPTS
sockets = tally:SOCKETS

[ig.sinks]
total = tally.sink:Total
screen = tally.sink:Screen
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return install(tmp_path, "tally", OFFERS, {"__init__.py": GADGETS, "sink.py": SINK})


def attempts(
    package: Path, namespace: Namespace, *arguments: object
) -> tuple[subprocess.Popen[str], str, Counter[tuple[int, str]]]:
    """Trace attempts that are made while the trace runs; return its output, and their outcomes."""
    port = namespace.serve()
    made: Counter[tuple[int, str]] = Counter()
    ready = package / "ready"
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "--ready-file", ready)
    with started(package, "trace", *arguments, *chosen) as process:
        while not ready.exists():
            assert process.poll() is None
        for number in range(ATTEMPTS):
            refused = number % 3 == 2
            namespace.connect("127.0.0.1", 1 if refused else port)
            made[(1, "refused") if refused else (port, "established")] += 1
        said = process.communicate(timeout=PATIENCE)
    assert (said[1], process.returncode) == ("", 0)
    return process, said[0], made


def counted(rows: list[Any]) -> dict[tuple[int, str], int]:
    return {(row["port"], row["outcome"]): row["attempts"] for row in rows}


def test_stage_that_sums_up_is_flushed_at_the_end(package: Path, namespace: Namespace) -> None:
    options = ("tally", "--max-events", ATTEMPTS, "-o", "json")
    _, text, made = attempts(package, namespace, *options)
    assert counted([json.loads(line) for line in text.splitlines()]) == made


def test_stage_that_sums_up_is_flushed_at_each_interval(
    package: Path, namespace: Namespace
) -> None:
    options = ("tally", "--interval", "60", "--max-events", ATTEMPTS)
    _, text, made = attempts(package, namespace, *options)
    heading, *rows = [line.split() for line in text.splitlines()]
    assert heading == ["TIME", "DST.PORT", "OUTCOME", "ATTEMPTS"]
    assert {(int(port), outcome): int(count) for _, port, outcome, count in rows} == made


def test_recording_is_summed_up_by_stages_and_taken_by_sinks(
    package: Path, namespace: Namespace
) -> None:
    path, total = package / "recording", package / "total"
    options = ("tally", "--max-events", ATTEMPTS, "-o", "json", "--record", path)
    _, text, made = attempts(package, namespace, *options)
    assert counted([json.loads(line) for line in text.splitlines()]) == made
    for arguments, printed in (("-o", "json"), text), (("-o", f"total={total}"), ""):
        with started(package, "replay", path, *arguments) as process:
            said = process.communicate(timeout=PATIENCE)
        assert (said, process.returncode) == ((printed, ""), 0)
    assert json.loads(total.read_text())["told"] == ["open", "close"]


def test_stage_gives_rows_once_an_interval_until_the_count(package: Path) -> None:
    options = ("--host", "--interval", "0.2", "--count", 3, "-F", "comm==none-such")
    with started(package, "trace", "tally", *options) as process:
        said = process.communicate(timeout=PATIENCE)
    assert (said[1], process.returncode) == ("", 0)
    assert said[0].split() == ["TIME", "DST.PORT", "OUTCOME", "ATTEMPTS"] * 3


def test_stage_follows_the_sockets_that_exist_now(package: Path, namespace: Namespace) -> None:
    port = namespace.serve()
    chosen = ("--host", "-F", f"netns=={namespace.inode},src.port=={port}", "-o", "json")
    with started(package, "snapshot", "tally", *chosen) as process:
        said = process.communicate(timeout=PATIENCE)
    assert (said[1], json.loads(said[0])) == ("", {"port": 0, "attempts": 1})


def test_stage_has_its_columns_listed(package: Path) -> None:
    with started(package, "trace", "tally", "--columns") as process:
        said = process.communicate(timeout=PATIENCE)
    assert "Number of attempts." in said[0]
    assert "latency" not in said[0]


def test_sink_of_a_package_takes_the_events(package: Path, namespace: Namespace) -> None:
    path = package / "total"
    options = ("tcpconnect", "--max-events", ATTEMPTS, "-o", f"total={path}")
    _, text, _ = attempts(package, namespace, *options)
    assert text == ""
    assert json.loads(path.read_text()) == {"told": ["open", "close"], "seen": ATTEMPTS}


def test_sink_of_a_package_takes_the_sockets_of_each_interval(
    package: Path, namespace: Namespace
) -> None:
    port, path = namespace.serve(), package / "total"
    chosen = ("--host", "--port", port, "--interval", "0.1", "--count", 3, "-o", f"total={path}")
    with started(package, "snapshot", "socket", *chosen) as process:
        said = process.communicate(timeout=PATIENCE)
    assert (said, process.returncode) == (("", ""), 0)
    told = ["open", *["tick"] * 3, "close"]
    assert json.loads(path.read_text()) == {"told": told, "seen": 3}


def test_sink_of_a_package_has_intervals_of_its_own(package: Path, namespace: Namespace) -> None:
    path = package / "screen"
    options = ("tcpconnect", "--max-events", ATTEMPTS, "-o", f"screen={path}")
    attempts(package, namespace, *options)
    report = json.loads(path.read_text())
    assert report["seen"] == ATTEMPTS
    assert set(report["told"][1:-1]) == {"tick"}


def test_sink_of_a_package_is_refused_where_no_events_are(package: Path) -> None:
    with started(package, "list-containers", "-o", "total=x") as process:
        said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "'total' is not available here" in said[1]


def test_output_mode_that_no_package_offers_is_refused(package: Path) -> None:
    with started(package, "trace", "tcpconnect", "-o", "totl") as process:
        said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "Did you mean 'total'?" in said[1]
