"""`ig export --otlp`, to a real OpenTelemetry Collector: counts, names and attributes."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.host.collector import Collector
from tests.host.engine import Engine
from tests.host.namespace import Namespace
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE, until

pytestmark = pytest.mark.anywhere

Start = Callable[..., Tracer]
NEEDED = pytest.mark.needs("OpenTelemetry Collector")


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    made = Collector(tmp_path)
    yield made
    made.close()


@pytest.fixture
def export(start_ig: Start, engine: Engine) -> Start:
    """Start an exporter that reads and sends its counts often."""

    def start(url: str, *arguments: object, **environment: str) -> Tracer:
        environment |= {"DOCKER_HOST": engine.socket}
        environment.setdefault("OTEL_METRIC_EXPORT_INTERVAL", "200")
        command = ("export", "--otlp", url, "--interval", "0.2", "-r", "docker", *arguments)
        return start_ig(*command, environment=environment)

    return start


def total(points: dict[Any, dict[str, Any]]) -> int:
    return sum(int(point["asInt"]) for point in points.values())


@NEEDED
def test_collector_has_exactly_the_counts_of_what_containers_did(
    export: Start, engine: Engine, collector: Collector
) -> None:
    collector.start()
    web, (db, port) = engine.idle("web"), engine.serve("db")
    exporter = export(collector.url, OTEL_RESOURCE_ATTRIBUTES="deployment.environment=lab")
    engine.connect(web, db.address, port, "--count", 13)
    engine.connect(web, db.address, 9, "--count", 7)
    near = {
        "container.name": web.name,
        "container.runtime.name": "docker",
        "ig.destination": f"c/{db.name}",
    }
    done = {**near, "ig.port": "ephemeral", "ig.outcome": "established"}
    refused = {**near, "server.port": "9", "ig.outcome": "refused", "error.type": "refused"}

    def mine(name: str) -> dict[Any, dict[str, Any]]:
        """Return the points of this container alone: others may be on this host."""
        points = collector.points(name)
        return {key: each for key, each in points.items() if ("container.name", web.name) in key}

    until(lambda: total(mine("ig.tcp.connections")) >= 20, "the counts")
    connects = mine("ig.tcp.connections")
    assert {key: int(point["asInt"]) for key, point in connects.items()} == {
        tuple(sorted(done.items())): 13,
        tuple(sorted(refused.items())): 7,
    }
    done.pop("ig.outcome")
    (histogram,) = mine("ig.tcp.handshake.duration").items()
    assert histogram[0] == tuple(sorted(done.items()))
    assert int(histogram[1]["count"]) == sum(map(int, histogram[1]["bucketCounts"])) == 13
    assert 0 < histogram[1]["sum"] < 13 * PATIENCE
    assert not {"min", "max"} & histogram[1].keys()
    for resource in collector.resources():
        assert (
            resource.items()
            >= {
                "service.name": "ig",
                "service.version": version("ig"),
                "host.name": socket.gethostname(),
                "deployment.environment": "lab",
            }.items()
        )
    assert exporter.stop(signal.SIGTERM)[1:] == ("", 0)


@NEEDED
def test_native_histogram_has_all_established_attempts_in_buckets_around_their_mean(
    export: Start, namespace: Namespace, collector: Collector
) -> None:
    collector.start()
    namespace.ip("addr", "add", "10.239.17.7/32", "dev", "lo")
    port = namespace.serve("10.239.17.7", 5432)
    networks = ("--host", "--cidr", "lab=10.239.17.0/24")
    exporter = export(collector.url, "--histogram", "native", *networks)
    namespace.connect("10.239.17.7", port, "--count", 31)

    def found() -> dict[str, Any]:
        points = collector.points("ig.tcp.handshake.duration")
        return next((each for key, each in points.items() if ("ig.destination", "lab") in key), {})

    until(lambda: int(found().get("count", 0)) >= 31, "the histogram")
    point = found()
    positive = point["positive"]
    counts = list(map(int, positive["bucketCounts"]))
    assert int(point["count"]) == sum(counts) == 31
    assert counts[0] > 0 < counts[-1]
    assert (point["scale"], int(point.get("zeroCount", 0))) == (3, 0)
    ends = [2 ** ((positive["offset"] + place) / 8) for place in range(len(counts) + 1)]
    lowest = sum(count * low for count, low in zip(counts, ends, strict=False))
    highest = sum(count * high for count, high in zip(counts, ends[1:], strict=True))
    # The kernel's own buckets, whose middle is taken, are 3 to 6 % wide.
    assert lowest * 0.96 <= point["sum"] <= highest * 1.04
    assert exporter.stop(signal.SIGTERM)[1:] == ("", 0)


@NEEDED
def test_counts_made_while_the_collector_is_gone_are_in_what_follows(
    export: Start, namespace: Namespace, collector: Collector
) -> None:
    namespace.ip("addr", "add", "198.51.100.7/32", "dev", "lo")
    lab = {"ig.destination": "lab", "ig.outcome": "refused"}

    def count() -> int:
        points = collector.points("ig.tcp.connections")
        return total({key: each for key, each in points.items() if lab.items() <= set(key)})

    collector.start()
    exporter = export(collector.url, "--host", "--cidr", "lab=198.51.100.0/24")
    namespace.connect("198.51.100.7", 9, "--count", 5)
    until(lambda: count() == 5, "the first counts")
    collector.stop()
    namespace.connect("198.51.100.7", 9, "--count", 11)
    exporter.says("warning: metrics cannot be sent to")
    collector.start()
    until(lambda: count() == 16, "the counts made meanwhile")
    exporter.says("again\n")
    namespace.connect("198.51.100.7", 9, "--count", 3)
    assert exporter.stop(signal.SIGTERM)[2] == 0  # what it has not sent is sent at the end
    until(lambda: count() == 19, "the last counts")


@pytest.mark.parametrize("answers", ["nothing", "garbage"])
def test_collector_that_hangs_or_answers_garbage_costs_no_counts_and_no_end(
    start_ig: Start, namespace: Namespace, answers: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        exporter = start_ig(
            *("export", "--otlp", f"http://127.0.0.1:{listener.getsockname()[1]}"),
            *("--prometheus", "127.0.0.1:0", "--host", "--interval", "0.2"),
            environment={"OTEL_METRIC_EXPORT_INTERVAL": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"},
        )
        connection, _ = listener.accept()
        if answers == "garbage":
            connection.sendall(b"\0\xff garbage\r\n\r\n" * 3)
        exporter.says("warning: metrics cannot be sent to")
        match = re.search(r"serving http://([^:]+):(\d+)/metrics", exporter.stderr)
        assert match
        namespace.connect("127.0.0.1", 7, "--count", 3)

        def counted() -> bool:
            with socket.create_connection((match[1], int(match[2])), PATIENCE) as client:
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                text = b"".join(iter(lambda: client.recv(65536), b""))
            return b'port="7",outcome="refused"} 3\n' in text

        until(counted, "the counts")
        _, stderr, code = exporter.stop(signal.SIGTERM)
        connection.close()
    assert code == 0, stderr
    assert "warning: the last metrics were not sent to" in stderr


def test_collector_whose_header_has_no_end_is_given_up_and_asked_again(
    start_ig: Start,
) -> None:
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Name: ")
            while not ended.wait(0.1):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        exporter = start_ig(
            *("export", "--otlp", f"http://127.0.0.1:{listener.getsockname()[1]}", "--host"),
            environment={"OTEL_METRIC_EXPORT_INTERVAL": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"},
        )
        for _ in range(3):
            connection, _ = listener.accept()
            threading.Thread(target=drip, args=(connection,)).start()
        exporter.says("(timed out); trying again")
        _, stderr, code = exporter.stop(signal.SIGTERM)
        ended.set()
    assert code == 0, stderr
    assert "warning: the last metrics were not sent to" in stderr


def test_sdk_that_is_missing_is_an_error_with_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter'] = None; "
        "sys.argv = ['ig', 'export', '--otlp', 'http://127.0.0.1:9']; "
        "from ig.cli import main; main()"
    )
    command = [str(IG.with_name("python")), "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "pip install opentelemetry-exporter-otlp-proto-http" in done.stderr
