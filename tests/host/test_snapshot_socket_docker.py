"""`ig snapshot socket` with real containers: own, shared and host's network namespaces."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ig import query
from ig.commands.snapshot import DEFAULT_ORDER
from ig.container import HOST, Container
from ig.containers.index import Index
from ig.gadget import Batch
from ig.gadgets.snapshot_socket import GADGET
from ig.sockets.collect import collect
from ig.sockets.owner import Known
from tests.host.runtime_drivers import DockerEngine
from tests.host.runtimes import BOUND, IMAGE, followed, unmount
from tests.host.test_snapshot_socket import rows, same_moment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="starts an engine: needs root")

LISTENERS = {"web": 80, "side": 81, "onhost": 45_123}
NETWORKS = {"web": "none", "side": "container:web", "onhost": "host"}


BRIDGE = f"igs{os.getpid()}"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@dataclass(frozen=True)
class Town:
    """Three containers that listen, and the index that knows them."""

    index: Index
    pids: dict[str, int]

    def take(self, *names: str, host: bool = False) -> Batch:
        def wants(owner: Container) -> bool:
            return owner.name in names or (host and owner is HOST)

        known = Known(self.index.find, self.index.containers())
        batch = collect({}, known, wants, lambda _: None)
        return query.sort(batch, GADGET.columns, DEFAULT_ORDER)

    def listening(self, *names: str) -> list[tuple[str, int, bool]]:
        batch = self.take(*names)
        fields = batch.fields
        parts = zip(batch.owners, fields["sport"], fields["shared"], fields["state"], strict=True)
        return [
            (owner.name, port, shared)
            for owner, port, shared, state in parts
            if state == "LISTEN" and port in LISTENERS.values()
        ]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("e")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", "10.214.77.1/24", "dev", BRIDGE)
    engine = DockerEngine(folder, BRIDGE)
    try:
        engine.server.start()
        engine.load(image)
        for name, port in LISTENERS.items():
            options = ("run", "-d", "--name", name, "--network", NETWORKS[name], IMAGE)
            engine.call(*options, "/bin/busybox", "nc", "-l", "-p", str(port))
        pids = {
            name: int(engine.call("inspect", "-f", "{{.State.Pid}}", name)) for name in LISTENERS
        }
        with followed(engine.runtime()) as following:
            made = Town(following.index, pids)
            until_all_listen(made)
            yield made
    finally:
        for name in reversed(LISTENERS):
            engine.remove(name)
        engine.server.stop()
        unmount(folder)
        ip("link", "delete", BRIDGE)


def until_all_listen(town: Town) -> None:
    deadline = time.monotonic() + BOUND
    while len(town.listening(*LISTENERS)) < len(LISTENERS):
        assert time.monotonic() < deadline, town.listening(*LISTENERS)


def test_each_socket_is_shown_once_under_its_container(town: Town) -> None:
    expected = sorted((name, port, False) for name, port in LISTENERS.items())
    assert sorted(town.listening(*LISTENERS)) == expected


@pytest.mark.parametrize("name", LISTENERS)
def test_container_that_was_named_is_shown_alone(town: Town, name: str) -> None:
    assert town.listening(name) == [(name, LISTENERS[name], False)]


def test_rows_of_a_shared_namespace_are_those_of_ss_inside(town: Town) -> None:
    ours, theirs = same_moment(town.pids["web"], lambda: rows(town.take("web", "side")))
    assert ours == theirs
    assert len(ours) == 2


def test_container_on_the_hosts_network_is_not_the_host(town: Town) -> None:
    batch = town.take(host=True)
    assert LISTENERS["onhost"] not in batch.fields["sport"]
    namespace = os.stat(f"/proc/{town.pids['onhost']}/ns/net").st_ino
    assert namespace == os.stat("/proc/self/ns/net").st_ino


def test_column_of_the_cgroup_names_the_container(town: Town) -> None:
    batch = town.take("web")
    listening = [
        path
        for path, state in zip(batch.fields["cgroup"], batch.fields["state"], strict=True)
        if state == "LISTEN"
    ]
    (owner,) = {each.id: each for each in batch.owners}.values()
    assert [owner.id in Path(path).name for path in listening] == [True]
