"""Whose the sockets of a snapshot are, wherever `ig` runs and whatever is missing.

What looks like a container here is a cgroup that is called like one: no engine is needed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ig.container import HOST, Container
from ig.kernel import netns_finder, processes
from ig.kernel.cgroupfs import Cgroups
from ig.kernel.mounts import mounts
from ig.sockets.collect import collect
from ig.sockets.owner import Known
from tests.host.namespace import Namespace, Program, program
from tests.host.tracer import IG, in_own_mounts
from tests.host.waiting import PATIENCE, until

Make = Callable[..., Path]


def point(kind: str = "cgroup2", option: str = "") -> str:
    """Return where the hierarchy is mounted; skip the test where it is not."""
    for mount in mounts():
        if mount.kind == kind and (not option or option in mount.options):
            return mount.point
    pytest.skip(f"needs {kind} {option}")


@pytest.fixture
def make_cgroup() -> Iterator[Make]:
    """Make a cgroup; it is removed when the test ends, and by then must be empty."""
    made: list[Path] = []

    def make(name: str = "", above: str | Path = "") -> Path:
        folder = Path(above or point(), name or uuid.uuid4().hex + uuid.uuid4().hex)
        folder.mkdir()
        made.append(folder)
        return folder

    yield make
    for folder in reversed(made):
        until(partial(_is_empty, folder), "processes to end")
        folder.rmdir()


def _is_empty(folder: Path) -> bool:
    return not (folder / "cgroup.procs").read_text()


@contextmanager
def resident(*groups: Path, command: list[str] | None = None) -> Iterator[Program]:
    """Run a program in cgroups: a server on loopback in the host's namespace unless told."""
    joins = "".join(f"echo $$ > {group}/cgroup.procs && " for group in groups)
    started = Program(
        ["sh", "-c", f'{joins}exec "$@"', "sh", *(command or program("serve", "127.0.0.1", 0))]
    )
    try:
        yield started
    finally:
        started.stop()


