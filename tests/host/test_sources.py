"""Where rows come from other than a program's events: the sockets that exist now, a recording."""

from __future__ import annotations

import csv
import io
import json
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from ig.values import SECOND
from tests.host.namespace import Namespace
from tests.host.tracer import IG, Tracer, in_own_mounts, ordinary_user
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere

ATTEMPTS = 7
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


def test_count_without_an_interval_is_refused() -> None:
    done = run("snapshot", "socket", "--count", COUNT)
    assert done.returncode == 2
    assert "--interval" in done.stderr


def attempts(namespace: Namespace, path: Path, start: Callable[..., Tracer], mode: str) -> Tracer:
    """Trace attempts of both outcomes in `mode`, and record them; return the ended trace."""
    port = namespace.serve()
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "--max-events", ATTEMPTS)
    tracer = start("trace", "tcpconnect", "-L", *chosen, "-o", mode, "--record", path)
    for number in range(ATTEMPTS):
        namespace.connect("127.0.0.1", 1 if number % 3 == 2 else port)
    return tracer


def as_nobody(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as an ordinary user, without any privilege."""
    command = [*ordinary_user(), str(IG), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def replayed(path: Path, *arguments: object) -> str:
    done = as_nobody("replay", path, *arguments)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


@pytest.fixture
def path() -> Iterator[Path]:
    """Return where a recording may be made, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "recording"


def test_recording_of_a_trace_is_shown_as_it_was(
    namespace: Namespace, path: Path, start_ig: Callable[..., Tracer]
) -> None:
    events, said, code = attempts(namespace, path, start_ig, "json").finished()
    assert (said, code, len(events)) == ("", 0, ATTEMPTS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert [json.loads(line) for line in replayed(path, "-o", "json").splitlines()] == events
    refused = replayed(path, "-F", "outcome==refused").splitlines()
    assert refused[0].split()[-1] == "LATENCY"  # shown by -L
    assert len(refused) - 1 == sum(event["outcome"] == "refused" for event in events)
    documents = list(yaml.safe_load_all(replayed(path, "-o", "yaml")))
    assert documents == events
    rows = list(csv.DictReader(io.StringIO(replayed(path, "-o", "csv=dst.port,outcome"))))
    assert [row["outcome"] for row in rows] == [event["outcome"] for event in events]
    assert replayed(path, "--failures", "-o", "json") == replayed(
        path, "-F", "outcome!=established", "-o", "json"
    )
    assert len(replayed(path, "--max-events", 2, "-o", "jsonl").splitlines()) == 2
    assert replayed(path, "-c", "none-such", "-o", "json") == ""
    assert len(replayed(path, "--host-only", "-o", "json").splitlines()) == ATTEMPTS
    assert "Time from the SYN to the reply" in replayed(path, "--columns")


def test_recording_of_sockets_is_shown_as_it_was(namespace: Namespace, path: Path) -> None:
    port = namespace.serve()
    live = sockets(port, "-p", "--resolve", "--time", "iso", "--record", path)
    path.chmod(0o644)
    assert replayed(path, "--time", "iso") == live
    rows = [json.loads(line) for line in replayed(path, "-o", "json").splitlines()]
    assert [row["src"]["port"] for row in rows] == [port] * COUNT
    assert len({row["timestamp"] for row in rows}) == COUNT
    assert all(row["processes"] for row in rows)


def test_recording_of_a_killed_trace_has_what_was_printed(
    namespace: Namespace, path: Path, start_ig: Callable[..., Tracer]
) -> None:
    port = namespace.serve()
    chosen = ("--host", "-F", f"netns=={namespace.inode}")
    tracer = start_ig("trace", "tcpconnect", *chosen, "-o", "json", "--record", path)
    for _ in range(ATTEMPTS):
        namespace.connect("127.0.0.1", port)
    events = tracer.wait_for(lambda event: event["dst"]["port"] == port, ATTEMPTS)
    tracer.kill()
    path.chmod(0o644)
    done = as_nobody("replay", path, "-o", "json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == events
    assert f"stops after {ATTEMPTS} events" in done.stderr
    assert done.returncode == 0


def test_recording_never_overwrites_a_file(path: Path) -> None:
    path.write_text("mine")
    done = run("snapshot", "socket", "--record", path)
    assert done.returncode == 1
    assert "File exists" in done.stderr
    assert path.read_text() == "mine"


def test_recording_that_has_no_room_ends_whole(tmp_path: Path) -> None:
    path = tmp_path / "full"
    script = (
        f"mount -t tmpfs -o size=4k none {tmp_path} && {IG} snapshot socket --host -o json "
        f"--interval 0.1 --count 9 --record {path} >/dev/null; {IG} replay {path} -o jsonl"
    )
    done = in_own_mounts(script)
    assert "No space left on device" in done.stderr
    assert "damaged" not in done.stderr


def test_recording_without_room_takes_nothing_from_the_output(
    namespace: Namespace, tmp_path: Path
) -> None:
    port = namespace.serve()
    chosen = ("snapshot", "socket", "--host", "-F", f"src.port=={port}", "-o", "json", "--record")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    live = run(*chosen, whole)
    size = len(whole.read_bytes().splitlines()[0]) + 100  # the header, and a part of the events
    command = ["prlimit", f"--fsize={size}", IG, *chosen, cut]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout, done.returncode) == (live.stdout, 1)
    assert "File too large" in done.stderr
    assert json.loads(done.stdout)[0]["src"]["port"] == port
    left = run("replay", cut, "-o", "json")
    assert (json.loads(left.stdout), left.returncode) == ([], 0)
    assert "1 events were not recorded" in left.stderr


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"recording":2}', "\0" * 5_000_000])
def test_file_that_is_no_recording_is_an_error(path: Path, text: str) -> None:
    path.write_text(text)
    done = as_nobody("replay", path)
    assert (done.stdout, done.returncode) == ("", 1)
    assert f"{path} is not a recording" in done.stderr or "Its format is 2" in done.stderr
    assert "Traceback" not in done.stderr
