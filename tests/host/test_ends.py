"""`ig` ends when it is told to, whatever hangs around it, and leaves nothing attached."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.host.attached import added, loaded
from tests.host.fake_engine import FakeEngine
from tests.host.namespace import program
from tests.host.tracer import IG, in_own_mounts, session
from tests.host.waiting import EMULATED, PATIENCE, until

pytestmark = pytest.mark.anywhere
BOUND = PATIENCE if EMULATED else 10.0
"""Seconds: it is for hangs. Alone on a machine `ig` ends within 3, and mostly at once."""
COMMANDS = (
    "trace tcpconnect",
    "trace tcp --host --resolve",
    "snapshot socket --resolve",
    "snapshot socket -w",
    "list-containers",
    "list-containers -w",
    "doctor",
)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def full_pipe() -> Iterator[int]:
    """Return the writing end of a pipe that nobody reads and that has room for nothing more."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(65536))
        os.set_blocking(writing, True)
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def start(
    command: str, *options: object, before: Sequence[str] = (), **streams: int
) -> subprocess.Popen[bytes]:
    given = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams}
    docker = () if "--docker-socketpath" in options else ("--docker-socketpath", "/nonexistent")
    return subprocess.Popen(
        [*before, str(IG), *command.split(), *docker, *map(str, options)],
        stdin=subprocess.DEVNULL,
        stdout=given["stdout"],
        stderr=given["stderr"],
        start_new_session=True,
    )


def ends(process: subprocess.Popen[bytes], number: int) -> int:
    """Send a signal, and give the exit code once it has ended in time."""
    process.send_signal(number)
    try:
        return process.wait(BOUND)
    except subprocess.TimeoutExpired:
        wchan = Path(f"/proc/{process.pid}/wchan").read_text()
        process.kill()
        process.wait()
        raise AssertionError(f"{process.args!r} did not end: {wchan}") from None


def polls(process: subprocess.Popen[bytes]) -> bool:
    """Say whether it waits for a descriptor, here to be written to, or has ended."""
    with suppress(OSError):
        return (
            process.poll() is not None or "poll" in Path(f"/proc/{process.pid}/wchan").read_text()
        )
    return True


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    """What is loaded after the test is what was loaded before it."""
    before = loaded()
    yield
    until(lambda: not added(before), "the kernel to let go of the programs")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("nothing_stays")
def test_it_ends_while_an_engine_does_not_answer(command: str, tmp_path: Path) -> None:
    mute = FakeEngine(tmp_path / "docker.sock", mute="*")
    try:
        for number in SIGNALS if command == COMMANDS[0] else SIGNALS[:1]:
            mute.asked.clear()
            process = start(command, "--docker-socketpath", tmp_path / "docker.sock")
            assert mute.asked.wait(PATIENCE)
            assert ends(process, number) == 0
    finally:
        mute.close()


@pytest.mark.usefixtures("nothing_stays")
def test_it_ends_while_nobody_reads_what_it_prints() -> None:
    with full_pipe() as pipe:
        processes = [
            start(command, stdout=pipe, stderr=stderr)
            for stderr in (subprocess.DEVNULL, pipe)
            for command in COMMANDS
        ]
        for process in processes:
            until(lambda: polls(process), "it to print")  # noqa: B023
            process.send_signal(signal.SIGTERM)
        for process in processes:
            assert ends(process, signal.SIGCONT) in (0, 1)


@pytest.mark.parametrize("command", ["trace tcp", "snapshot socket -w 9", "list-containers -w"])
@pytest.mark.usefixtures("nothing_stays")
def test_it_becomes_ready_and_ends_while_nobody_reads_what_it_says(
    command: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    with full_pipe() as pipe:
        process = start(command, "--ready-file", ready, stderr=pipe)
        until(lambda: ready.exists() or process.poll() is not None, "it to be ready")
        assert ends(process, signal.SIGTERM) == 0


def test_it_ends_with_numbers_of_users_where_their_names_do_not_come(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "passwd")
    over = f"mount --bind {tmp_path}/passwd /etc/passwd"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        shown = f"snapshot socket --host -t --port {port} -o columns=user"
        done = in_own_mounts(f"{over} && exec {IG} {shown} --docker-socketpath /nonexistent")
    assert done.stdout.split() == ["USER", str(os.getuid())], done.stderr


RECEIVES = f"recvfrom:3:{socket.MSG_TRUNC.value}=HOLD"
OPENS = f"socket:{socket.AF_NETLINK.value}=HOLD"


@pytest.mark.parametrize(
    ("command", "call", "passing"),
    [
        ("snapshot socket --host", RECEIVES, 0),
        ("snapshot socket --host", OPENS, 0),
        ("snapshot socket --host --resolve -w 0.1", RECEIVES, 7),
        ("doctor", OPENS, 0),
    ],
)
@pytest.mark.usefixtures("nothing_stays")
def test_netlink_that_does_not_answer_holds_nothing_up(
    command: str, call: str, passing: int, tmp_path: Path
) -> None:
    hold = program("refuse", call, "--held", tmp_path / "held", "--pass", passing, "--")
    process = start(command, before=hold)
    until((tmp_path / "held").exists, "it to ask")
    assert ends(process, signal.SIGTERM) == 0
    until(lambda: not session(process.pid), "all processes to end")


def children(pid: int) -> Sequence[int]:
    with suppress(OSError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("nothing_stays")
def test_monitor_that_is_stopped_ends_with_its_parent(number: int, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = start("trace tcp", "--ready-file", ready)
    until(lambda: ready.exists() or process.poll() is not None, "it to be ready")
    (child,) = until(lambda: children(process.pid), "the monitor")
    os.kill(child, signal.SIGSTOP)
    assert ends(process, number) in (0, -signal.SIGKILL)
    until(lambda: not session(process.pid), "the monitor to end")


def compiling(process: subprocess.Popen[bytes]) -> int:
    """Wait until the loader has loaded the compiler, and return its process's number."""
    child, *_ = until(lambda: children(process.pid), "the loader to begin")
    until(lambda: "bcc" in Path(f"/proc/{child}/maps").read_text(), "the compiler")
    return child


@pytest.mark.parametrize("command", ["trace tcp", "doctor"])
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.usefixtures("nothing_stays")
def test_it_ends_while_its_program_is_being_loaded(command: str, number: int) -> None:
    process = start(command)
    child = compiling(process)
    os.kill(child, signal.SIGSTOP)
    assert ends(process, number) == 0
    until(lambda: not Path(f"/proc/{child}").exists(), "the loader to end")


@pytest.mark.usefixtures("nothing_stays")
def test_loader_that_hangs_ends_with_a_killed_parent() -> None:
    process = start("trace tcp")
    child = compiling(process)
    os.kill(child, signal.SIGSTOP)
    assert ends(process, signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{child}").exists(), "the loader to end")


@pytest.mark.usefixtures("nothing_stays")
def test_loader_that_is_killed_is_reported_with_how_it_ended() -> None:
    process = start("trace tcp", stderr=subprocess.PIPE)
    os.kill(compiling(process), signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert said.decode().splitlines()[-2:] == [
        "ig: The process that loads the BPF program ended unexpectedly.",
        "Exit status: -9.",
    ]


def test_hangup_that_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = ["nohup", str(IG), "trace", "tcp", "--ready-file", str(ready)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until(ready.exists, "it to be ready")
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert ends(process, signal.SIGTERM) == 0
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    assert ignored >> signal.SIGHUP - 1 & 1
