"""`ig list-containers`, and the options that choose containers, by every name that they have."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.host.engine import POD, POD_NAME, Engine, Running
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere
Start = Callable[..., Tracer]


def run(engine: Engine, *arguments: object) -> str:
    command = [str(IG), "list-containers", *map(str, arguments)]
    environment = {**os.environ, "DOCKER_HOST": engine.socket}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def listed(engine: Engine, *arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(engine, "-o", "json", *arguments))
    return found


def test_container_is_listed_with_all_that_is_known_of_it(engine: Engine) -> None:
    web = engine.idle("web")
    (row,) = listed(engine, "-c", web.name)
    assert (row["runtime"], row["name"], row["containerId"]) == ("docker", web.name, web.id)
    assert (row["pid"], row["mntns_id"]) == (web.pid, web.mntns)
    assert row["netns_id"] == os.stat(f"/proc/{web.pid}/ns/net").st_ino
    assert row["ip"] == web.address
    assert row["started"] > "2026"


def test_pid_namespace_of_its_own_reports_no_other_processes_namespaces(
    engine: Engine,
) -> None:
    web = engine.idle("web")
    within = ["unshare", "--pid", "--fork", "--mount-proc"]
    choice = ("-r", "docker", "--docker-socketpath", engine.socket, "-c", web.name)
    done = subprocess.run(
        [*within, str(IG), "list-containers", *choice, "-o", "json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    (row,) = json.loads(done.stdout)
    assert (row["mntns_id"] or 0, row["netns_id"] or 0, done.returncode) == (0, 0, 0)
    assert "own PID namespace" in done.stderr


def test_table_shows_pods_where_there_are_any(engine: Engine) -> None:
    engine.idle("web")
    assert "K8S.PODNAME" not in run(engine)
    engine.idle(POD_NAME, labels=POD)
    header, *rows = run(engine).splitlines()
    assert {"K8S.NAMESPACE", "K8S.PODNAME", "K8S.CONTAINERNAME"} <= set(header.split())
    assert any({"shop", "api-0", "api"} <= set(row.split()) for row in rows)


@pytest.mark.parametrize(
    "choice",
    [
        lambda pod: ("-c", pod.name),
        lambda pod: ("-c", f"/{pod.name}"),
        lambda pod: ("-c", pod.id),
        lambda pod: ("-c", pod.id[:6]),
        lambda pod: ("-c", f"{pod.name[:-1]}*"),
        lambda _: ("--podname", "api-0"),
        lambda _: ("-n", "shop"),
        lambda _: ("--selector", "com.docker.compose.service=api"),
        lambda _: ("-F", "k8s.podName==api-0"),
        lambda pod: ("-r", "docker", "-c", pod.name),
    ],
)
def test_container_is_chosen_by_any_of_its_names(
    engine: Engine, choice: Callable[[Running], tuple[str, ...]]
) -> None:
    engine.idle("web")
    pod = engine.idle(POD_NAME, labels={**POD, "com.docker.compose.service": "api"})
    assert [row["name"] for row in listed(engine, *choice(pod))] == [pod.name]


def test_labels_of_an_image_make_no_pod_and_hide_nothing(engine: Engine) -> None:
    pause = {"io.kubernetes.docker.type": "podsandbox", "io.kubernetes.container.name": "POD"}
    labels = {**POD, **pause, "io.cri-containerd.kind": "sandbox", "nerdctl/name": "victim"}
    evil = engine.idle("evil", labels=labels)
    (row,) = listed(engine, "-c", evil.name)
    assert (row["name"], row["k8s"]["podName"], row["k8s"]["namespace"]) == (evil.name, "", "")
    assert listed(engine, "--podname", "api-0") == []


def test_name_that_is_excluded_is_left_out(engine: Engine) -> None:
    web, other = engine.idle("web"), engine.idle("other")
    names = [row["name"] for row in listed(engine, "-c", f"!{web.name}")]
    assert other.name in names
    assert web.name not in names


def test_watch_reports_who_comes_and_goes(ig: Start, engine: Engine) -> None:
    old = engine.idle("old")
    tracer = ig("list-containers", "-w")
    new = engine.idle("new")
    tracer.wait_for(lambda row: (row["event"], row["name"]) == ("started", new.name))
    engine.remove(new)
    tracer.wait_for(lambda row: (row["event"], row["name"]) == ("removed", new.name))
    events, said, code = tracer.stop()
    assert (said, code) == ("", 0)
    told = [row["event"] for row in events if row["name"] == new.name]
    assert told == ["created", "started", "exited", "removed"]
    assert [row["event"] for row in events if row["name"] == old.name] == ["exists"]
