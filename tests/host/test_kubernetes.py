"""`--kubernetes`: pods of other nodes and Services are named, where their addresses lead there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.engine import POD, POD_NAME, Engine, Running
from tests.host.fake_cluster import FakeCluster, pod, service
from tests.host.namespace import Namespace, program
from tests.host.prometheus import read
from tests.host.reports import Report
from tests.host.test_hostile_runtimes import BEGINNING, MOST_MEMORY, forever, most_memory
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE, until

pytestmark = pytest.mark.anywhere
Start = Callable[..., Tracer]
SERVICE, PORT = "198.18.7.10", 5432
NOBODY = 65534
RAW = ("raw", "", "")
FAR, DATABASE, OWN = ("pod", "shop", "db-0"), ("svc", "shop", "db"), ("pod", "shop", "api-0")


@dataclass
class Town:
    """A pod of this host's, and another node: a namespace with a pod that a Service leads to."""

    cluster: FakeCluster
    kubeconfig: Path
    client: Running
    node: Namespace
    address: str
    """That of the pod on the other node."""
    port: int
    """The one on which it serves."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    served = FakeCluster(tmp_path)
    yield served
    served.close()


@pytest.fixture
def town(cluster: FakeCluster, engine: Engine, new_namespace: Callable[[], Namespace]) -> Town:
    client, node = engine.idle(POD_NAME, labels=POD), new_namespace()
    here = client.namespace
    _, address = here.link(node, "203.0.113")
    port = node.serve(address)
    here.ip("route", "add", f"{SERVICE}/32", "via", address)
    # As kube-proxy does: the Service's address is no host's.
    here.run("nft", "add", "table", "ip", "kube")
    here.run("nft", "add chain ip kube output { type nat hook output priority -100 ; }")
    translation = f"ip daddr {SERVICE} tcp dport {PORT} dnat to {address}:{port}"
    here.run("nft", f"add rule ip kube output {translation}")
    cluster.put("pods", pod("db-0", address), pod("api-0", client.address))
    cluster.put("services", service("db", SERVICE, PORT), service("idle", "198.18.7.11", PORT))
    return Town(cluster, cluster.kubeconfig(), client, node, address, port)


def far_end(event: Report) -> tuple[str, str, str]:
    return event["dst"]["kind"], event["dst"]["namespace"], event["dst"]["name"]


def test_kubernetes_names_pods_of_other_nodes_and_services(
    ig: Start, engine: Engine, town: Town
) -> None:
    host = Namespace.of(os.getpid())
    only = ("-F", f"dst.addr=={town.address},{SERVICE},{town.client.address}")
    tracer = ig("trace", "tcpconnect", "--host", f"--kubernetes={town.kubeconfig}", *only)
    engine.connect(town.client, town.address, town.port, "--count", 3)
    engine.connect(town.client, SERVICE, PORT, "--count", 2)
    engine.connect(town.client, town.address, 9)
    host.connect(town.client.address, 9)
    town.node.connect(town.address, town.port)  # another network, for all that is known
    tracer.wait_for(lambda _: True, 8)
    events, said, code = tracer.stop()
    found = [(each["dst"]["port"], far_end(each)) for each in events]
    assert found == [
        *[(town.port, FAR)] * 3,
        *[(PORT, DATABASE)] * 2,
        (9, FAR),
        (9, OWN),
        (town.port, RAW),
    ]
    assert (said, code) == ("", 0)


def test_kubernetes_names_are_in_tables_summaries_and_filters(
    start_ig: Start, engine: Engine, town: Town
) -> None:
    options = ("-c", town.client.name, f"--kubernetes={town.kubeconfig}")
    command = ("trace", "tcpconnect", *options)
    environment = {"DOCKER_HOST": engine.socket}
    table = start_ig(*command, environment=environment)
    summary = start_ig(*command, "--summary", "-F", "dst.kind==svc", environment=environment)
    for address, port in ((SERVICE, PORT), (town.address, town.port)):
        engine.connect(town.client, address, port)
    shown = f"p/shop/db-0:{town.port}"
    until(lambda: any(shown in line for line in table.reports.lines), "the pod in the table")
    for tracer in (table, summary):
        tracer.stop()
    assert any(f"s/shop/db:{PORT}" in line for line in table.reports.lines)
    rows = [line for line in summary.reports.lines if "/shop/" in line]
    assert len(rows) == 1
    assert f"s/shop/db:{PORT}" in rows[0]


def test_kubernetes_names_are_in_snapshots_and_top(
    start_ig: Start, engine: Engine, town: Town
) -> None:
    for address, port in ((SERVICE, PORT), (town.address, town.port)):
        command = program("connect", address, port, "--hold", folder="/programs")
        engine.exec(town.client, command).ready()
    options = ("-c", town.client.name, f"--kubernetes={town.kubeconfig}", "-o", "jsonl")
    environment = {"DOCKER_HOST": engine.socket}
    snapshot = start_ig("snapshot", "socket", *options, environment=environment, ready=False)
    sockets = snapshot.finished()[0]
    found = {far_end(each) for each in sockets if each["state"] == "ESTABLISHED"}
    assert found == {DATABASE, FAR}
    top = start_ig("top", "tcp", *options, "--interval", "0.3", environment=environment)
    (interval, *_) = top.wait_for(lambda interval: len(interval["rows"]) == 2)
    assert {far_end(row) for row in interval["rows"]} == {DATABASE, FAR}


def test_kubernetes_names_are_destinations_of_metrics(
    start_ig: Start, engine: Engine, town: Town
) -> None:
    command = ("export", "--prometheus", "127.0.0.1:0", "--interval", "0.2")
    exporter = start_ig(
        *command,
        f"--kubernetes={town.kubeconfig}",
        environment={"DOCKER_HOST": engine.socket},
    )
    url = exporter.stderr.partition("serving ")[2].split()[0]
    engine.connect(town.client, SERVICE, PORT, "--count", 5)
    engine.connect(town.client, town.address, 9, "--count", 3)

    def counted(destination: str, port: int) -> list[str]:
        labels = f'destination="{destination}",port="{port}"'
        lines = [each for each in read(url).splitlines() if labels in each]
        return [each.split()[-1] for each in lines if "ig_tcp_connects_total" in each]

    until(lambda: counted("s/shop/db", PORT) == ["5"], "the Service in the metrics")
    until(lambda: counted("p/shop/db-0", 9) == ["3"], "the pod in the metrics")


def test_kubernetes_names_what_comes_after_the_api_has_come_back(
    ig: Start, engine: Engine, town: Town, tmp_path: Path
) -> None:
    # Those of a user: they are read again after the privileges have been dropped.
    for path in (tmp_path, *tmp_path.glob("*")):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)
    town.cluster.close()
    only = ("-c", town.client.name)
    tracer = ig("trace", "tcpconnect", *only, f"--kubernetes={town.kubeconfig}")
    engine.connect(town.client, town.address, town.port)
    tracer.wait_for(lambda event: far_end(event) == RAW)
    tracer.says("the Kubernetes API does not answer at https://127.0.0.1:")
    again = FakeCluster(tmp_path, town.cluster.port)
    try:
        again.put("pods", pod("db-0", town.address))
        tracer.says("the Kubernetes API answers again")
        engine.connect(town.client, town.address, town.port)
        tracer.wait_for(lambda event: far_end(event) == FAR)
    finally:
        again.close()
    assert tracer.stop()[2] == 0


def test_kubernetes_api_that_hangs_delays_no_start_and_no_event(
    start_ig: Start, cluster: FakeCluster, namespace: Namespace
) -> None:
    cluster.hangs = True
    only = ("--host", "-o", "json", "-F", f"netns=={namespace.inode}")
    tracer = start_ig("trace", "tcpconnect", *only, f"--kubernetes={cluster.kubeconfig()}")
    namespace.connect("127.0.0.1", 9)
    tracer.wait_for(lambda _: True)
    _, said, code = tracer.stop()
    assert "the Kubernetes API has not answered yet at https://127.0.0.1:" in said
    assert code == 0


ENDLESS = {
    "objects": (b'\r\n{"items":[', b'{"metadata":{"uid":"x"}},' * 9999),
    "an object": (b'\r\n{"items":[', b'{"metadata":"' + b"a" * 65536),
    "pages": (b'\r\n{"metadata":{"continue":"x","resourceVersion":"1"},"items":[]', b" " * 9999),
}


@pytest.mark.parametrize("answer", ENDLESS)
def test_kubernetes_api_that_answers_without_end_takes_no_memory(
    cluster: FakeCluster, answer: str
) -> None:
    beginning, piece = ENDLESS[answer]
    cluster.answer = forever(BEGINNING + beginning, piece)
    option = f"--kubernetes={cluster.kubeconfig()}"
    assert most_memory("trace", "tcpconnect", "-t", "2", option) < MOST_MEMORY


def test_doctor_says_which_kubernetes_credentials_it_finds(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("{}")
    done = subprocess.run(
        [str(IG), "doctor", "-o", "jsonl"],
        env={**os.environ, "KUBECONFIG": f"{tmp_path}/config"},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    (row,) = (each for each in map(json.loads, done.stdout.splitlines()) if "Kube" in each["check"])
    assert row["result"] == "no"
    assert f"{tmp_path}/config. It has no current context." in row["found"]


def test_kubernetes_without_credentials_is_an_error(tmp_path: Path) -> None:
    for option in ("--kubernetes", f"--kubernetes={tmp_path}/none"):
        done = subprocess.run(
            [str(IG), "trace", "tcpconnect", option],
            env={**os.environ, "HOME": str(tmp_path), "KUBECONFIG": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 1
        assert "Kubernetes credentials" in done.stderr
