"""What may go wrong around `ig`: kills, engines that hang or die, clocks, numbers used again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.attached import added, loaded
from tests.host.engine import Engine, PrivateEngine
from tests.host.namespace import Namespace
from tests.host.reports import Reports
from tests.host.tracer import IG, Tracer, session
from tests.host.waiting import PATIENCE, until

Start = Callable[..., Tracer]
NOBODY = ("127.0.0.1", 9)


MANY = """
import socket
for _ in range(80_021):
    with socket.socket() as refused:
        refused.connect_ex(("127.0.0.1", PORT))
"""
PORT = 4241  # nobody's


def test_losses_are_counted_while_nobody_reads_and_then_it_goes_on(
    namespace: Namespace, tmp_path: Path
) -> None:
    # By the port, which the kernel looks at: another's events must not be lost, and counted, too.
    ready, only = tmp_path / "ready", ("--port", str(PORT), "-F", f"netns=={namespace.inode}")
    command = [str(IG), "trace", "tcpconnect", "--host", "-o", "json", *only]
    with (tmp_path / "said").open("wb") as stderr:
        ig = subprocess.Popen(
            [*command, "--ready-file", str(ready)], stdout=subprocess.PIPE, stderr=stderr
        )
    assert ig.stdout
    stdout, said = ig.stdout.fileno(), tmp_path / "said"
    with ig:
        until(ready.exists, "ig to be ready")
        namespace.run("/usr/bin/python3", "-c", MANY.replace("PORT", str(PORT)))
        status = Path(f"/proc/{ig.pid}/status").read_text()
        reports = Reports(iter(lambda: os.read(stdout, 65536), b""))
        until(said.read_text, "the losses to be told")
        first = reports.objects[0]["proc"]["pid"]
        namespace.connect("127.0.0.1", PORT, "--count", 11)
        until(
            lambda: all(each["proc"]["pid"] != first for each in reports.objects[-11:]),
            "the events that came later, after all before",
        )
        ig.terminate()
        events = reports.all()
    lost = json.loads(said.read_text().splitlines()[-1])
    assert len(events) + lost["count"] == 80_021 + 11
    assert set(lost["causes"]) == {"the output was read too slowly, so the ring buffer was full"}
    assert int(status.partition("VmRSS:")[2].split()[0]) < 120_000


@pytest.mark.parametrize("gadget", ["tcp", "bind"])
def test_killed_at_any_moment_it_leaves_nothing_behind(start_ig: Start, gadget: str) -> None:
    before = loaded()
    for hundredths in range(0, 100, 7):
        tracer = start_ig("trace", gadget, "--host", ready=False)
        time.sleep(hundredths / 100)
        tracer.kill()
        until(lambda: not session(tracer.process.pid), "all processes to end")  # noqa: B023
    until(lambda: not added(before), "the kernel to let go of the programs")


@dataclass
class Scene:
    """An engine of the test's own, a container that connects when told to, and a trace of both."""

    private: PrivateEngine
    engine: Engine
    client: str
    pid: int
    tracer: Tracer

    def connects(self) -> str:
        """Let the container connect, without the engine's help, and give whose the event is."""
        os.kill(self.pid, signal.SIGUSR1)
        (event,) = self.tracer.wait_for(bool)
        return str(event["runtime"]["containerName"])

    def names_come(self) -> None:
        """Wait until a new container's connect is told by its name."""
        name = self.engine.name("later")
        self.engine.connect(self.engine.idle("later"), *NOBODY)
        self.tracer.wait_for(lambda event: event["runtime"]["containerName"] == name)


@pytest.fixture
def scene(start_ig: Start, private_engine: PrivateEngine) -> Iterator[Scene]:
    private_engine.start()
    engine = Engine(private_engine.socket)
    client = engine.program("client", "connect", *NOBODY, "--on-signal")
    client.reports.ready()
    environment = {"DOCKER_HOST": private_engine.socket}
    tracer = start_ig("trace", "tcpconnect", "-o", "json", environment=environment)
    yield Scene(private_engine, engine, client.name, client.pid, tracer)
    private_engine.signal(signal.SIGCONT)
    engine.close()


