"""Far ends that records name, without a kernel or a runtime."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ig.container import HOST, Change, Cluster, Container
from ig.containers.peers import Peers
from ig.ends import shown_end
from ig.gadget import Batch
from ig.kubernetes.cluster import Cluster as KubernetesCluster
from ig.kubernetes.credentials import Credentials
from ig.kubernetes.objects import parse
from ig.summary import DIRECTIONS
from tests.host.fake_cluster import pod, service

WEB = Container("a" * 64, "web", "docker", running=True)
DB = Container("b" * 64, "db", "docker", running=True, addresses=("10.9.0.2",), netns=9)
HOST_NAMESPACE, NAMESPACE = 1, 7
Fields = Mapping[str, Sequence[Any]]
NOTHING: Fields = {}


class Runtimes:
    """Two containers; the network namespace of one is not reported."""

    cluster: Cluster | None = None

    def subscribe(self, on_change: Callable[[Change], None]) -> Callable[[], None]:
        for container in (WEB, DB):
            on_change(Change("exists", container))
        return lambda: None


def test_namespace_of_a_container_is_not_that_of_counts_without_room_for_their_keys() -> None:
    peers = Peers(Runtimes(), HOST_NAMESPACE)

    def far_end(netns: int) -> Container:
        fields: dict[str, Sequence[Any]] = {
            "timestamp": [time.time_ns()],
            "version": [4],
            "daddr": [socket.inet_aton("10.9.0.2") + bytes(12)],
            "dport": [80],
            "netns": [netns],
        }
        return peers.of_records(fields, [WEB])[0]

    far_end(0)
    assert far_end(NAMESPACE) is DB


def cluster(folder: Path) -> KubernetesCluster:
    """Return a cluster with a pod and a Service, which asks nobody."""
    config = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": "http://127.0.0.1:9"}}],
    }
    (folder / "config").write_text(json.dumps(config))
    credentials = Credentials((str(folder / "config"),))
    found = KubernetesCluster(credentials, credentials.access(), print)
    for kind, each in (
        ("pods", pod("api-0", "10.9.9.9")),
        ("pods", pod("db-0", "10.9.0.2")),
        ("services", service("db", "10.8.0.1", 5432, externalIPs=["198.51.100.7"])),
    ):
        parsed = parse(kind, each)
        assert parsed
        found.apply(kind, Change("exists", parsed))
    return found


def test_far_ends_that_no_runtime_knows_are_pods_and_services(tmp_path: Path) -> None:
    runtimes = Runtimes()
    runtimes.cluster = cluster(tmp_path)
    peers = Peers(runtimes, HOST_NAMESPACE)
    now = time.time_ns()

    def far_end(
        address: str, port: int = 80, netns: int = HOST_NAMESPACE, more: Fields = NOTHING
    ) -> str:
        fields: dict[str, Sequence[Any]] = {
            "timestamp": [now],
            "version": [4],
            "daddr": [socket.inet_aton(address) + bytes(12)],
            "dport": [port],
            "netns": [netns],
            **more,
        }
        return shown_end(peers.of_records(fields, [HOST])[0])

    outgoing, incoming = (
        {"direction": [DIRECTIONS.index(each)]} for each in ("outgoing", "incoming")
    )
    assert far_end("10.9.9.9") == "p/shop/api-0"
    assert far_end("10.9.0.2") == "c/db"  # as the runtime of this host has it
    assert far_end("10.9.9.9", netns=NAMESPACE) == ""
    assert (far_end("10.8.0.1", 5432), far_end("10.8.0.1")) == ("s/shop/db", "")
    assert far_end("198.51.100.7", 5432, more=outgoing) == "s/shop/db"
    assert far_end("198.51.100.7", 5432, more=incoming) == far_end("198.51.100.7", 5432) == ""
    times = {"min_time": [1], "max_time": [now]}  # it was not there at the first of these
    assert far_end("10.9.9.9", more=times) == ""


def test_far_ends_of_udp_are_services_by_their_own_addresses_alone(tmp_path: Path) -> None:
    runtimes = Runtimes()
    runtimes.cluster = cluster(tmp_path)
    peers = Peers(runtimes, HOST_NAMESPACE)

    def far_ends(proto: str) -> list[str]:
        ends = ["0.0.0.0", "198.51.100.7", "10.8.0.1", "10.9.9.9"]
        fields: dict[str, Sequence[Any]] = {
            "proto": ["TCP", *[proto] * 3],
            "daddr": ends,
            "dport": [0, *[5432] * 3],
            "saddr": ["192.0.2.1"] * 4,
            "sport": [22, 40001, 40002, 40003],
            "state_raw": [10, 1, 1, 1],
            "netns_id": [HOST_NAMESPACE] * 4,
            "shared": [False] * 4,
        }
        named = peers.with_peers(Batch(fields, [HOST] * 4)).fields["peer"]
        return [shown_end(each) for each in named[1:]]

    assert far_ends("TCP") == ["s/shop/db", "s/shop/db", "p/shop/api-0"]
    # For UDP, the address and port may be another Service's.
    assert far_ends("UDP") == ["", "s/shop/db", "p/shop/api-0"]
