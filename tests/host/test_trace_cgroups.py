"""Whose an event is, in cgroups that are made by hand: many, deep, gone, in two hierarchies."""

import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.features import preempts_programs
from tests.host.cgroups import legacy, new_cgroup, unified
from tests.host.engine import Engine
from tests.host.fake_engine import FakeEngine
from tests.host.namespace import Namespace
from tests.host.reports import Report, lost_by_cause, most_lost
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE, until

Start = Callable[..., Tracer]

NOBODY = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
PORT = 7117
SUSPENDED = 5_003


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with new_cgroup(unified()) as folder:
        yield folder


def trace(start_ig: Start, *options: object, command: str = "tcpconnect") -> Tracer:
    """Trace without any runtime, so that each container is an unknown one."""
    words = ("trace", command, "-r", "docker", "-o", "json", "-F", f"dst.port=={PORT}", *options)
    return start_ig(*words, environment=NOBODY)


def connect(namespace: Namespace, root: Path, *options: object) -> list[str]:
    """Connect from cgroups (see programs/cgroups.py) and return their names."""
    (told,) = namespace.start("cgroups", root, PORT, *options).finished(120)
    return list(told["names"])


def ids(events: list[Report]) -> list[str]:
    return [event["runtime"]["containerId"] for event in events]


@pytest.mark.parametrize("count", [320, 1_009, SUSPENDED])
@pytest.mark.parametrize("end", ["stay", "go"])
def test_cgroups_that_come_while_it_is_suspended_are_all_named(
    start_ig: Start, namespace: Namespace, cgroup: Path, count: int, end: str
) -> None:
    tracer = trace(start_ig)
    os.kill(tracer.process.pid, signal.SIGSTOP)
    gone = ["--remove"] if end == "go" else []
    names = connect(namespace, cgroup, "--count", count, *gone)
    os.kill(tracer.process.pid, signal.SIGCONT)
    tracer.wait_for(lambda event: event["runtime"]["containerId"] == names[-1])
    again = connect(namespace, cgroup, "--count", 3)
    events = tracer.wait_for(bool, count + 3)
    assert ids(events) == names + again
    assert not most_lost(tracer.stop()[1])


@pytest.mark.parametrize("end", ["stay", "go"])
def test_path_that_could_not_be_sent_is_looked_up_or_shown_as_unknown(
    start_ig: Start, namespace: Namespace, cgroup: Path, end: str
) -> None:
    count = 1_009
    deep = cgroup.joinpath(*("long" * 60,) * 12)  # 3 KB a path: some 300 fill the ring
    deep.mkdir(parents=True)
    tracer, chosen = trace(start_ig), trace(start_ig, "-c", "nothing-is-called-so")
    for each in (tracer, chosen):
        os.kill(each.process.pid, signal.SIGSTOP)
    gone = ["--remove"] if end == "go" else []
    names = connect(namespace, deep, "--count", count, *gone)
    for each in (tracer, chosen):
        os.kill(each.process.pid, signal.SIGCONT)
    found = ids(tracer.wait_for(bool, count))
    known = [name for name in found if name in names]
    if end == "stay":
        assert found == names
    else:
        assert 200 < len(known) < count
        assert Counter(name.partition(":")[0] for name in found if name not in names) == {
            "cgroup": count - len(known)
        }
    again = connect(namespace, deep, "--count", 3, "--seed", "again")
    tracer.wait_for(lambda event: event["runtime"]["containerId"] == again[-1])
    assert not most_lost(tracer.stop()[1])
    events, said, _ = chosen.stop()
    assert not events
    unknown = {"not shown: their owner was not known in time": count - len(known)}
    assert lost_by_cause(said) == ({} if end == "stay" else unknown)
    assert said.count('"type": "lost"') == (0 if end == "stay" else 1)


def test_cgroups_of_any_number_leave_a_busy_one_its_owner(
    start_ig: Start, namespace: Namespace, cgroup: Path
) -> None:
    """More than either side remembers; the busy one connects before, while and after."""
    busy = "b" * 64
    tracer = trace(start_ig, "-c", "b" * 12)
    everything = trace(start_ig)
    connect(namespace, cgroup, busy)
    many = cgroup / "many"
    many.mkdir()
    names = []
    for part in range(4):
        names += connect(namespace, many, "--count", 5_003, "--seed", part, "--remove")
        connect(namespace, cgroup, busy)
    everything.wait_for(lambda event: event["runtime"]["containerId"] == busy, 5)
    assert len(tracer.wait_for(bool, 5)) == 5
    connect(namespace, many, "--count", 3, "--seed", 0)
    events, said, _ = everything.stop()
    assert [name for name in ids(events) if name != busy] == names + names[:3]
    assert not most_lost(said)
    assert ids(tracer.stop()[0]) == [busy] * 5


def test_cgroups_nested_deeper_than_the_kernel_sends_belong_to_the_outermost(
    start_ig: Start, namespace: Namespace, cgroup: Path
) -> None:
    outer, inner = "a" * 64, "c" * 64
    paths = [outer + "/d" * depth + f"/docker-{inner}.scope" for depth in (1, 15, 16, 17, 23, 40)]
    tracer = trace(start_ig)
    connect(namespace, cgroup, *paths)
    assert ids(tracer.wait_for(bool, len(paths))) == [outer] * len(paths)


