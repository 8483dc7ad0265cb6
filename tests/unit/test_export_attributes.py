"""Events as log records: what they are called, and their attributes."""

from __future__ import annotations

from typing import Any

import pytest

from ig.attempts import OUTCOMES, TYPES
from ig.container import HOST, Container
from ig.errors import UsageError
from ig.export.attributes import Attributes
from ig.export.collector import LOGS, METRICS, parse_collector
from ig.gadget import Batch
from ig.gadgets import declared

DB = Container(id="d" * 64, name="db", runtime="docker", image="postgres:17")
POD = Container(
    id="f" * 64,
    name="k8s_app",
    runtime="containerd",
    pod_name="shop-0",
    pod_namespace="prod",
    pod_container="app",
    pod_uid="7-7",
)


def address(text: str) -> bytes:
    return bytes(map(int, text.split("."))).ljust(16, b"\0")


def attempt(owner: Container, **changes: Any) -> Batch:
    row: dict[str, Any] = dict.fromkeys(
        ("mntns", "netns", "gid", "uid", "update", "retransmits", "error", "latency", "waited"), 0
    )
    row |= dict.fromkeys(("comm", "pcomm", "parent_comm"), b"curl\x1b\0")
    row |= {"timestamp": 1, "pid": 7, "tid": 7, "parent_pid": 1, "cgroup": 1, "version": 4}
    row |= {"saddr": address("10.0.0.2"), "daddr": address("10.0.0.3"), "sport": 40000}
    row |= {"dport": 5432, "zone": bytes(16), "peer": DB, "type": TYPES.index("connect")}
    row |= {"outcome": OUTCOMES.index("established"), **changes}
    return Batch({name: [value] for name, value in row.items()}, [owner])


def test_attributes_of_an_attempt_are_those_of_the_conventions() -> None:
    attributes = Attributes(declared()["trace_tcpconnect"])
    batch = attempt(POD, outcome=OUTCOMES.index("timed-out"), error=110, waited=3 * 10**9)
    assert attributes.names(batch) == ["ig.tcp.connect"]
    assert attributes.of(batch) == [
        {
            "container.id": "f" * 64,
            "container.name": "k8s_app",
            "container.runtime.name": "containerd",
            "k8s.namespace.name": "prod",
            "k8s.pod.name": "shop-0",
            "k8s.pod.uid": "7-7",
            "k8s.container.name": "app",
            "network.transport": "tcp",
            "network.type": "ipv4",
            "network.local.address": "10.0.0.2",
            "network.local.port": 40000,
            "network.peer.address": "10.0.0.3",
            "network.peer.port": 5432,
            "process.pid": 7,
            "process.parent_pid": 1,
            "process.executable.name": "curl\\x1b",
            "process.real_user.id": 0,
            "thread.id": 7,
            "thread.name": "curl\\x1b",
            "ig.destination": "c/db",
            "ig.outcome": "timed-out",
            "ig.error": "ETIMEDOUT",
            "ig.waited": 3.0,
            "error.type": "timed_out",
        }
    ]


def test_attributes_of_what_was_established_have_no_error_and_the_host_no_container() -> None:
    attributes = Attributes(declared()["trace_tcpconnect"], lambda _, text: f"at {text}")
    (found,) = attributes.of(attempt(HOST, latency=250_000))
    assert (found["ig.latency"], found["ig.destination"]) == (0.00025, "at 10.0.0.3")
    assert not {"error.type", "container.name", "ig.error"} & found.keys()


@pytest.mark.parametrize(
    "name", ["trace_tcp", "trace_tcpconnect", "trace_bind", "trace_tcpretrans"]
)
def test_attributes_have_names_of_the_conventions_or_the_prefix(name: str) -> None:
    gadget = declared()[name]
    found = Attributes(gadget)
    known = ("network.", "process.", "thread.", "ig.")
    assert found._columns
    assert all(each.startswith(known) for each in found._columns)
    assert gadget.event.startswith("ig.")


def test_collector_by_the_command_line_comes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "http://127.0.0.1:4318/"
    assert parse_collector(url, None, LOGS).protocol == "http/protobuf"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert parse_collector(url, None, LOGS).protocol == "grpc"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf")
    assert parse_collector(url, None, METRICS).protocol == "http/protobuf"
    assert parse_collector(url, None, LOGS).protocol == "grpc"
    assert parse_collector(url, "http/protobuf", LOGS).protocol == "http/protobuf"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(UsageError, match="http/json"):
        parse_collector(url, None, LOGS)


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318", "https://collector", "http://[::1]:1/a/"])
def test_urls_of_collectors_are_kept(url: str) -> None:
    assert parse_collector(url, None, METRICS).url == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4318", "ftp://x", "http://", "http://x:y", "http://x:0", "http://[::1"]
)
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        parse_collector(url, None, METRICS)
