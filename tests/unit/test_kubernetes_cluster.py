"""Pods and Services of an API server that changes, forgets, refuses, hangs and answers nonsense."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ig.container import Container
from ig.ends import shown_end
from ig.kubernetes import api, credentials
from ig.kubernetes.cluster import Cluster, of
from ig.kubernetes.credentials import Credentials
from tests.host.fake_cluster import FakeCluster, pod, service
from tests.host.waiting import PATIENCE, until

Start = Callable[..., Cluster]
NOW = 1 << 62
"""A moment after all others."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeCluster]:
    cluster = FakeCluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def start(server: FakeCluster, said: list[str]) -> Iterator[Start]:
    """Follow the server, and wait until it was asked once."""
    started: list[Cluster] = []

    def begin(path: Path | None = None, **options: int) -> Cluster:
        found = Credentials((str(path or server.kubeconfig()),))
        started.append(Cluster(found, found.access(), said.append, **options))
        started[-1].start()
        started[-1].wait_synced(PATIENCE)
        assert not started[-1].pending
        return started[-1]

    yield begin
    for each in started:
        each.close()


@pytest.fixture
def said() -> list[str]:
    return []


def name(found: Container | None) -> str:
    return shown_end(found) if found else ""


def far(
    cluster: Cluster, address: str, port: int = 80, moment: int = NOW, outgoing: bool = False
) -> str:
    return name(cluster.find(address, port, moment, outgoing))


def test_addresses_of_pods_are_named_and_follow_them(server: FakeCluster, start: Start) -> None:
    server.put("pods", pod("web", "10.9.0.1", "2001:db8::1"), pod("starting"))
    cluster = start()
    assert far(cluster, "10.9.0.1", 4321) == far(cluster, "2001:db8::1") == "p/shop/web"
    server.put("pods", pod("starting", "10.9.0.2"))
    until(lambda: far(cluster, "10.9.0.2") == "p/shop/starting", "the new address")
    server.put("pods", pod("starting", "10.9.0.3"))
    until(lambda: far(cluster, "10.9.0.3") == "p/shop/starting", "the other address")
    server.delete("pods", "web")
    until(lambda: not far(cluster, "10.9.0.1"), "the end of a pod")
    assert not far(cluster, "10.9.0.2")


def test_addresses_of_pods_on_the_hosts_network_and_of_ended_ones_are_not_theirs(
    server: FakeCluster, start: Start
) -> None:
    ended = {"phase": "Succeeded"}
    server.put(
        "pods",
        pod("proxy", "10.9.0.1", hostNetwork=True),
        pod("static", "10.9.0.1", hostIP="10.9.0.1"),
        pod("job", "10.9.0.2"),
        pod("last", "10.9.0.9"),
    )
    server.put("pods", pod("job", "10.9.0.2", **ended))
    cluster = start()
    assert [far(cluster, f"10.9.0.{last}") for last in (1, 2, 9)] == ["", "", "p/shop/last"]
    server.put("pods", pod("last", "10.9.0.9", **ended), pod("next", "10.9.0.9"))
    until(lambda: far(cluster, "10.9.0.9") == "p/shop/next", "the next pod with the address")


def test_address_is_named_by_the_time_of_the_event(server: FakeCluster, start: Start) -> None:
    server.put("pods", pod("first", "10.9.0.1", startTime="2026-01-01T00:00:00Z"))
    cluster = start()
    before = time.time_ns()
    server.put("pods", pod("first", "10.9.0.1", phase="Failed"))
    server.put("pods", pod("second", "10.9.0.1"), pod("mark", "10.9.0.2"))
    until(lambda: far(cluster, "10.9.0.2") == "p/shop/mark", "the changes")
    assert far(cluster, "10.9.0.1", moment=time.time_ns()) == "p/shop/second"
    # Both say that they had it then: the second began before the end of the first was known.
    assert far(cluster, "10.9.0.1", moment=before) == ""


def test_address_that_two_pods_claim_is_nobodys(server: FakeCluster, start: Start) -> None:
    server.put("pods", pod("one", "10.9.0.1"), pod("two", "10.9.0.1"), pod("three", "10.9.0.3"))
    cluster = start()
    assert (far(cluster, "10.9.0.1"), far(cluster, "10.9.0.3")) == ("", "p/shop/three")


