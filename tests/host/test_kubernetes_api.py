"""`--kubernetes` with a real kube-apiserver: what it lists, watches, forgets and forbids."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ig.ends import shown_end
from ig.kubernetes.cluster import Cluster
from ig.kubernetes.credentials import Credentials
from tests.host.apiserver import ApiServer
from tests.host.namespace import Namespace
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE, until

pytestmark = [pytest.mark.anywhere, pytest.mark.needs("kube-apiserver")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    served = ApiServer(tmp_path)
    yield served
    served.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def follow(said: list[str]) -> Iterator[Callable[[Path], Cluster]]:
    started: list[Cluster] = []

    def start(kubeconfig: Path) -> Cluster:
        credentials = Credentials((str(kubeconfig),))
        started.append(Cluster(credentials, credentials.access(), said.append))
        started[-1].start()
        started[-1].wait_synced(PATIENCE)
        return started[-1]

    yield start
    for each in started:
        each.close()


def far(cluster: Cluster, address: str, port: int = 80) -> str:
    found = cluster.find(address, port, time.time_ns(), True)
    return shown_end(found) if found else ""


def test_real_api_has_its_pods_and_services_named(
    server: ApiServer, follow: Callable[[Path], Cluster], said: list[str]
) -> None:
    server.put_pod("web", "203.0.113.7")
    address = server.put_service("db", 5432)
    cluster = follow(server.kubeconfig())
    assert (far(cluster, "203.0.113.7"), far(cluster, address, 5432)) == ("p/shop/web", "s/shop/db")
    assert far(cluster, address, 5433) == ""
    until(lambda: far(cluster, "198.18.8.1", 443) == "s/default/kubernetes", "the API's own")
    server.put_pod("api", "203.0.113.8")
    until(lambda: far(cluster, "203.0.113.8") == "p/shop/api", "the pod that came")
    server.delete_pod("web")
    until(lambda: not far(cluster, "203.0.113.7"), "the end of the pod that went")
    server.stop()
    until(lambda: said, "the report of the loss")
    server.start()
    server.put_pod("web", "203.0.113.9")
    until(lambda: far(cluster, "203.0.113.9") == "p/shop/web", "the pod that came again")
    until(lambda: len(said) == 2, "the report of the return")
    assert said[1] == f"the Kubernetes API answers again at {server.url}"


def test_real_api_forbids_what_no_role_allows(
    server: ApiServer, follow: Callable[[Path], Cluster], said: list[str]
) -> None:
    follow(server.kubeconfig("nobody"))
    until(lambda: len(said) == 2, "both refusals")
    for kind, line in zip(("pods", "services"), sorted(said), strict=True):
        assert f'HTTP 403: {kind} is forbidden: User "nobody" cannot list resource' in line


def test_real_api_names_the_far_end_of_a_connect(
    server: ApiServer, start_ig: Callable[..., Tracer], namespace: Namespace
) -> None:
    here = Namespace.of(os.getpid())
    _, address = here.link(namespace, "203.0.113")
    port = namespace.serve(address)
    server.put_pod("db-0", address)
    only = ("--host", "-F", f"dst.addr=={address}", "-o", "json")
    tracer = start_ig("trace", "tcpconnect", *only, f"--kubernetes={server.kubeconfig()}")
    here.connect(address, port)
    (event,) = tracer.wait_for(lambda _: True)
    assert (event["dst"]["kind"], event["dst"]["name"]) == ("pod", "db-0")
    assert tracer.stop()[1:] == ("", 0)
