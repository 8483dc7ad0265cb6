"""What is told of runtimes that answer late or not at all, and of choices that match nothing."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.host.fake_engine import FakeEngine
from tests.host.tracer import IG, Tracer, ordinary_user
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere
Start = Callable[..., Tracer]
Make = Callable[..., Path]
NAMES = ("api-0", "db", "web")


@pytest.fixture
def fake_engine(tmp_path: Path) -> Iterator[Callable[..., FakeEngine]]:
    """Start an engine that is none (see FakeEngine)."""
    started: list[FakeEngine] = []

    def start(names: Sequence[str] = NAMES, **options: Any) -> FakeEngine:
        started.append(FakeEngine(tmp_path / f"{len(started)}.sock", names, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


def run(*arguments: object, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*within, str(IG), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def docker(path: object) -> tuple[str, ...]:
    return ("-r", "docker", "--docker-socketpath", str(path))


def test_list_without_an_answer_is_an_error_that_names_who_did_not(
    fake_engine: Callable[..., FakeEngine], tmp_path: Path
) -> None:
    mute = fake_engine(mute="*").socket
    for socket, why in ((mute, ""), (tmp_path / "none", "no such socket")):
        done = run("list-containers", *docker(socket), "-o", "json")
        assert (done.returncode, json.loads(done.stdout)) == (1, [])
        assert f"incomplete: no answer from docker ({socket})" in done.stderr
        assert why in done.stderr
        assert "by ID" not in done.stderr


def test_list_says_whose_details_did_not_come_and_ends_in_time(
    fake_engine: Callable[..., FakeEngine],
) -> None:
    names = [f"c{number}" for number in range(21)]
    done = run("list-containers", *docker(fake_engine(names).socket), "-o", "json")
    assert [row["name"] for row in json.loads(done.stdout)] == sorted(names)
    assert done.returncode == 1
    assert "addresses) for 21 containers" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_list_that_waits_for_details_ends_when_told_to(
    fake_engine: Callable[..., FakeEngine], number: int
) -> None:
    engine = fake_engine()
    command = [str(IG), "list-containers", *docker(engine.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert engine.asked.wait(PATIENCE)
        process.send_signal(number)
        assert process.wait(PATIENCE / 6) == 0


def test_engine_that_is_slow_is_waited_for_by_a_list_and_reported_by_other_commands(
    fake_engine: Callable[..., FakeEngine],
) -> None:
    slow = docker(fake_engine(delay=1.2).socket)
    listed = run("list-containers", *slow, "-o", "json")
    assert len(json.loads(listed.stdout)) == len(NAMES)
    assert "no answer" not in listed.stderr
    done = run("snapshot", "socket", *slow)
    assert done.returncode == 1
    assert "docker has not answered yet" in done.stderr
    assert "No container" not in done.stderr


def test_trace_does_not_say_that_nothing_runs_where_nobody_could_tell(
    fake_engine: Callable[..., FakeEngine], tmp_path: Path
) -> None:
    for socket in (tmp_path / "none", fake_engine(mute="*").socket):
        done = run("trace", "tcpconnect", *docker(socket), "-t", 0)
        assert done.returncode == 0
        assert "docker does not answer" in done.stderr or "has not answered yet" in done.stderr
        assert "No container" not in done.stderr
    done = run("trace", "tcpconnect", *docker(fake_engine(()).socket), "-t", 0)
    assert "No container of docker is running yet" in done.stderr


def test_ordinary_user_is_told_that_there_is_no_list_because_it_may_not_ask(
    fake_engine: Callable[..., FakeEngine],
) -> None:
    socket = fake_engine().socket
    os.chmod(socket, stat.S_IRUSR | stat.S_IWUSR)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        link = Path(folder, "docker.sock")
        socket.rename(link)
        for command in (("list-containers",), ("snapshot", "socket")):
            done = run(*command, *docker(link), within=ordinary_user())
            assert done.returncode == 1
            assert "mode 0600" in done.stderr
            assert "No container" not in done.stderr


def test_choice_that_matches_no_container_is_reported_with_those_that_run(
    start_ig: Start, fake_engine: Callable[..., FakeEngine]
) -> None:
    chosen = (*docker(fake_engine().socket), "-c", "wbe", "-l", "tier")
    told = "No running container matches -c wbe --selector tier; running: api-0, db, web"
    tracer = start_ig("trace", "tcpconnect", *chosen)
    assert told not in tracer.stderr
    assert told in tracer.stop()[1]
    ours, theirs = pty.openpty()
    command = [str(IG), "trace", "tcpconnect", *chosen]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        read = bytearray()
        while b"(waiting)" not in read:
            assert select.select([ours], [], [], PATIENCE)[0], read
            read += os.read(ours, 4096)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert told.encode() in read
