"""What `ig` gives up once its program is on the way into the kernel, and what still works then."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.host.engine import Engine, PrivateEngine
from tests.host.namespace import Namespace
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE, until

Start = Callable[..., Tracer]
CHECKOUT = Path(__file__).parents[2]
NOBODY = ("127.0.0.1", 9)
NOBODYS = 65534
DAC_OVERRIDE, BPF = 1 << 1, 1 << 39


def privileges(tracer: Tracer) -> list[Mapping[str, str]]:
    """Give /proc/PID/task/TID/status of each thread."""
    threads = Path(f"/proc/{tracer.process.pid}/task").iterdir()
    texts = [(thread / "status").read_text() for thread in threads]
    return [dict(line.split(":\t", 1) for line in text.splitlines()) for text in texts]


def held(tracer: Tracer) -> set[int]:
    """Give the sets of capabilities that some thread has, or could take."""
    return {int(each[name], 16) for each in privileges(tracer) for name in ("CapEff", "CapPrm")}


def test_no_thread_keeps_what_it_does_not_need(start_ig: Start, namespace: Namespace) -> None:
    tracer = start_ig("trace", "tcp", "--host", "-o", "json")
    assert len(privileges(tracer)) > 1
    assert held(tracer) == {BPF}
    assert {(each["CapBnd"], each["NoNewPrivs"]) for each in privileges(tracer)} == {
        (f"{0:016x}", "1")
    }
    namespace.connect(*NOBODY)
    (event,) = tracer.wait_for(lambda event: event["netns_id"] == namespace.inode)
    assert event["outcome"] == "refused"
    assert tracer.stop()[1:] == ("", 0)


def test_privileges_are_kept_where_that_is_asked_for(start_ig: Start) -> None:
    tracer = start_ig("trace", "tcp", "--host", "--keep-privileges")
    own = Path("/proc/self/status").read_text().partition("CapEff:\t")[2].split()[0]
    assert held(tracer) == {int(own, 16)}


def test_a_ready_file_may_be_in_a_folder_of_somebody_else(start_ig: Start, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    os.chown(tmp_path, NOBODYS, NOBODYS)
    tracer = start_ig(*("trace", "tcp", "--host", "--ready-file", tmp_path / "ready"), ready=False)
    until((tmp_path / "ready").exists, "the ready file")
    assert held(tracer) == {BPF | DAC_OVERRIDE}
    assert tracer.stop()[1:] == ("", 0)


def test_an_engine_of_somebody_else_names_its_containers_also_when_it_comes_back(
    start_ig: Start, private_engine: PrivateEngine
) -> None:
    private_engine.start()
    path = private_engine.socket.removeprefix("unix://")
    os.chown(path, NOBODYS, NOBODYS)
    os.chmod(path, 0o600)
    engine = Engine(private_engine.socket)
    try:
        environment = {"DOCKER_HOST": private_engine.socket}
        tracer = start_ig("trace", "tcpconnect", "-o", "json", environment=environment)
        assert held(tracer) == {BPF | DAC_OVERRIDE}
        private_engine.stop()
        tracer.says("docker")
        private_engine.start()
        os.chown(path, NOBODYS, NOBODYS)
        os.chmod(path, 0o600)
        engine.connect(engine.idle("later"), *NOBODY)
        tracer.wait_for(lambda event: event["runtime"]["containerName"] == engine.name("later"))
    finally:
        engine.close()


def test_both_ends_are_named_without_any_privilege(ig: Start, engine: Engine) -> None:
    server, port = engine.serve("server")
    client = engine.idle("client")
    tracer = ig("trace", "tcpconnect", "-c", client.name)
    assert held(tracer) == {BPF}
    engine.connect(client, server.address, port)
    (event,) = tracer.wait_for(lambda event: event["dst"]["port"] == port)
    assert (event["dst"]["kind"], event["dst"]["name"]) == ("container", server.name)


@pytest.mark.anywhere
@pytest.mark.parametrize("name", ["", "tcp.c", "headers", "headers/include/linux/types.h"])
@pytest.mark.parametrize("how", ["owner", "mode"])
def test_programs_that_anybody_could_have_changed_are_not_loaded(
    tmp_path: Path, name: str, how: str
) -> None:
    for folder in ("ig", "ebpf"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder)
    path = tmp_path / "ebpf" / name
    if how == "owner":
        os.chown(path, NOBODYS, -1)
    else:
        path.chmod(path.stat().st_mode | stat.S_IWOTH)
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ig.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, "trace", "tcpconnect", "--host", "-t", "0.1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert f"{path} belongs to uid" in done.stderr
    assert "Traceback" not in done.stderr
