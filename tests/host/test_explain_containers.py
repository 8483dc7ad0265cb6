"""`ig explain` from and to containers: whose the far end is, and in which state."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ig.causes.cause import Attempt
from ig.causes.find import Causes
from ig.causes.places import Places
from ig.commands.explain import Destination, connect
from ig.commands.setup import make_index
from tests.host.engine import Engine, Running
from tests.host.namespace import Namespace
from tests.host.tracer import IG
from tests.host.waiting import PATIENCE, until


def run(
    engine: Engine, *arguments: object, within: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*within, str(IG), "explain", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        env={**os.environ, "DOCKER_HOST": engine.socket},
    )


def explained(engine: Engine, *arguments: object, within: Sequence[str] = ()) -> dict[str, Any]:
    done = run(engine, *arguments, "-o", "json", within=within)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (found["outcome"] != "established")
    return found


def kind(found: dict[str, Any]) -> tuple[str, str, str]:
    cause = found["cause"] or {"kind": "", "where": ""}
    return found["outcome"], cause["kind"], cause["where"]


def test_container_to_container(engine: Engine) -> None:
    web = engine.idle("web")
    database, port = engine.serve("db")
    slow = engine.program("slow", "serve", "0.0.0.0", 0, "--deaf", "--backlog", 0)
    full = slow.reports.ready()["port"]
    engine.connect(web, slow.address, full)
    near = ("-c", web.name)
    good = explained(engine, f"{database.address}:{port}", *near)
    assert kind(good) == ("established", "", "")
    assert good["container"] == web.name
    assert good["netns_id"] == web.namespace.inode
    assert good["src"]["addr"] == web.address
    wrong = explained(engine, f"{database.address}:{port % 60000 + 1}", *near)
    assert kind(wrong) == ("refused", "no-listener", f"container {database.name}")
    assert f"(listens on {port})" in wrong["cause"]["detail"]
    busy = explained(engine, f"{slow.address}:{full}", *near)
    assert kind(busy) == ("timed-out", "accept-queue-full", f"container {slow.name}")
    slow.container.pause()
    database.container.pause()
    try:
        paused = explained(engine, f"{slow.address}:{full}", *near)
        late = explained(engine, f"{database.address}:{port}", *near)
    finally:
        slow.container.unpause()
        database.container.unpause()
    assert kind(paused) == ("timed-out", "container-paused", f"container {slow.name}")
    assert kind(late) == ("established", "container-paused", f"container {database.name}")


def test_host_to_containers(engine: Engine) -> None:
    database, port = engine.serve("db")
    named = explained(engine, f"{database.name}:{port}")
    assert kind(named) == ("established", "", "")
    assert named["dst"] == {"addr": database.address, "port": port}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        published = taken.getsockname()[1]
    hollow = engine.idle("hollow", ports={"7000/tcp": ("127.0.0.1", published)})
    found = explained(engine, f"127.0.0.1:{published}")
    # The engine's proxy takes it.
    where = f"container {hollow.name}"
    assert kind(found) == ("established", "published-port-without-backend", where)
    several = run(engine, f"{database.address}:{port}", "-c", f"{engine.prefix}-*")
    assert several.returncode == 2
    assert "Several running containers match" in several.stderr
    nobody = run(engine, f"{database.address}:{port}", "-c", "no-such-container")
    assert nobody.returncode == 2
    assert "No running container matches" in nobody.stderr


def test_published_port_leads_to_its_container_by_the_rules_of_docker(
    docker_host: tuple[Namespace, Engine],
) -> None:
    host, engine = docker_host
    hollow = engine.idle("hollow", ports={"80/tcp": 8080})
    ports = {"81/tcp": 8081}
    engine.program("good", "serve", "0.0.0.0", 81, ports=ports).reports.ready()
    (bridge,) = json.loads(host.ip("-j", "-4", "addr", "show", "docker0"))
    address = bridge["addr_info"][0]["local"]
    within = host.command()
    wrong = explained(engine, f"{address}:8080", within=within)
    where = f"container {hollow.name}"
    assert kind(wrong) == ("refused", "published-port-without-backend", where)
    (step,) = (each for each in wrong["steps"] if each["step"] == "translation")
    assert f"{address}:8080 is translated to {hollow.address}:80" in step["found"]
    assert "table ip nat, chain DOCKER" in step["found"]
    good = explained(engine, f"{address}:8081", within=within)
    assert kind(good) == ("established", "", "")
    # Docker leaves what is sent to 127.0.0.1 to its proxy.
    proxied = explained(engine, "127.0.0.1:8080", within=within)
    assert kind(proxied) == ("established", "published-port-without-backend", where)
    inside = explained(engine, f"{address}:8080", "-c", hollow.name, within=within)
    assert kind(inside) == ("established", "published-port-without-backend", where)


def test_name_of_a_container_that_has_ended_is_reported(engine: Engine) -> None:
    database, port = engine.serve("db")
    database.container.stop(timeout=5)
    done = run(engine, f"{database.name}:{port}")
    assert done.returncode == 1
    assert "the container of this name has ended" in done.stderr
    other, _ = engine.serve("other")
    assert other.name in run(engine, "db:80").stderr
    # It has an IPv4 address alone.
    lacking = run(engine, "-6", f"{other.name}:80").stderr
    assert "an IPv6 address" in lacking
    assert "name of a container" not in lacking


def syn_sent(namespace: Namespace) -> bool:
    return bool(namespace.run("ss", "-Htn", "state", "syn-sent").strip())


@pytest.mark.anywhere
def test_container_that_ends_during_the_attempt_is_found_by_its_address(engine: Engine) -> None:
    web = engine.idle("web")
    database, port = engine.serve("db")
    address = database.address
    inside = database.namespace
    inside.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", port, "-j", "DROP")
    near = web.namespace
    with ThreadPoolExecutor() as pool:
        target = f"{address}:{port}"
        running = pool.submit(explained, engine, target, "-c", web.name, "-t", "10s")
        until(lambda: syn_sent(near), "the SYN")
        database.container.kill()
        found = running.result(2 * PATIENCE)
    assert kind(found)[1:] == ("container-gone", f"container {database.name}")
    assert found["cause"]["confidence"] == "likely"


def attempted(near: Running, address: str, port: int) -> Attempt:
    return connect(Places(), near.namespace.inode, Destination(address, port), 1.5)


def test_removed_container_is_remembered(engine: Engine) -> None:
    web = engine.idle("web")
    database, port = engine.serve("db")
    address = database.address
    index = make_index({"runtimes": ["docker"], "docker_socket": engine.socket}, detailed=True)
    causes = Causes(index.containers)
    index.subscribe(causes.on_change)
    index.start()
    try:
        index.wait_synced(PATIENCE)
        assert causes.find(attempted(web, address, port)) is None
        database.container.remove(force=True)
        until(
            lambda: database.name not in {each.name for each in index.containers()},
            f"{database.name} to be gone",
        )
        attempt = attempted(web, address, port)
        assert attempt.outcome == "unanswered"
        cause = causes.find(attempt)
        assert cause
        assert (cause.kind, cause.where) == ("container-gone", f"container {database.name}")
    finally:
        index.close()
