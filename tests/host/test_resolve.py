"""Both ends of a connection are named, in JSON always, in tables with --resolve."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import groupby
from pathlib import Path

import pytest

from tests.host.engine import POD, POD_NAME, Engine
from tests.host.namespace import Namespace, Program
from tests.host.reports import Report
from tests.host.runtime_drivers import ContainerdEngine, serving
from tests.host.runtimes import IMAGE
from tests.host.serving import end_serving
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE, until

pytestmark = pytest.mark.anywhere
Start = Callable[..., Tracer]


def end(event: Report, which: str) -> tuple[str, str, str]:
    return (event[which]["kind"], event[which]["namespace"], event[which]["name"])


def test_json_names_both_ends(ig: Start, engine: Engine) -> None:
    server, port = engine.serve("server")
    client = engine.idle("client")
    tracer = ig("trace", "tcp", "--port", port)
    engine.connect(client, server.address, port, "--count", 3)
    tracer.wait_for(lambda event: event["type"] == "close", 6)
    events, _, _ = tracer.stop()
    ours, theirs = ("container", "", client.name), ("container", "", server.name)
    for event in events:
        by_client = event["runtime"]["containerName"] == client.name
        expected = (ours, theirs) if by_client else (theirs, ours)
        assert (end(event, "src"), end(event, "dst")) == expected


def test_address_is_a_containers_only_where_it_leads_there(
    ig: Start, engine: Engine, namespace: Namespace
) -> None:
    server, port = engine.serve("server")
    client = engine.idle("client")
    address = server.address
    namespace.ip("addr", "add", f"{address}/32", "dev", "lo")  # as a VPN or an inner engine has
    elsewhere = namespace.serve(address)
    tracer = ig("trace", "tcp", "--host", "-F", "type==connect")
    namespace.connect(address, elsewhere)
    engine.connect(client, address, port)
    Namespace.of(os.getpid()).connect(address, port)
    tracer.wait_for(lambda event: event["dst"]["addr"] == address, 3)
    ends = {
        event["netns_id"]: end(event, "dst")
        for event in tracer.stop()[0]
        if event["dst"]["addr"] == address
    }
    named = ("container", "", server.name)
    here = os.stat("/proc/self/ns/net").st_ino
    assert ends == {
        namespace.inode: ("raw", "", ""),
        client.namespace.inode: named,
        here: named,
    }


def own_address() -> str:
    """Return an IPv4 address of this host's but its loopback's."""
    told = subprocess.run(["ip", "-4", "-j", "addr"], capture_output=True, check=True).stdout
    found = [address["local"] for device in json.loads(told) for address in device["addr_info"]]
    usable = [each for each in found if not each.startswith("127.")]
    if not usable:
        pytest.skip("needs an address beside the loopback's")
    return str(usable[0])


def test_inner_engines_addresses_and_ports_are_its_containers_only_there(
    start_ig: Start, namespace: Namespace, tmp_path: Path
) -> None:
    address, published = own_address(), 7119
    namespace.ip("addr", "add", f"{address}/32", "dev", "lo")
    network = {"Networks": {"bridge": {"IPAddress": address}}}
    binding = {"HostIp": "0.0.0.0", "HostPort": str(published)}
    record = {
        "Id": "d" * 64,
        "Names": ["/db"],
        "NetworkSettings": {**network, "Ports": {"80/tcp": [binding]}},
        "Ports": [{"IP": "0.0.0.0", "PublicPort": published, "PrivatePort": 80, "Type": "tcp"}],
    }
    inspected = json.dumps([{**record, "State": {"Running": True}}])
    program = (sys.executable, "-m", "tests.host.fake_engine", tmp_path / "inner.sock", inspected)
    Program(namespace.command(*program)).reports.ready()
    words = ("-r", "docker", "--docker-socketpath", tmp_path / "inner.sock", "-o", "json")
    tracer = start_ig("trace", "tcpconnect", "--host", *words)
    here = Namespace.of(os.getpid())
    ends = [(address, 7118), ("127.0.0.1", published)]
    for where in (namespace, here):
        for end_ in ends:
            where.connect(*end_)

    def ours(event: Report) -> bool:
        return (event["dst"]["addr"], event["dst"]["port"]) in ends

    found = [(event["netns_id"], end(event, "dst")) for event in tracer.wait_for(ours, 4)]
    named, raw = ("container", "", "db"), ("raw", "", "")
    assert found == [(namespace.inode, named)] * 2 + [(here.inode, raw)] * 2


@pytest.fixture
def containerd(tmp_path: Path, image: Path) -> Iterator[ContainerdEngine]:
    with serving(ContainerdEngine(tmp_path), tmp_path, image) as engine:
        yield engine


def test_address_that_no_runtime_reports_is_observed_on_sockets(
    start_ig: Start, new_namespace: Callable[[], Namespace], containerd: ContainerdEngine
) -> None:
    here, elsewhere = Namespace.of(os.getpid()), new_namespace()
    inside = {"server": new_namespace(), "client": new_namespace()}
    addresses = {}
    for network, (name, namespace) in zip(("203.0.113", "198.18.77"), inside.items(), strict=True):
        gateway, addresses[name] = here.link(namespace, network)
        namespace.ip("route", "add", "default", "via", gateway)
    address, port = addresses["server"], 7120
    elsewhere.ip("addr", "add", f"{address}/32", "dev", "lo")
    words = ("-r", "containerd", "--containerd-socketpath", containerd.socket, "-o", "json")
    tracer = start_ig("trace", "tcp", "--host", *words)
    httpd = ("/bin/busybox", "httpd", "-f", "-p", str(port))
    # The host need not forward it: the attempt is told once it is given up.
    attempt = f"/bin/busybox timeout 1 /bin/busybox nc {address} {port} < /dev/null"

    def run(name: str, *command: str) -> None:
        shared = ("--with-ns", f"network:{inside[name].path}")
        containerd.call("run", "-d", *shared, IMAGE, name, *command)

    def named() -> set[tuple[int, str]]:
        """Return where the address was connected to, and whose it was said to be."""
        told = [event for event in tracer.events if event["dst"]["addr"] == address]
        return {(event["netns_id"], end(event, "dst")[2]) for event in told}

    def known_to_host() -> bool:
        here.connect(address, port)
        return (here.inode, "server") in named()

    wanted = {(inside["client"].inode, "server"), (elsewhere.inode, "")}
    try:
        run("server", *httpd)
        run("client", "/bin/busybox", "sh", "-c", f"while true; do {attempt}; done")
        until(known_to_host, "the address to be the server's")
        elsewhere.connect(address, port)
        until(lambda: named() >= wanted, "the client to know it too")
    finally:
        containerd.remove("client")
        containerd.remove("server")
    assert (elsewhere.inode, "server") not in named()


def test_address_that_moves_is_whose_it_is(ig: Start, engine: Engine) -> None:
    with engine.network() as (network, subnet):
        old, new = engine.idle("old"), engine.idle("new")
        client = engine.idle("client", network=network.name)
        moving = f"{subnet}.50"
        network.connect(old.container, ipv4_address=moving)
        tracer = ig("trace", "tcpconnect", "-c", client.name)

        def named() -> str:
            engine.connect(client, moving, 9, "--timeout", 1)
            return str(end(tracer.events[-1], "dst")[2]) if tracer.events else ""

        until(lambda: named() == old.name, "the first to be named")
        network.disconnect(old.container)
        until(lambda: not named(), "an address that was taken away to be nobody's")
        network.connect(new.container, ipv4_address=moving)
        second = new.name
        until(lambda: named() == second, "the second to be named")
        renamed = engine.rename(new, "renamed")
        until(lambda: named() == renamed, "the new name")
        names = [end(event, "dst")[2] for event in tracer.stop()[0]]
    assert [name for name, _ in groupby(filter(None, names))] == [old.name, second, renamed]


def test_of_several_in_a_namespace_only_the_one_that_listens_is_named(
    ig: Start, engine: Engine
) -> None:
    vpn = engine.idle("vpn")
    address = vpn.address
    web, port = engine.serve("web", network_mode=f"container:{vpn.id}")
    client = engine.idle("client")
    connects = ("-F", "type==connect", "-F", f"containername=={client.name}")
    tracer = ig("trace", "tcp", *connects)
    seen: list[bool] = []

    def named() -> bool:
        engine.connect(client, address, port)
        engine.connect(client, address, 9)
        tracer.wait_for(lambda event: event["dst"]["port"] == 9, len(seen) + 1)
        seen.append(True)
        return any(end(event, "dst")[2] for event in tracer.events)

    until(named, "the one that accepts to be named")
    ends = {(event["dst"]["port"], end(event, "dst")[2]) for event in tracer.stop()[0]}
    assert (port, web.name) in ends
    assert ends <= {(port, web.name), (port, ""), (9, "")}


def test_address_is_named_by_who_had_it_when_the_event_happened(ig: Start, engine: Engine) -> None:
    with engine.network() as (network, _):
        client = engine.idle("client", network=network.name)
        first = engine.idle("first", network=network.name)
        address = first.address
        tracer = ig("trace", "tcpconnect", "-c", client.name)
        engine.connect(client, address, 9)
        tracer.wait_for(lambda event: end(event, "dst")[2] == first.name)
        tracer.process.send_signal(signal.SIGSTOP)
        engine.connect(client, address, 9)
        engine.remove(first)
        second = engine.idle("second", network=network.name)
        assert second.address == address
        engine.connect(client, address, 9)
        tracer.process.send_signal(signal.SIGCONT)
        tracer.wait_for(lambda _: True, 3)
        names = [end(event, "dst")[2] for event in tracer.stop()[0]]
    assert names[:2] == [first.name] * 2
    assert names[2] in (second.name, "")


def test_what_nobody_knows_is_raw(ig: Start, engine: Engine) -> None:
    client = engine.idle("client")
    tracer = ig("trace", "tcpconnect", "--max-events", 1)
    engine.connect(client, "127.0.0.1", 9)
    (event,), _, _ = tracer.finished()
    assert end(event, "dst") == ("raw", "", "")


def test_container_that_starts_while_tracing_is_named_too(ig: Start, engine: Engine) -> None:
    client = engine.idle("client")
    tracer = ig("trace", "tcpconnect", "-F", "dst.kind==container")
    server, port = engine.serve("server")

    def named() -> bool:
        engine.connect(client, server.address, port)
        return bool(tracer.events)

    # Its address is asked for when the engine tells that it has started.
    until(named, "the address to be known")
    assert end(tracer.stop()[0][0], "dst") == ("container", "", server.name)


class Busy:
    """A way to an engine's socket on which the first inspections of containers fail."""

    def __init__(self, path: Path, engine: str, failures: int) -> None:
        self._engine = engine.removeprefix("unix://")
        self._left = failures
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(path))
        self._door.listen()
        self.failed = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._door.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.socket(socket.AF_UNIX) as engine:
            request = client.recv(65536)
            if self._left and re.search(rb"containers/[0-9a-f]{64}/json", request):
                self._left -= 1
                client.sendall(b"HTTP/1.1 500 busy\r\nContent-Length: 0\r\n\r\n")
                self.failed.set()
                return
            engine.connect(self._engine)
            engine.sendall(request)
            while piece := engine.recv(65536):
                client.sendall(piece)

    def close(self) -> None:
        end_serving(self._door, self._thread)


