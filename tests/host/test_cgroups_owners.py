"""Whose a cgroup is: by runtimes' names for theirs, by first processes, and despite pretenders."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ig.container import Change, Container
from ig.containers.index import Index
from ig.kernel import processes
from tests.host.cgroups import new_cgroup, unified
from tests.host.engine import Engine
from tests.host.namespace import Namespace
from tests.host.tracer import Tracer
from tests.host.waiting import until
from tests.unit.test_index import Script, quiet

Start = Callable[..., Tracer]
A, B = "a" * 64, "b" * 64
USER = 65534
PORT = 7119
CHOICE = ("-o", "json", "-F", f"dst.port=={PORT}")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with new_cgroup(unified()) as folder:
        yield folder


NAMED = {
    f"kubepods-burstable-pod1_2.slice:cri-containerd:{A}": ("unknown", A[:12]),
    f"docker/{A}/docker/{B}": ("unknown", A[:12]),
    "lxc.payload.web": ("lxc", "web"),
    "lxc/101/ns": ("lxc", "101"),
    "machine.slice/machine-deb\\x2dvm.scope": ("machine", "deb-vm"),
    "machine.slice/systemd-nspawn@deb.service/payload": ("machine", "deb"),
    "docker/buildkit/abcdefghijklmnopqrstuvwxy": ("buildkit", "abcdefghijklmnopqrstuvwxy"),
    "nomad.slice/share.slice/0f3d9e4c-1111-2222-3333-444455556666.web.scope": ("nomad", "web"),
    "ecs/34dc0b5e626f2c5c4c5170e34b10e765-1234567890": (
        "ecs",
        "34dc0b5e626f2c5c4c5170e34b10e765-1234567890",
    ),
    "system.slice/runc-web.scope": ("runc", "web"),
    "system.slice/ssh.service": ("", ""),
    "lxc.monitor.web": ("", ""),
    f"system.slice/libpod-conmon-{A}.scope": ("", ""),
}


def test_cgroups_are_shown_under_what_their_names_say(
    start_ig: Start, namespace: Namespace, cgroup: Path
) -> None:
    environment = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    tracer = start_ig("trace", "tcpconnect", "--host", *CHOICE, environment=environment)
    namespace.start("cgroups", cgroup, PORT, *NAMED).finished()
    events = tracer.wait_for(bool, len(NAMED))
    found = [(each["runtime"]["runtimeName"], each["runtime"]["containerName"]) for each in events]
    assert dict(zip(NAMED, found, strict=True)) == NAMED


def test_containers_that_no_runtime_names_are_counted(start_ig: Start, cgroup: Path) -> None:
    folder = cgroup / "lxc.payload.web"
    folder.mkdir()
    with isolated() as pid:
        (folder / "cgroup.procs").write_text(str(pid))
        assert Index([Script()], quiet).unnamed() > 0
        environment = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
        tracer = start_ig("trace", "tcpconnect", "-r", "docker", environment=environment)
        tracer.says(" running containers are unknown to the runtimes")


def test_cgroups_that_a_user_makes_are_nobody_elses_container(
    start_ig: Start, namespace: Namespace, cgroup: Path, engine: Engine
) -> None:
    """The user's folder is as systemd delegates it to each session."""
    victim = engine.idle("victim")
    names = [f"docker-{victim.id}.scope", f"deeper/docker/{victim.id}", f"docker-{B}.scope"]
    mine = cgroup / "mine"
    environment = {"DOCKER_HOST": engine.socket}
    options = {"environment": environment}
    tracer = start_ig("trace", "tcpconnect", "-r", "docker", "--host", *CHOICE, **options)
    fooled = start_ig("trace", "tcpconnect", "-r", "docker", "-c", victim.name, *CHOICE, **options)
    for name in names:
        (mine / "session").mkdir(parents=True, exist_ok=True)
        for folder in (mine, mine / "session"):
            os.chown(folder, USER, USER)
            os.chown(folder / "cgroup.procs", USER, USER)
        namespace.start("cgroups", mine, PORT, "session", name, "--uid", USER).finished()
    events = tracer.wait_for(lambda event: event["proc"]["creds"]["uid"] == USER, len(names))
    found = [each["runtime"]["containerName"] for each in events]
    assert found == ["", "", f"unproven-{B[:12]}"]
    assert fooled.stop()[0] == []


@contextmanager
def isolated(*words: str) -> Iterator[int]:
    """Run a process in a mount namespace of its own, by `unshare` and what comes before it."""
    command = [*words, "unshare", "--mount", *(["--map-root-user"] if words else ())]
    process = subprocess.Popen([*command, "sleep", "100"])
    own = processes.mount_namespace("self")
    try:
        until(lambda: processes.mount_namespace(process.pid) != own, "a mount namespace")
        until(lambda: not words or processes.is_of_user(process.pid, USER), "a user namespace")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_stray_is_known_by_its_mount_namespace_until_it_ends() -> None:
    with isolated() as pid:
        index = Index([Script()], quiet)
        web = Container(A, "web", "docker", running=True, pid=pid)
        index.apply("docker", Change("exists", web))
        mntns = processes.mount_namespace(pid)
        assert {inode: each.name for inode, each in index.strays.by_mntns.items()} == {mntns: "web"}
        assert index.strays.paths == set(processes.cgroups(pid) or ((),))
        assert index.strays.by_pid == {}
        # Another container in the same mount namespace: it tells neither.
        index.apply("docker", Change("exists", replace(web, id=B, name="shop")))
        assert index.strays.by_mntns == {}
        index.apply("docker", Change("removed", replace(web, id=B)))
        assert index.strays.by_mntns[mntns].name == "web"
        index.apply("docker", Change("exited", replace(web, running=False, pid=0)))
        assert (index.strays.by_mntns, index.strays.paths) == ({}, frozenset())


@pytest.mark.parametrize("options", [(), ("--keep-privileges",)])
def test_container_without_a_cgroup_of_its_own_is_named(
    start_ig: Start, engine: Engine, options: tuple[str, ...]
) -> None:
    """As rootless Podman leaves it on cgroups of version 1, and `--cgroups=disabled` everywhere."""
    loop = f"while :; do nc -w 1 127.0.0.1 {PORT} </dev/null; sleep 0.2; done"
    stray = engine.run("stray", ["sh", "-c", loop])
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            (Path(point) / "cgroup.procs").write_text(str(stray.pid))
    environment = {"DOCKER_HOST": engine.socket}
    words = ("trace", "tcpconnect", "-r", "docker", "-c", stray.name, *CHOICE, *options)
    tracer = start_ig(*words, environment=environment)
    events = tracer.wait_for(bool, 2)
    assert {each["runtime"]["containerName"] for each in events} == {stray.name}
    assert {each["proc"]["mntns_id"] for each in events} == {stray.mntns}


def test_users_runtime_may_report_its_own_processes_only() -> None:
    user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    index = Index([Script("podman", f"/run/user/{USER}/podman/podman.sock")], quiet)
    index.begin("podman")
    with isolated(*user) as pid:
        theirs = Container(A, "web", "podman", running=True, pid=pid)
        index.apply("podman", Change("exists", theirs))
        assert [each.name for each in index.strays.by_mntns.values()] == ["web"]
        index.apply("podman", Change("exists", replace(theirs, id=B, name="init", pid=1)))
        assert [each.name for each in index.strays.by_mntns.values()] == ["web"]
        assert index.strays.by_pid == {}
