"""`--why` between containers and the host, and by published ports: whose the causes are."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable

import pytest

from ig.kernel import netns
from tests.host.engine import Engine, Running
from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import until
from tests.host.why import SEEN, Traced, told

HOST = netns.own()


@pytest.fixture
def everywhere(ig: Callable[..., Tracer], note_cause: Callable[[str], None]) -> Traced:
    """Trace all connects of containers and of the host, with their causes."""
    return Traced(ig("trace", "tcpconnect", "--host", "--why"), note_cause)


class From:
    """A container that attempts are made from."""

    def __init__(self, engine: Engine, traced: Traced, container: Running) -> None:
        self._engine, self._traced, self._container = engine, traced, container

    def attempt(self, address: str, port: int, *options: object) -> Report:
        """Connect, and return the event of how that ended."""
        act = lambda: self._engine.connect(self._container, address, port, *options)  # noqa: E731
        return self._traced.ended(self._container.namespace.inode, address, port, act)


def place(event: Report) -> tuple[str, str]:
    return event["cause"]["kind"], event["cause"]["where"]


def gateway(running: Running) -> str:
    """Return the address that the host has on the network of a container."""
    running.container.reload()
    networks = running.container.attrs["NetworkSettings"]["Networks"]
    return next(str(each["Gateway"]) for each in networks.values())


@pytest.mark.shows("no-listener", "listens-elsewhere", "container-paused", "container-gone")
def test_why_names_containers(engine: Engine, everywhere: Traced) -> None:
    near = From(engine, everywhere, engine.idle("web"))
    database, port = engine.serve("db")
    inner = engine.program("inner", "serve", "127.0.0.1")
    inside = inner.reports.ready()["port"]
    slow = engine.program("slow", "serve", "0.0.0.0", 0, "--deaf", "--backlog", 0)
    full = slow.reports.ready()["port"]
    far, address = f"container {database.name}", database.address
    assert told(near.attempt(address, port)) == ("established", "", "")
    event = near.attempt(address, port % 60000 + 1)
    assert (told(event), place(event)[1]) == (("refused", "no-listener", SEEN), far)
    assert f"(listens on {port})" in event["cause"]["detail"]
    event = near.attempt(inner.address, inside, "--nonblocking")
    assert told(event) == ("refused", "listens-elsewhere", SEEN)
    assert place(event)[1] == f"container {inner.name}"
    assert near.attempt(slow.address, full)["outcome"] == "established"
    event = near.attempt(slow.address, full, "--syn-count", 1)
    assert place(event) == ("accept-queue-full", f"container {slow.name}")
    slow.container.pause()
    try:
        event = near.attempt(slow.address, full, "--syn-count", 1)
    finally:
        slow.container.unpause()
    assert place(event) == ("container-paused", f"container {slow.name}")
    database.container.remove(force=True)
    event = near.attempt(address, port, "--syn-count", 1)
    assert (place(event), event["cause"]["confidence"]) == (("container-gone", far), "likely")


@pytest.mark.shows("no-listener", "listens-elsewhere", "accept-queue-full")
def test_why_names_the_host_and_containers_that_share_its_network(
    engine: Engine, everywhere: Traced
) -> None:
    web = engine.idle("web")
    near = From(engine, everywhere, web)
    host = gateway(web)
    with socket.create_server((host, 0)) as unused:
        free = unused.getsockname()[1]
    event = near.attempt(host, free)
    assert (told(event), place(event)[1]) == (("refused", "no-listener", SEEN), "this host")
    with socket.create_server(("127.0.0.1", 0)) as local:
        event = near.attempt(host, local.getsockname()[1])
        assert told(event) == ("refused", "listens-elsewhere", SEEN)
        assert place(event)[1] == "this host"
        assert "(by " not in event["cause"]["detail"]
    inner = engine.program("inner", "serve", "127.0.0.1", network_mode="host")
    port = inner.reports.ready()["port"]

    def is_named() -> bool:
        event = near.attempt(host, port)
        assert place(event) == ("listens-elsewhere", "this host")
        detail: str = event["cause"]["detail"]
        return detail.endswith(f"127.0.0.1 only (by container {inner.name})")

    until(is_named, "the engine to report the container")
    deaf = ("serve", "127.0.0.1", 0, "--deaf", "--backlog", 0)
    slow = engine.program("slow", *deaf, network_mode="host")
    full = slow.reports.ready()["port"]
    here = Namespace.of(os.getpid())
    assert everywhere.attempt(here, "127.0.0.1", full)["outcome"] == "established"
    event = everywhere.attempt(here, "127.0.0.1", full, "--syn-count", 1)
    assert place(event) == ("accept-queue-full", f"container {slow.name}")


@pytest.mark.shows("no-listener")
def test_why_names_the_container_behind_the_proxy_of_a_published_port(
    engine: Engine, everywhere: Traced
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        published = taken.getsockname()[1]
    hollow = engine.idle("hollow", ports={"7000/tcp": ("127.0.0.1", published)})

    def connect() -> None:
        socket.create_connection(("127.0.0.1", published)).close()

    # The engine's proxy takes the connection, and makes one of its own.
    event = everywhere.ended(HOST, hollow.address, 7000, connect)
    assert told(event) == ("refused", "no-listener", SEEN)
    assert place(event)[1] == f"container {hollow.name}"
    (own,) = everywhere.tracer.wait_for(lambda each: each["dst"]["port"] == published)
    assert told(own) == ("established", "", "")


@pytest.mark.shows("published-port-without-backend")
def test_why_names_the_container_that_a_port_is_published_for_by_rules(
    docker_host: tuple[Namespace, Engine],
    start_ig: Callable[..., Tracer],
    note_cause: Callable[[str], None],
) -> None:
    host, engine = docker_host
    hollow = engine.idle("hollow", ports={"80/tcp": 8080})
    good = engine.program("good", "serve", "0.0.0.0", 81, ports={"81/tcp": 8081})
    good.reports.ready()
    command = ("trace", "tcpconnect", "--host", "--why", "-o", "json")
    environment = {"DOCKER_HOST": engine.socket}
    traced = Traced(start_ig(*command, environment=environment), note_cause)
    (bridge,) = json.loads(host.ip("-j", "-4", "addr", "show", "docker0"))
    address = bridge["addr_info"][0]["local"]
    for how in ((), ("--nonblocking",)):
        event = traced.attempt(host, address, 8080, *how)
        assert told(event) == ("refused", "published-port-without-backend", SEEN)
        assert place(event)[1] == f"container {hollow.name}"
    assert told(traced.attempt(host, address, 8081)) == ("established", "", "")
    # What a container sends there, the engine's proxy takes.
    event = traced.ended(
        host.inode, hollow.address, 80, lambda: engine.connect(good, address, 8080)
    )
    assert told(event) == ("refused", "no-listener", SEEN)
    assert place(event)[1] == f"container {hollow.name}"