def test_container_is_named_although_its_first_inspections_failed(
    start_ig: Start, engine: Engine, tmp_path: Path
) -> None:
    client = engine.idle("client")
    with closing(Busy(tmp_path / "busy.sock", engine.socket, 3)) as busy:
        options = ("--docker-socketpath", tmp_path / "busy.sock", "-r", "docker", "-o", "json")
        tracer = start_ig("trace", "tcpconnect", *options, "-F", "dst.kind==container")
        server, port = engine.serve("server")
        assert busy.failed.wait(PATIENCE)

        def named() -> bool:
            engine.connect(client, server.address, port)
            return bool(tracer.events)

        until(named, "the address to be known")
        assert end(tracer.stop()[0][0], "dst") == ("container", "", server.name)


def test_pod_is_named_by_its_namespace_and_name(ig: Start, engine: Engine) -> None:
    server, port = engine.serve(POD_NAME, labels=POD)
    client = engine.idle("client")
    tracer = ig("trace", "tcpconnect", "-c", client.name, "--max-events", 1)
    engine.connect(client, server.address, port)
    (event,), _, _ = tracer.finished()
    assert end(event, "dst") == ("pod", "shop", "api-0")


def test_tables_show_names_when_asked(start_ig: Start, engine: Engine) -> None:
    server, port = engine.serve("server")
    pod, pod_port = engine.serve(POD_NAME, labels=POD)
    client = engine.idle("client")
    options = ("--resolve", "-c", client.name, "--max-events", 3, "-o", "columns=src,dst")
    tracer = start_ig("trace", "tcpconnect", *options, environment={"DOCKER_HOST": engine.socket})
    for address, number in ((server.address, port), (pod.address, pod_port), ("127.0.0.1", 9)):
        engine.connect(client, address, number)
    tracer.finished()
    rows = [line.split() for line in tracer.reports.lines[1:]]
    assert [row[0].rpartition(":")[0] for row in rows] == [f"c/{client.name}"] * 3
    expected = [f"c/{server.name}:{port}", f"p/shop/api-0:{pod_port}", "r/127.0.0.1:9"]
    assert [row[1] for row in rows] == expected