def test_service_is_named_by_its_addresses_and_ports_alone(
    server: FakeCluster, start: Start
) -> None:
    server.put(
        "services",
        service("db", "10.8.0.1", 5432, 5433),
        service("headless", "None", 80),
        service("edge", "10.8.0.2", 443, ingress=["198.51.100.7"], externalIPs=["198.51.100.8"]),
        service("nodes", "10.8.0.3", 80, type="NodePort"),
    )
    cluster = start()
    assert [far(cluster, "10.8.0.1", port) for port in (5432, 5433, 80, 0)] == [
        *["s/shop/db"] * 2,
        *[""] * 2,
    ]
    for address in ("198.51.100.7", "198.51.100.8"):
        assert far(cluster, address, 443, outgoing=True) == "s/shop/edge"
        assert far(cluster, address, 443) == ""  # a host with that address may have connected
    server.put("services", service("db", "10.8.0.1", 5433))
    until(lambda: not far(cluster, "10.8.0.1", 5432), "the end of a port")
    assert far(cluster, "10.8.0.1", 5433) == "s/shop/db"


def test_names_that_the_api_does_not_allow_are_left_out(server: FakeCluster, start: Start) -> None:
    server.put("pods", pod("a/b", "10.9.0.1"), pod("\x1b[31m", "10.9.0.2"), pod("web", "10.9.0.3"))
    server.put("pods", pod("loopback", "127.0.0.1"), pod("any", "0.0.0.0"), pod("x", "nonsense"))
    cluster = start()
    assert [far(cluster, f"10.9.0.{last}") for last in (1, 2, 3)] == ["", "", "p/shop/web"]
    assert far(cluster, "127.0.0.1") == far(cluster, "0.0.0.0") == ""


def watched(server: FakeCluster, kind: str = "pods") -> list[dict[str, str]]:
    return [query for of, query in server.requests if of == kind]


def test_watch_that_ends_goes_on_from_the_last_version(
    server: FakeCluster, start: Start, said: list[str]
) -> None:
    server.put("pods", pod("web", "10.9.0.1"))
    cluster = start()
    until(lambda: len(watched(server)) == 2, "the first watch")
    server.bookmark("pods")
    server.end_watches()
    until(lambda: len(watched(server)) == 3, "another watch")
    server.put("pods", pod("api", "10.9.0.2"))
    until(lambda: far(cluster, "10.9.0.2") == "p/shop/api", "the change that came meanwhile")
    assert [query.get("resourceVersion") for query in watched(server)] == ["0", "1001", "1002"]
    assert said == []


def test_version_that_the_api_has_forgotten_has_all_listed_again_in_pages(
    server: FakeCluster, start: Start, said: list[str]
) -> None:
    server.put("pods", *(pod(f"web-{last}", f"10.9.0.{last}") for last in range(1, 6)))
    cluster = start()
    server.forget()
    server.delete("pods", "web-3")
    server.forget()
    server.end_watches()
    until(lambda: not far(cluster, "10.9.0.3"), "the end of a pod that no watch has reported")
    assert [far(cluster, f"10.9.0.{last}") for last in (1, 5)] == ["p/shop/web-1", "p/shop/web-5"]
    assert [query["continue"] for query in watched(server) if "continue" in query] == ["2"]
    assert said == []


def test_api_that_is_gone_is_reported_once_and_again_when_it_works(
    server: FakeCluster, start: Start, said: list[str], tmp_path: Path
) -> None:
    server.put("pods", pod("web", "10.9.0.1"))
    cluster = start()
    server.close()
    until(lambda: said, "the report of the loss")
    assert far(cluster, "10.9.0.1") == "p/shop/web"
    other = FakeCluster(tmp_path, server.port)
    try:
        other.put("pods", pod("web", "10.9.0.1"), pod("api", "10.9.0.2"))
        until(lambda: far(cluster, "10.9.0.2") == "p/shop/api", "the new pod")
        until(lambda: len(said) > 1, "the report of the return")
    finally:
        other.close()
    assert "the Kubernetes API does not answer at https://127.0.0.1:" in said[0]
    assert said[1:] == [f"the Kubernetes API answers again at {server.url}"]