def test_cgroup_names_of_any_length_are_read_whole(
    start_ig: Start, namespace: Namespace, cgroup: Path
) -> None:
    slices = "kubepods-burstable-pod" + "0123456789_" * 9 + ".slice"
    identifier = "e" * 64
    tracer = trace(start_ig)
    connect(namespace, cgroup, f"{slices}/cri-containerd-{identifier}.scope", "f" * 150)
    assert ids(tracer.wait_for(bool, 1)) == [identifier]


@pytest.mark.needs("two cgroup hierarchies")
def test_cgroups_in_either_hierarchy_identify_the_container(
    start_ig: Start, namespace: Namespace
) -> None:
    a, b, c, d = (letter * 64 for letter in "abcd")
    cases = [
        ("system.slice/containerd.service", f"docker/{a}", a),
        ("", f"docker/{b}", b),
        (f"docker/{c}", "", c),
        (f"docker/{d}", "user.slice", d),
        (f"docker/{a}", f"docker/{a}", a),
        ("user.slice", "user.slice", ""),
    ]
    tracer = trace(start_ig, "--host")
    for count, (version2, version1, owner) in enumerate(cases, 1):
        with new_cgroup(unified()) as root, new_cgroup(legacy()) as other:
            also = other / version1 if version1 else legacy()
            connect(namespace, root if version2 else unified(), version2 or ".", "--also", also)
            found = ids(tracer.wait_for(bool, count))
        assert (found[-1], len(found)) == (owner, count), (version2, version1)


def test_cgroup_that_another_user_made_is_nobody_elses_container(
    ig: Start, engine: Engine, namespace: Namespace, cgroup: Path
) -> None:
    """As each session of `systemd --user` has a subtree of its own, and rootless engines do."""
    box = engine.idle("web")
    inner = cgroup / "session"
    inner.mkdir()
    for folder in (cgroup, inner):
        for path in (folder, folder / "cgroup.procs"):
            os.chown(path, 65534, 65534)
    chosen = ig("trace", "tcpconnect", "-c", box.name)
    everything = ig("trace", "tcpconnect", "--host", "-F", f"dst.port=={PORT}")
    fakes = (f"docker-{box.id}.scope", box.id)
    for fake in fakes:
        namespace.start("cgroups", cgroup, PORT, "session", fake, "--uid", 65534).finished()
    engine.connect(box, "127.0.0.1", PORT)
    events = everything.wait_for(bool, 5)
    assert [e["proc"]["creds"]["uid"] for e in events] == [0, 65534, 0, 65534, 0]
    assert [e["runtime"]["containerName"] == box.name for e in events] == [False] * 4 + [True]
    chosen.wait_for(bool)
    assert [e["proc"]["creds"]["uid"] for e in chosen.stop()[0]] == [0]


def test_cgroup_of_the_host_stays_hidden_by_default(
    start_ig: Start, namespace: Namespace, cgroup: Path
) -> None:
    tracer: Any = trace(start_ig)
    connect(namespace, cgroup, "system.slice/job.service", "a" * 64)
    tracer.wait_for(bool)
    events, said, _ = tracer.stop()
    assert ids(events) == ["a" * 64]
    assert not most_lost(said)


class Counted:
    """Reads to the end, counts the lines, and sets `seen` once `mark` has come."""

    def __init__(self, descriptor: int, mark: bytes) -> None:
        self.lines = 0
        self.seen = threading.Event()
        self.thread = threading.Thread(target=self._read, args=(descriptor, mark), daemon=True)
        self.thread.start()

    def _read(self, descriptor: int, mark: bytes) -> None:
        before = b""
        while piece := os.read(descriptor, 1 << 20):
            self.lines += piece.count(b"\n")
            if mark in before[-len(mark) :] + piece:
                self.seen.set()
            before = piece


def test_cgroups_that_no_runtime_names_take_no_more_memory_at_full_rate(
    namespace: Namespace, cgroup: Path, tmp_path: Path, connect_loop: Path
) -> None:
    """Their events wait for a name: of some, and not at the cost of the others."""
    ready, said, count, rounds = tmp_path / "ready", tmp_path / "said", 8_009, 3
    engine = FakeEngine(tmp_path / "docker.sock")
    words: list[object] = [
        "trace",
        "tcp",
        "-r",
        "docker",
        "--docker-socketpath",
        engine.socket,
        "-o",
        "json",
    ]
    words += ["-F", f"netns=={namespace.inode}", "--ready-file", ready]
    with (
        closing(engine),
        said.open("w") as stderr,
        subprocess.Popen([IG, *map(str, words)], stdout=subprocess.PIPE, stderr=stderr) as tracer,
    ):
        assert tracer.stdout
        last = "f" * 64
        counter = Counted(tracer.stdout.fileno(), last.encode())
        until(ready.exists, "ig to be ready")
        for number in range(rounds):
            loops = []
            for name in (f"{number:064x}", f"{number + rounds:064x}"):
                folder = cgroup / name
                folder.mkdir()
                join = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
                command = namespace.command("sh", "-c", join, "sh", connect_loop, count)
                loops.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            assert [loop.wait(PATIENCE) for loop in loops] == [0, 0]
        connect(namespace, cgroup, last)
        assert counter.seen.wait(PATIENCE)
        status = Path(f"/proc/{tracer.pid}/status").read_text()
        tracer.terminate()
        assert tracer.wait(PATIENCE) == 0
        counter.thread.join(PATIENCE)
    missing = 2 * rounds * count * 4 + 1 - counter.lines
    told = most_lost(said.read_text())
    assert 0 <= missing <= told, said.read_text()
    assert preempts_programs() or missing == told, said.read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < 130 << 10