def test_published_port_is_the_containers_behind_it(ig: Start, engine: Engine) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        published = probe.getsockname()[1]
    server = engine.program(
        "server", "serve", "0.0.0.0", 7777, ports={"7777/tcp": ("127.0.0.1", published)}
    )
    server.reports.ready()
    tracer = ig("trace", "tcpconnect", "--host-only", "-F", "dst.kind==container")
    with socket.create_connection(("127.0.0.1", published), PATIENCE) as connection:
        # The engine's proxy goes on to the container; both are to the same one.
        events = tracer.wait_for(lambda event: event["proc"]["pid"] == os.getpid())
        proxied = tracer.wait_for(lambda event: event["dst"]["port"] == 7777)
        connection.close()
    tracer.stop()
    assert {end(event, "dst") for event in events + proxied} == {("container", "", server.name)}


@pytest.mark.parametrize("options", [("-o", "json"), ("-o", "json", "--resolve")])
def test_snapshot_names_both_ends(engine: Engine, options: tuple[str, ...]) -> None:
    server, port = engine.serve("server")
    client = engine.program("client", "connect", server.address, port, "--hold")
    client.reports.ready()
    command = [str(IG), "snapshot", "socket", "-c", client.name, *options]
    environment = {**os.environ, "DOCKER_HOST": engine.socket}
    printed = subprocess.run(
        command, env=environment, capture_output=True, check=True, timeout=PATIENCE
    ).stdout
    (row,) = json.loads(printed)
    assert end(row, "src") == ("container", "", client.name)
    assert end(row, "dst") == ("container", "", server.name)


@pytest.mark.parametrize("gadget", [("trace", "tcpconnect", "-t", 1), ("snapshot", "socket")])
def test_kubernetes_names_are_shown_where_there_are_any(
    start_ig: Start, engine: Engine, gadget: tuple[object, ...]
) -> None:
    environment = {"DOCKER_HOST": engine.socket}

    def header() -> list[str]:
        tracer = start_ig(*gadget, environment=environment)
        tracer.finished()
        return tracer.reports.lines[0].split()

    engine.idle("plain")
    assert header()[0] == "RUNTIME.CONTAINERNAME"
    engine.idle(POD_NAME, labels=POD)
    assert header()[:3] == ["K8S.NAMESPACE", "K8S.PODNAME", "K8S.CONTAINERNAME"]