def test_names_that_could_not_be_confirmed_for_long_are_dropped_and_listed_again(
    server: FakeCluster, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("api", "cluster"):
        monkeypatch.setattr(f"ig.kubernetes.{module}.KEPT", 0.0)
    server.put("pods", pod("web", "10.9.0.1"))
    cluster = start()
    server.tokens = {"second"}
    server.end_watches()
    until(lambda: not far(cluster, "10.9.0.1"), "the end of the names")
    server.tokens = {"first"}
    until(lambda: far(cluster, "10.9.0.1") == "p/shop/web", "the names again")


def test_token_that_is_replaced_is_read_again(
    server: FakeCluster, start: Start, said: list[str]
) -> None:
    server.put("pods", pod("web", "10.9.0.1"))
    cluster = start()
    server.tokens = {"second"}
    server.end_watches()
    until(lambda: said, "the refusal")
    server.kubeconfig("second")
    server.put("pods", pod("api", "10.9.0.2"))
    until(lambda: far(cluster, "10.9.0.2") == "p/shop/api", "the change that came meanwhile")
    until(lambda: len(said) > 1, "the report of the return")
    assert "refuses the credentials" in said[0]
    assert "HTTP 401: Unauthorized" in said[0]
    assert len(said) == 2


def test_service_account_of_a_pod_is_what_the_api_is_asked_with(
    server: FakeCluster, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("pods", pod("web", "10.9.0.1"))
    account = tmp_path / "account"
    account.mkdir()
    (account / "ca.crt").write_bytes((tmp_path / "server.crt").read_bytes())
    (account / "token").write_text("first")
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", str(account))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    cluster = of(credentials.find(credentials.AUTO), said.append)
    cluster.start()
    try:
        cluster.wait_synced(PATIENCE)
        assert far(cluster, "10.9.0.1") == "p/shop/web"
    finally:
        cluster.close()
    assert said == []


def test_api_that_forbids_services_names_pods(
    server: FakeCluster, start: Start, said: list[str]
) -> None:
    server.forbidden = {"services"}
    server.put("pods", pod("web", "10.9.0.1"))
    cluster = start()
    assert far(cluster, "10.9.0.1") == "p/shop/web"
    assert len(said) == 1
    assert "does not allow to list and watch services (HTTP 403: services is forbidden" in said[0]


def test_api_that_hangs_is_reported_and_waited_for_no_longer_than_asked(
    server: FakeCluster, start: Start, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hangs = True
    cluster = of(Credentials((str(server.kubeconfig()),)), said.append)
    cluster.start()
    cluster.wait_synced(0.01)
    assert cluster.pending
    assert said == []
    cluster.close()
    monkeypatch.setattr(api, "TIMEOUT", 0.2)
    start()
    assert "timed out" in said[0]


ANSWERS = {
    "nothing": b"",
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "no JSON": b"HTTP/1.1 200 OK\r\n\r\n<html>",
    "half": b'HTTP/1.1 200 OK\r\n\r\n{"items":[{"metadata":',
    "an array": b"HTTP/1.1 200 OK\r\n\r\n[]",
    "no version": b'HTTP/1.1 200 OK\r\n\r\n{"items":[]}',
    "other types": b'HTTP/1.1 200 OK\r\n\r\n{"items":[7,null,{"metadata":[]}],"metadata":"x"}',
    "depth": b"HTTP/1.1 200 OK\r\n\r\n" + b'{"items":' + b"[" * 100_000,
    "another place": b"HTTP/1.1 302 Go\r\nLocation: http://192.0.2.1/\r\n\r\n",
    "an error": b"HTTP/1.1 500 Oh\r\n\r\n\x1b[31m",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_api_that_answers_nonsense_costs_names_alone(
    server: FakeCluster, start: Start, said: list[str], answer: str
) -> None:
    server.answer = lambda: [ANSWERS[answer]]
    start()
    assert len(said) == 1
    assert said[0].startswith("the Kubernetes API ")
    assert said[0].isprintable()


def test_watch_with_nonsense_is_reported_and_followed_again(
    server: FakeCluster, start: Start, said: list[str]
) -> None:
    server.put("pods", pod("web", "10.9.0.1"))
    cluster = start()
    server.answer = lambda: [b"HTTP/1.1 200 OK\r\n\r\nno JSON\n"]
    server.end_watches()
    until(lambda: said, "the report")
    server.answer = None
    server.put("pods", pod("api", "10.9.0.2"))
    until(lambda: far(cluster, "10.9.0.2") == "p/shop/api", "the change that came meanwhile")
    until(lambda: said[-1].startswith("the Kubernetes API answers again"), "the return")


def test_objects_beyond_the_limit_are_counted_and_reported(
    server: FakeCluster, start: Start, said: list[str]
) -> None:
    server.put("pods", *(pod(f"web-{last}", f"10.9.0.{last}") for last in range(1, 8)))
    cluster = start(most=4)
    named = [last for last in range(1, 8) if far(cluster, f"10.9.0.{last}")]
    assert len(named) == 4
    assert [line for line in said if "at most 4 have names, 3 have none" in line] == said
    assert len(said) == 1
    server.delete("pods", f"web-{named[0]}")
    until(lambda: not far(cluster, f"10.9.0.{named[0]}"), "the end of a pod")
    server.put("pods", pod("late", "10.9.0.99"))
    until(lambda: far(cluster, "10.9.0.99") == "p/shop/late", "the pod that has room now")
