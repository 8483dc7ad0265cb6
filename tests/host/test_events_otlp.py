"""Events as log records of a real OpenTelemetry Collector: counts, names and attributes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.host.collector import Collector
from tests.host.engine import Engine
from tests.host.fake_cluster import certificate
from tests.host.namespace import Namespace
from tests.host.prometheus import read
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE, until

pytestmark = pytest.mark.anywhere

Start = Callable[..., Tracer]
NEEDED = pytest.mark.needs("OpenTelemetry Collector")
NOT_SENT = "not sent to the OpenTelemetry Collector (upper bound)"
LOST = {"type": "lost"}
NOBODY = 65534


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    made = Collector(tmp_path)
    yield made
    made.close()


def target(collector: Collector, protocol: str) -> tuple[str, ...]:
    """Return the arguments that name the collector, by a protocol."""
    url = collector.grpc if protocol == "grpc" else collector.url
    return ("--otlp", url, "--otlp-protocol", protocol)


def of(command: str, namespace: Namespace) -> tuple[str, ...]:
    """Return the arguments of a trace of what is done in a namespace."""
    return ("trace", command, "--host", "-F", f"netns=={namespace.inode}")


def chosen(collector: Collector, wanted: dict[str, str]) -> list[tuple[Any, dict[str, str]]]:
    """Return the records that have those attributes."""
    return [each for each in collector.records() if wanted.items() <= each[1].items()]


def moments(collector: Collector, wanted: dict[str, str]) -> int:
    """Return how many different records there are: one that is sent again counts once."""
    found = chosen(collector, wanted)
    return len({(record["timeUnixNano"], *sorted(each.items())) for record, each in found})


@NEEDED
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_events_of_export_are_log_records_and_its_metrics_have_the_same_counts(
    start_ig: Start, engine: Engine, collector: Collector, protocol: str
) -> None:
    collector.start()
    web, (db, port) = engine.idle("web"), engine.serve("db")
    exporter = start_ig(
        *("export", *target(collector, protocol), "--events", "--interval", "0.2", "-r", "docker"),
        environment={"DOCKER_HOST": engine.socket, "OTEL_METRIC_EXPORT_INTERVAL": "200"},
    )
    began = time.time_ns()
    engine.connect(web, db.address, port, "--count", 13)
    engine.connect(web, db.address, 9, "--count", 7)
    near = {"container.name": web.name, "ig.destination": f"c/{db.name}"}
    until(lambda: len(chosen(collector, near)) >= 20, "the records")
    found = chosen(collector, near)
    assert Counter(
        (record["eventName"], record["severityText"], str(record["severityNumber"]))
        for record, _ in found
    ) == {("ig.tcp.connect", "INFO", "9"): 13, ("ig.tcp.connect", "WARN", "13"): 7}
    for record, attributes in found:
        refused = record["severityText"] == "WARN"
        assert began < int(record["timeUnixNano"]) < time.time_ns()
        assert not record.get("body")
        assert (
            attributes.items()
            >= {
                "container.id": web.id,
                "container.runtime.name": "docker",
                "network.transport": "tcp",
                "network.type": "ipv4",
                "network.local.address": web.address,
                "network.peer.address": db.address,
                "network.peer.port": str(9 if refused else port),
                "ig.outcome": "refused" if refused else "established",
                "process.real_user.id": "0",
            }.items()
        )
        assert int(attributes["process.pid"]) > 1
        assert 0 < float(attributes["ig.latency"]) < PATIENCE
        assert attributes.get("error.type") == ("refused" if refused else None)

    def counts() -> Counter[str]:
        points = collector.points("ig.tcp.connections")
        series = ((dict(key), each) for key, each in points.items())
        return Counter(
            {
                key["ig.outcome"]: int(each["asInt"])
                for key, each in series
                if near.items() <= key.items()
            }
        )

    until(lambda: counts().total() >= 20, "the counts")
    assert counts() == {"established": 13, "refused": 7}
    lost = collector.points("ig.events.lost")
    assert dict(lost[("ig.cause", NOT_SENT),])["asInt"] == "0"
    assert {each["service.name"] for each in collector.resources()} == {"ig"}
    assert exporter.stop(signal.SIGTERM)[1:] == ("", 0)


@pytest.mark.interrupts
@NEEDED
@pytest.mark.parametrize("more", [(), ("--events",), ("--events", "--bytes", "--why")])
def test_events_change_no_number_of_segments_that_are_sent_again(
    start_ig: Start, namespace: Namespace, collector: Collector, more: tuple[str, ...]
) -> None:
    collector.start()
    near, far = "10.239.19.8", "10.239.19.7"
    for address in (near, far):
        namespace.ip("addr", "add", f"{address}/32", "dev", "lo")
    namespace.ip("link", "set", "lo", "mtu", 1500)
    exporter = start_ig(
        *("export", *target(collector, "http/protobuf"), "--host", "--interval", "0.2", *more),
        *("--cidr", f"near={near}/32", "--cidr", f"far={far}/32"),
        environment={"OTEL_METRIC_EXPORT_INTERVAL": "200"},
    )
    (done,) = namespace.start("resend", near, far, 5432).finished()

    def counts() -> dict[tuple[str, ...], int]:
        points = collector.points("ig.tcp.retransmits").items()
        series = ((dict(key), int(each["asInt"])) for key, each in points)
        names = ("ig.destination", "server.port", "ig.retransmit.kind")
        return {
            tuple(key.get(name, "") for name in names): count
            for key, count in series
            if key["ig.destination"] in ("near", "far")
        }

    with suppress(TimeoutError):  # what is missing is told below
        until(lambda: sum(counts().values()) >= done["total"], "the counts")
    assert counts() == {
        ("far", "5432", "syn"): done["syn"],
        ("near", "5432", "syn-ack"): done["syn-ack"],
        ("far", "5432", "data"): done["near"],
        ("near", "5432", "data"): done["far"],
        ("near", "", "data"): done["unknown"],
    }
    handshakes = collector.points("ig.tcp.handshake.duration").items()
    assert (
        sum(int(each["count"]) for key, each in handshakes if dict(key)["ig.destination"] == "far")
        == 3
    )
    records = [each for each in collector.records() if each[1]["ig.destination"] == "far"]
    assert sum(each["eventName"] == "ig.tcp.connect" for each, _ in records) == 3 * bool(more)
    assert exporter.stop(signal.SIGTERM)[1:] == ("", 0)


@NEEDED
def test_events_with_causes_have_them_and_so_have_the_metrics(
    start_ig: Start, namespace: Namespace, collector: Collector
) -> None:
    collector.start()
    namespace.ip("route", "add", "prohibit", "10.239.17.0/24")
    exporter = start_ig(
        *("export", *target(collector, "http/protobuf"), "--events", "--why", "--host"),
        *("--interval", "0.2", "--cidr", "lab=10.239.17.0/24"),
        environment={"OTEL_METRIC_EXPORT_INTERVAL": "200"},
    )
    namespace.connect("10.239.17.7", 443, "--count", 5)
    lab = {"ig.destination": "lab", "ig.cause.kind": "route", "server.port": "443"}
    until(lambda: len(chosen(collector, {"ig.destination": "lab"})) >= 5, "the records")
    for _, attributes in chosen(collector, {"ig.destination": "lab"}):
        assert (attributes["ig.cause.kind"], attributes["ig.cause.confidence"]) == ("route", "seen")
        assert "prohibit" in attributes["ig.cause.detail"]

    def counts() -> dict[tuple[tuple[str, str], ...], int]:
        points = collector.points("ig.tcp.connection.failures").items()
        return {key: int(each["asInt"]) for key, each in points if dict(key) == lab}

    until(lambda: counts() == {tuple(sorted(lab.items())): 5}, "the counts")
    assert exporter.stop(signal.SIGTERM)[2] == 0


@NEEDED
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_events_of_traces_are_printed_and_log_records(
    start_ig: Start, namespace: Namespace, collector: Collector, protocol: str
) -> None:
    collector.start()
    mine = {"ig.netns": str(namespace.inode)}
    tracer = start_ig(*of("tcp", namespace), "-o", "json", *target(collector, protocol))
    port = namespace.serve("127.0.0.1")
    namespace.connect("127.0.0.1", port, "--count", 5)
    tracer.wait_for(lambda _: True, 20)
    until(lambda: len(chosen(collector, mine)) >= 20, "the records")
    printed = tracer.events
    assert Counter(f"ig.tcp.{event['type']}" for event in printed) == Counter(
        record["eventName"] for record, _ in chosen(collector, mine)
    )
    assert {event["timestamp_raw"] for event in printed} == {
        int(record["timeUnixNano"]) for record, _ in chosen(collector, mine)
    }
    assert tracer.stop()[1:] == ("", 0)


@NEEDED
def test_events_of_binds_and_retransmissions_have_names_of_their_own(
    start_ig: Start, namespace: Namespace, collector: Collector
) -> None:
    collector.start()
    binds = start_ig("trace", "bind", "--host", *target(collector, "http/protobuf"))
    repeats = start_ig(*of("tcpretrans", namespace), *target(collector, "http/protobuf"))
    port = namespace.serve("127.0.0.1")
    ports = namespace.start("losses", "127.0.0.1").reports.ready()
    bound = {"network.local.port": str(port), "network.transport": "tcp"}
    until(lambda: chosen(collector, bound), "the bind")
    ((record, attributes),) = chosen(collector, bound)
    assert record["eventName"] == "ig.socket.bind"
    assert attributes["network.local.address"] == "127.0.0.1"
    sent = {"network.peer.port": str(ports["broken"]), "ig.netns": str(namespace.inode)}
    until(lambda: chosen(collector, sent), "the retransmission")
    for record, attributes in chosen(collector, sent):
        assert record["eventName"] == "ig.tcp.retransmit"
        assert (attributes["ig.type"], record["severityText"]) == ("data", "INFO")
        assert attributes["network.connection.state"] == "established"
    for tracer in (binds, repeats):
        assert tracer.stop()[2] == 0


@NEEDED
def test_events_of_while_the_collector_is_gone_come_when_it_is_back(
    start_ig: Start, namespace: Namespace, collector: Collector
) -> None:
    environment = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    arguments = ("-L", *target(collector, "http/protobuf"))
    collector.start()
    tracer = start_ig(*of("tcpconnect", namespace), *arguments, environment=environment)
    mine = {"ig.netns": str(namespace.inode)}
    namespace.connect("127.0.0.1", 9, "--count", 5)
    until(lambda: moments(collector, mine) == 5, "the first records")
    collector.stop()
    namespace.connect("127.0.0.1", 9, "--count", 11)
    tracer.says("warning: events cannot be sent to")
    collector.start()
    until(lambda: moments(collector, mine) == 16, "the records of meanwhile")
    tracer.says("again\n")
    namespace.connect("127.0.0.1", 9, "--count", 3)
    _, stderr, code = tracer.stop()  # what it has not sent is sent at the end
    assert code == 0
    assert "lost" not in stderr
    until(lambda: moments(collector, mine) == 19, "the last records")


@NEEDED
def test_events_beyond_the_queue_are_counted_and_all_others_are_sent(
    start_ig: Start, namespace: Namespace, collector: Collector
) -> None:
    exporter = start_ig(
        *("export", *target(collector, "http/protobuf"), "--events", "--host", "--interval", "0.2"),
        *("--prometheus", "127.0.0.1:0", "--cidr", "lab=10.239.17.0/24"),
        environment={"OTEL_BLRP_MAX_QUEUE_SIZE": "512", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"},
    )
    match = re.search(r"serving (\S+)", exporter.stderr)
    assert match
    namespace.ip("addr", "add", "10.239.17.7/32", "dev", "lo")
    namespace.connect("10.239.17.7", 9, "--count", 1021)

    def value(pattern: str) -> int:
        found = re.search(rf"^{pattern} (\d+)$", read(match[1]), re.MULTILINE)
        return int(found[1]) if found else 0

    connects = r'ig_tcp_connects_total\{.*destination="lab".*outcome="refused"\}'
    until(lambda: value(connects) == 1021, "the counts")
    lost = re.escape(f'ig_events_lost_total{{cause="{NOT_SENT}"}}')
    until(lambda: value(lost) >= 509, "the number of those that are lost")
    exporter.says(f"events lost so far: {NOT_SENT}")
    exporter.says("warning: events cannot be sent to")
    collector.start()
    exporter.says("again\n")
    assert exporter.stop(signal.SIGTERM)[2] == 0
    points = collector.points("ig.tcp.connections").values()
    counted = sum(int(each["asInt"]) for each in points)  # of whoever is on this host, too
    missing = int(collector.points("ig.events.lost")[("ig.cause", NOT_SENT),]["asInt"])
    assert counted - missing == moments(collector, {}) >= 1


@contextmanager
def bad_endpoint(kind: str) -> Iterator[str]:
    """Yield the URL of what refuses, or takes connections and answers nothing or garbage."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if kind == "refuses":
            listener.close()
        yield url


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_events_are_printed_and_counted_as_lost_where_nothing_takes_them(
    start_ig: Start, namespace: Namespace, protocol: str, kind: str
) -> None:
    with bad_endpoint(kind) as url:
        tracer = start_ig(
            *(*of("tcpconnect", namespace), "-L", "-o", "json"),
            *("--otlp", url, "--otlp-protocol", protocol),
            environment={"OTEL_EXPORTER_OTLP_TIMEOUT": "1"},
        )
        namespace.connect("127.0.0.1", 9, "--count", 7)
        tracer.wait_for(lambda _: True, 7)
        tracer.says("warning: events cannot be sent to")
        events, stderr, code = tracer.stop()
    assert code == 0, stderr
    assert len(events) == 7
    assert json.loads(stderr.splitlines()[-1]) == LOST | {"count": 7, "causes": {NOT_SENT: 7}}