def test_engine_that_hangs_costs_no_name_that_was_known(scene: Scene) -> None:
    scene.private.signal(signal.SIGSTOP)
    assert scene.connects() == scene.client
    scene.private.signal(signal.SIGCONT)
    scene.names_come()
    assert scene.tracer.stop()[2] == 0


def test_engine_that_is_killed_is_missed_aloud_and_its_names_return(scene: Scene) -> None:
    scene.private.signal(signal.SIGKILL)
    scene.tracer.says("docker")
    assert scene.connects() == scene.client
    scene.private.stop()
    (scene.private.folder / "docker.pid").unlink(missing_ok=True)
    scene.private.start()
    scene.names_come()
    _, said, code = scene.tracer.stop()
    assert code == 0
    assert said.count("does not answer") == said.count("answers again") > 0


@pytest.mark.anywhere
@pytest.mark.parametrize(
    "reader", ["cat >/dev/full", "timeout -s KILL 1 cat >/dev/null", "head -2"]
)
def test_reader_that_exits_ends_it_without_an_error(namespace: Namespace, reader: str) -> None:
    pipe = (
        f"{IG} trace tcpconnect --host -o json --port {PORT} | ({reader}); echo ${{PIPESTATUS[0]}}"
    )
    with subprocess.Popen(
        ["bash", "-c", pipe], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout
        until(lambda: shell.poll() is not None or not namespace.connect("127.0.0.1", PORT), "it")
        printed, said = shell.communicate(timeout=PATIENCE)
    assert printed.splitlines()[-1] == "0"
    assert "Traceback" not in said
    assert "ig:" not in said


SAME_NUMBER = """
import os, socket, sys
def child(name, number):
    while True:
        if number:
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(number - 1))
        pid = os.fork()
        if pid and number in (0, pid):
            os.waitpid(pid, 0)
            return pid
        if pid:
            os.waitpid(pid, 0)
            continue
        if number in (0, os.getpid()):
            with open("/proc/self/comm", "w") as comm:
                comm.write(name)
            socket.socket().connect_ex(("127.0.0.1", 9))
        os._exit(0)
print(child("second", child("first", 0)))
"""


def test_processes_that_had_the_same_number_are_distinguished(
    start_ig: Start, namespace: Namespace
) -> None:
    tracer = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    pid = json.loads(namespace.run("/usr/bin/python3", "-c", SAME_NUMBER))
    events = [e for e in tracer.stop()[0] if e["netns_id"] == namespace.inode]
    assert [(event["proc"]["pid"], event["proc"]["comm"]) for event in events] == [
        (pid, "first"),
        (pid, "second"),
    ]


@pytest.mark.needs("clock to set")
def test_clock_that_is_set_back_is_followed_and_nothing_is_lost(
    start_ig: Start, namespace: Namespace
) -> None:
    tracer = start_ig(
        "trace", "tcpconnect", "--host", "-o", "json", "-F", f"netns=={namespace.inode}"
    )
    namespace.connect(*NOBODY, "--count", 11)
    tracer.wait_for(bool, 11)
    time.clock_settime(time.CLOCK_REALTIME, time.time() - 3600)
    began = time.time_ns()
    namespace.connect(*NOBODY, "--count", 11)
    tracer.wait_for(bool, 22)
    time.clock_settime(time.CLOCK_REALTIME, time.time() + 3600)
    events, said, code = tracer.stop()
    assert (len(events), said, code) == (22, "", 0)
    times = [event["timestamp_raw"] for event in events]
    assert min(times[:11]) - max(times[11:]) > 3000 * 10**9
    assert all(0 <= told - began < 600 * 10**9 for told in times[11:])
