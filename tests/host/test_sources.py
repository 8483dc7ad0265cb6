"""Where rows come from other than a program's events: the sockets that exist now, a recording."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from itertools import pairwise

import pytest

from ig.values import SECOND
from tests.host.namespace import Namespace
from tests.host.tracer import IG
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere

COUNT = 3
INTERVAL = 0.2  # seconds


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(IG), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def sockets(port: int, *arguments: object) -> str:
    """Return what is printed of the sockets with that port, so many times."""
    chosen = ("--host", "--port", port, "--interval", INTERVAL, "--count", COUNT)
    done = run("snapshot", "socket", *chosen, *arguments)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_sockets_at_an_interval_are_lines_with_its_time(namespace: Namespace) -> None:
    port = namespace.serve()
    rows = [json.loads(line) for line in sockets(port, "-o", "json").splitlines()]
    assert [(row["src"]["port"], row["state"]) for row in rows] == [(port, "LISTEN")] * COUNT
    times = [row["timestamp_raw"] for row in rows]
    waits = [later - time for time, later in pairwise(times)]
    assert all(wait > INTERVAL * SECOND * 0.9 for wait in waits)
    table = list(csv.DictReader(io.StringIO(sockets(port, "-o", "csv"))))
    assert [row["state"] for row in table] == ["LISTEN"] * COUNT
    assert len({row["timestamp"] for row in table}) == COUNT


def test_sockets_at_an_interval_are_plain_tables_with_its_time(namespace: Namespace) -> None:
    port = namespace.serve()
    lines = [line.split() for line in sockets(port).splitlines()]
    assert len(lines) == 2 * COUNT
    assert all(line[0] == "TIME" for line in lines[::2])
    assert len({line[0] for line in lines[1::2]}) == COUNT
    assert all(line[-1] == "LISTEN" for line in lines[1::2])


def test_sockets_at_an_interval_without_any_have_a_heading_each_time(namespace: Namespace) -> None:
    port = namespace.serve()
    heading = sockets(port, "--state", "close")
    assert heading.splitlines() == heading.splitlines()[:1] * COUNT


def test_a_count_without_an_interval_is_refused() -> None:
    done = run("snapshot", "socket", "--count", COUNT)
    assert done.returncode == 2
    assert "--interval" in done.stderr