def test_events_are_kept_where_garbage_is_answered(start_ig: Start, namespace: Namespace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        arguments = ("-L", "-o", "json", "--otlp", url)
        environment = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        tracer = start_ig(*of("tcpconnect", namespace), *arguments, environment=environment)
        namespace.connect("127.0.0.1", 9, "--count", 3)
        tracer.wait_for(lambda _: True, 3)
        connection, _ = listener.accept()
        connection.sendall(b"\0\xff garbage\r\n\r\n" * 3)
        tracer.says("warning: events cannot be sent to")
        events, stderr, code = tracer.stop(signal.SIGTERM)
        connection.close()
    assert code == 0, stderr
    assert len(events) == 3
    assert json.loads(stderr.splitlines()[-1]) == LOST | {"count": 3, "causes": {NOT_SENT: 3}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trace", "bind", "--otlp", "127.0.0.1:4318"), "Invalid URL"),
        (("trace", "bind", "--otlp-protocol", "grpc"), "--otlp-protocol needs --otlp"),
        (("trace", "tcp", "--otlp", "http://[::1]:1", "--otlp-protocol", "x"), "Known protocols"),
        (("trace", "tcp", "--otlp", "http://[::1]:1", "--summary"), "mutually exclusive"),
        (("export", "--prometheus", "127.0.0.1:0", "--events"), "--events needs --otlp"),
    ],
)
def test_command_lines_that_cannot_send_are_refused(
    start_ig: Start, arguments: tuple[str, ...], message: str
) -> None:
    events, stderr, code = start_ig(*arguments, ready=False).finished()
    assert (events, code) == ([], 2)
    assert message in stderr


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_events_are_sent_with_certificates_of_another_user(
    start_ig: Start, namespace: Namespace, tmp_path: Path, protocol: str
) -> None:
    authority, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    # They are read after the privileges have been dropped.
    for path in (tmp_path, authority):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        tracer = start_ig(
            *(*of("tcpconnect", namespace), "-r", "docker"),
            *("--otlp", url, "--otlp-protocol", protocol),
            environment={
                "DOCKER_HOST": "tcp://127.0.0.1:9",  # no socket that a capability is kept for
                "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority),
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
                "REQUESTS_CA_BUNDLE": "/dev/null",
            },
        )
        namespace.connect("127.0.0.1", 9)
        connected, _ = listener.accept()
        connected.settimeout(PATIENCE)
        # The handshake ends only where the other end has accepted the certificate.
        with context.wrap_socket(connected, server_side=True) as secured:
            begun = secured.recv(65536)
        assert begun.startswith(b"PRI" if protocol == "grpc" else b"POST /v1/logs")
        assert tracer.stop()[2] == 0