def listed(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(text)
    return rows


def command(*options: object) -> list[str]:
    return [str(IG), "snapshot", "socket", "-o", "json", *map(str, options)]


def asked(*options: object, within: tuple[str, ...] = ()) -> tuple[list[dict[str, Any]], str]:
    """Run the real command, perhaps by another; give its rows and what it said."""
    done = subprocess.run(
        [*within, *command(*options)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return listed(done.stdout), done.stderr


def owners(rows: list[dict[str, Any]], *ports: int) -> list[tuple[int, str, bool]]:
    """Return the port, the container's id, and whether that is unknown, of each row."""
    return sorted(
        (row["src"]["port"], row["runtime"]["containerId"], row["shared"])
        for row in rows
        if row["src"]["port"] in ports
    )


PLACES = {
    "a cgroup namespace": "umount -l $g; mount -t cgroup2 none $g;",
    "no cgroup2 mount": "umount -l $g;",
    "a part of cgroup2 mounted": "mount --bind $g/$n $g;",
    "a path with a space": 'mkdir "$t/a b"; umount -l $g; mount -t cgroup2 none "$t/a b";',
}


@pytest.mark.parametrize("place", PLACES)
def test_owners_are_the_same_seen_from(place: str, make_cgroup: Make, tmp_path: Path) -> None:
    web, own = make_cgroup(), make_cgroup("igt-own")
    with ExitStack() as stack:
        port = stack.enter_context(resident(web)).reports.ready()["port"]
        ours = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        hosts = ours.getsockname()[1]
        settings = f"g={point()} n={own.name} t={tmp_path}"
        look = " ".join(command("-c", web.name, "--host", "--state", "listen"))
        inside = f"{settings}; {PLACES[place]} {look}"
        join = f"echo $$ > {own}/cgroup.procs"
        done = in_own_mounts(f"{join}; exec unshare -C sh -c '{inside}'")
        assert not done.returncode, done.stderr
        rows = listed(done.stdout)
    assert owners(rows, port, hosts) == sorted([(port, web.name, False), (hosts, "", False)])


def test_owners_are_unknown_where_a_cgroup_namespace_cannot_be_left(make_cgroup: Make) -> None:
    web, own = make_cgroup(), make_cgroup("igt-own")
    with resident(web) as program_of_web, socket.create_server(("127.0.0.1", 0)) as ours:
        port, hosts = program_of_web.reports.ready()["port"], ours.getsockname()[1]
        caps = "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin"
        look = " ".join(command("-c", web.name, "--state", "listen"))
        done = in_own_mounts(f"echo $$ > {own}/cgroup.procs; exec unshare -C {caps} {look}")
    assert not done.returncode, done.stderr
    assert owners(listed(done.stdout), hosts) == []
    assert {each for _, each, _ in owners(listed(done.stdout), port)} <= {web.name}
    assert "cgroup namespace" in done.stderr


def test_sockets_without_an_owner_are_shown_once_and_under_no_container(make_cgroup: Make) -> None:
    web = make_cgroup()
    with resident(web, command=["sh", "-c", "echo '{\"ready\": true}'; exec sleep 60"]) as idle:
        idle.reports.ready()
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            client = socket.create_connection(("127.0.0.1", port))
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
            client.close()
        options = ("--state", "time-wait")
        assert owners(asked("-c", web.name, *options)[0], port) == []
        rows, said = asked(*options)
        assert owners(rows, port) == []
        assert "without a known owner" in said
        rows, said = asked("--host", *options)
        assert owners(rows, port) == [(port, "", True)]
        assert "owner" not in said


def test_cgroup_that_a_user_could_make_proves_nothing(make_cgroup: Make) -> None:
    users = make_cgroup("igt-user")
    os.chown(users, 65534, 65534)
    fake = make_cgroup(f"docker-{uuid.uuid4().hex}{uuid.uuid4().hex}.scope", above=users)
    true = make_cgroup()
    identifier = fake.name.removeprefix("docker-").removesuffix(".scope")
    with resident(fake) as liar, resident(true) as honest:
        ports = [each.reports.ready()["port"] for each in (liar, honest)]
        told = Container(id=identifier, name="web", runtime="docker", running=True)
        known = Known(_finding(told))
        batch = collect({}, known, lambda owner: owner is not HOST, lambda _: None)
    whose = dict(zip(batch.fields["sport"], batch.owners, strict=True))
    assert whose.get(ports[0]) is not told
    assert whose[ports[1]].id == true.name
    with Cgroups() as cgroups:
        folder = "/".join(fake.parts[-2:])
        assert cgroups.trusted(f"/{folder}") == 1
        assert cgroups.trusted(f"/{true.name}/below") == 2


def _finding(told: Container) -> Callable[..., tuple[Container, bool]]:
    """Return what finds a container that a runtime told of, and others by their cgroup's name."""
    from ig.container import Change
    from ig.containers.index import Index
    from ig.containers.runtimes.docker_api import Docker

    index = Index([Docker("unix:///nonexistent.sock")], lambda _: None)
    index.apply("docker", Change("exists", told))
    return index.find


def test_container_without_a_cgroup_is_known_by_its_mount_namespace() -> None:
    server = program("serve", "127.0.0.1", 0)
    with resident(command=["unshare", "--mount", *server]) as stray, resident() as hosts:
        ports = [each.reports.ready()["port"] for each in (stray, hosts)]
        mine = Container(id="f" * 64, name="stray", runtime="podman", running=True)
        inode = os.stat(f"/proc/{stray.pid}/ns/mnt").st_ino
        known = Known(lambda *_: (HOST, True), strays={inode: mine})
        batch = collect({}, known, lambda _: True, lambda _: None)
    whose = dict(zip(batch.fields["sport"], batch.owners, strict=True))
    assert [whose[port].name for port in ports] == ["stray", ""]


def test_cgroup_of_version_1_alone_identifies_the_owner(make_cgroup: Make) -> None:
    legacy = make_cgroup(above=point("cgroup", "memory"))
    service = make_cgroup("igt-system.slice")
    with resident(service, legacy) as web, resident(service) as other:
        ports = [each.reports.ready()["port"] for each in (web, other)]
        rows, _ = asked("-c", legacy.name, "--host", "--state", "listen")
        assert owners(rows, *ports) == sorted(
            [(ports[0], legacy.name, False), (ports[1], "", False)]
        )
        assert owners(asked("-c", legacy.name)[0], *ports) == [(ports[0], legacy.name, False)]


@pytest.mark.parametrize("how", ["thread", "descriptor", "mount"])
def test_listener_in_a_namespace_without_a_process_is_shown(
    how: str, make_cgroup: Make, tmp_path: Path
) -> None:
    web = make_cgroup()
    lodger = program("lodger", how, tmp_path / "netns")
    with resident(web, command=lodger) as holder:
        report = holder.reports.ready()
        rows, _ = asked("-c", web.name, "--state", "listen")
    assert [(row["src"]["port"], row["netns_id"]) for row in rows] == [
        (report["port"], report["netns"])
    ]


def test_namespace_that_only_ip_netns_holds_is_found(namespace: Namespace) -> None:
    assert namespace.inode in netns_finder.find().namespaces
    assert namespace.inode in _found_in_own_mounts()


def _found_in_own_mounts() -> list[int]:
    """Return what is found where /run is not the host's."""
    look = "from ig.kernel import netns_finder; print(sorted(netns_finder.find().namespaces))"
    root = Path(__file__).parents[2]
    done = in_own_mounts(
        f"mount -t tmpfs none /run; cd {root}; {IG.with_name('python')} -c '{look}'"
    )
    found: list[int] = json.loads(done.stdout)
    return found


def test_pid_namespace_of_its_own_is_said_to_hide_the_others() -> None:
    within = ("unshare", "--pid", "--fork", "--mount-proc")
    assert "own PID namespace" in asked("-c", "web", within=within)[1]
    assert "PID namespace" not in asked("-c", "web")[1]
    assert processes.sees_all_processes()


def test_link_local_address_is_shown_with_its_interface(
    new_namespace: Callable[[], Namespace],
) -> None:
    one, other = new_namespace(), new_namespace()
    one.link(other)
    device = json.loads(one.ip("-j", "route"))[0]["dev"]
    one.ip("-6", "addr", "add", "fe80::1:2/64", "dev", device, "nodad")
    port = one.serve(f"fe80::1:2%{device}")
    rows, _ = asked("--host", "-F", f"src.port=={port}")
    assert [(row["src"]["addr"], row["src"]["zone"]) for row in rows] == [("fe80::1:2", device)]
    assert rows[0]["dst"]["zone"] == ""
    words = (str(IG), "snapshot", "socket", "--host", "-F", f"src.port=={port}", "-o", "csv=src")
    table = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert table.stdout.split() == ["src", f"[fe80::1:2%{device}]:{port}"]
