"""`ig export`, scraped by a real Prometheus: the counts are those of what was done."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.features import has_drop_reasons
from tests.host.attached import added, loaded
from tests.host.engine import Engine
from tests.host.namespace import PYTHON, Namespace
from tests.host.prometheus import Prometheus, need, read
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE, until

Start = Callable[..., Tracer]
BPF = 1 << 39
NEAR, FAR = "10.239.19.8", "10.239.19.7"


def served(exporter: Tracer) -> str:
    """Return the address that it serves on, as it says."""
    match = re.search(r"serving http://(\S+)/metrics", exporter.stderr)
    assert match, exporter.stderr
    return match[1]


@pytest.fixture
def export(start_ig: Start, engine: Engine) -> Start:
    """Start an exporter that knows the engine's containers, and reads its counts often."""

    def start(*arguments: object, **options: object) -> Tracer:
        options.setdefault("environment", {"DOCKER_HOST": engine.socket})
        command = ("export", "--prometheus", "127.0.0.1:0", "--interval", "0.2")
        return start_ig(*command, "-r", "docker", *arguments, **options)

    return start


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[Tracer], Prometheus]]:
    """Start a Prometheus that scrapes an exporter."""
    started: list[Prometheus] = []

    def start(exporter: Tracer) -> Prometheus:
        started.append(Prometheus(tmp_path, served(exporter)))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def test_prometheus_has_exactly_the_counts_of_what_containers_did(
    export: Start, engine: Engine, prometheus: Callable[[Tracer], Prometheus]
) -> None:
    web, (db, port) = engine.idle("web"), engine.serve("db")
    scraper = prometheus(exporter := export("--open-connections"))
    connects = f'ig_tcp_connects_total{{container="{web.name}"}}'
    durations = f'ig_tcp_connect_duration_seconds_count{{container="{web.name}"}}'
    gateway = db.address.rpartition(".")[0] + ".1"
    engine.connect(web, db.address, port, "--count", 13)
    engine.connect(web, db.address, 9, "--count", 7)
    engine.connect(web, gateway, 9, "--count", 3)
    engine.connect(web, "127.0.0.1", 9, "--count", 2)
    holder = engine.program("holder", "connect", db.address, port, "--count", 5, "--hold")
    scraper.wait(f"sum({connects}) >= 25")
    labels = ("destination", "port", "outcome", "pod")
    far = f"c/{db.name}"
    assert scraper.counts(connects, *labels) == {
        (far, "ephemeral", "established", "-"): 13,
        (far, "9", "refused", "-"): 7,
        ("external", "9", "refused", "-"): 3,
        ("loopback", "9", "refused", "-"): 2,
    }
    assert scraper.counts(durations, "destination") == {(far,): 13}
    quantile = f"histogram_quantile(1, {durations.replace('_count', '_bucket')}) < 60"
    assert len(scraper.query(quantile)) == 1
    opened = f'ig_tcp_open_connections{{container="{holder.name}",state="established"}}'
    scraper.wait(f"{opened} == 5")
    assert scraper.counts("ig_build_info", "job").keys() == {("ig",)}
    assert scraper.counts("ig_containers", "runtime")["docker",] >= 3
    lost = scraper.counts("ig_events_lost_total", "cause")
    assert len(lost) > 2
    assert set(lost.values()) == {0}
    assert exporter.stop(signal.SIGTERM)[2] == 0


def test_prometheus_has_named_networks_and_an_exporter_that_has_ended_is_down(
    export: Start, namespace: Namespace, prometheus: Callable[[Tracer], Prometheus]
) -> None:
    exporter = export("--host", "--cidr", "lab=198.51.100.0/24", "--series", 1000)
    scraper = prometheus(exporter)
    namespace.ip("addr", "add", "198.51.100.7/32", "dev", "lo")
    namespace.serve("198.51.100.7", 5432)
    namespace.connect("198.51.100.7", 5432, "--count", 11)
    namespace.connect("198.51.100.7", 54320, "--count", 5)
    scraper.wait('sum(ig_tcp_connects_total{destination="lab"}) >= 16')
    found = scraper.counts('ig_tcp_connects_total{destination="lab"}', "container", "port")
    assert found == {("-", "5432"): 11, ("-", "ephemeral"): 5}
    assert exporter.stop()[2] == 0
    scraper.wait("up == 0")


SEND = """
import socket, sys
for _ in range(13):
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
        connection.sendall(bytes(1009))
"""


def test_prometheus_has_the_bytes_of_both_ends(
    export: Start, engine: Engine, prometheus: Callable[[Tracer], Prometheus]
) -> None:
    web, (db, port) = engine.idle("web"), engine.serve("db")
    scraper = prometheus(export("--bytes"))
    engine.exec(web, [*PYTHON, "-c", SEND, db.address, port]).all()
    total = f'ig_tcp_bytes_total{{container=~"{web.name}|{db.name}"}}'
    scraper.wait(f"sum({total}) >= {2 * 13 * 1009}")
    assert scraper.counts(total, "container", "destination", "direction") == {
        (web.name, f"c/{db.name}", "transmit"): 13 * 1009,
        (db.name, f"c/{web.name}", "receive"): 13 * 1009,
    }
    connects = f'ig_tcp_connects_total{{container=~"{web.name}|{db.name}"}}'
    assert scraper.counts(connects, "container", "outcome") == {(web.name, "established"): 13}


@pytest.mark.parametrize("more", [(), ("--bytes",)])
def test_prometheus_has_the_causes_of_failures_and_all_attempts(
    export: Start,
    engine: Engine,
    namespace: Namespace,
    prometheus: Callable[[Tracer], Prometheus],
    more: tuple[str, ...],
) -> None:
    web, (db, port) = engine.idle("web"), engine.serve("db")
    namespace.ip("route", "add", "prohibit", "10.239.17.0/24")
    namespace.ip("addr", "add", "10.239.18.7/32", "dev", "lo")
    lab = ("--cidr", "lab=10.239.17.0/24", "--cidr", "own=10.239.18.7/32")
    exporter = export("--why", "--host", *lab, *more)
    scraper = prometheus(exporter)
    engine.connect(web, db.address, port, "--count", 13)
    engine.connect(web, db.address, 9, "--count", 7)
    namespace.connect("10.239.17.7", 443, "--count", 5)
    namespace.connect("10.239.18.7", 9, "--count", 11)
    mine = f'destination=~"c/{db.name}|lab|own"'
    scraper.wait(f"sum(ig_tcp_connects_total{{{mine}}}) >= 36")
    assert scraper.counts(f"ig_tcp_connects_total{{{mine}}}", "destination", "outcome") == {
        (f"c/{db.name}", "established"): 13,
        (f"c/{db.name}", "refused"): 7,
        ("lab", "failed"): 5,
        ("own", "refused"): 11,
    }
    failures = f"ig_tcp_connect_failures_total{{{mine}}}"
    scraper.wait(f"sum({failures}) >= 23")
    assert scraper.counts(failures, "container", "destination", "port", "cause") == {
        (web.name, f"c/{db.name}", "9", "no-listener"): 7,
        ("-", "lab", "443", "route"): 5,
        ("-", "own", "9", "no-listener"): 11,
    }
    durations = f"ig_tcp_connect_duration_seconds_count{{{mine}}}"
    assert sum(scraper.counts(durations, "destination").values()) == 13
    assert exporter.stop(signal.SIGTERM)[2] == 0


@pytest.mark.interrupts
@pytest.mark.parametrize("more", [(), ("--bytes",), ("--why",)])
def test_retransmits_of_each_kind_are_counted_as_the_kernel_counts_them(
    export: Start,
    namespace: Namespace,
    prometheus: Callable[[Tracer], Prometheus],
    more: tuple[str, ...],
) -> None:
    for address in (NEAR, FAR):
        namespace.ip("addr", "add", f"{address}/32", "dev", "lo")
    namespace.ip("link", "set", "lo", "mtu", 1500)
    networks = ("--cidr", f"near={NEAR}/32", "--cidr", f"far={FAR}/32")
    exporter = export("--host", *networks, *more)
    scraper = prometheus(exporter)
    (done,) = namespace.start("resend", NEAR, FAR, 5432).finished()
    assert done["total"] == sum(count for kind, count in done.items() if kind != "total")
    assert all(done.values())
    mine = 'ig_tcp_retransmits_total{destination=~"near|far"}'
    with suppress(TimeoutError):  # what is missing is told below
        scraper.wait(f"sum({mine}) >= {done['total']}")
    assert scraper.counts(mine, "destination", "port", "kind") == {
        ("far", "5432", "syn"): done["syn"],
        ("near", "5432", "syn-ack"): done["syn-ack"],
        ("far", "5432", "data"): done["near"],
        ("near", "5432", "data"): done["far"],
        ("near", "ephemeral", "data"): done["unknown"],
    }
    assert exporter.stop(signal.SIGTERM)[2] == 0


@pytest.mark.interrupts
@pytest.mark.parametrize("more", [(), ("--bytes",)])
def test_retransmits_of_data_are_those_of_the_container_that_has_sent_them(
    export: Start,
    engine: Engine,
    prometheus: Callable[[Tracer], Prometheus],
    more: tuple[str, ...],
) -> None:
    web, (db, port) = engine.idle("web"), engine.serve("db")
    scraper = prometheus(export(*more))
    rule = ("INPUT", "-p", "tcp", "--dport", port, "-m", "length", "--length", "500:", "-j", "DROP")
    db.namespace.run("iptables", "-I", *rule)
    engine.exec(web, [*PYTHON, "-c", SEND, db.address, port]).all()
    data = f'ig_tcp_retransmits_total{{container=~"{web.name}|{db.name}",kind="data"}}'
    scraper.wait(f"sum({data}) >= 13")
    db.namespace.run("iptables", "-D", *rule)

    def resent() -> int:
        heading, numbers = re.findall(r"Tcp: (.*)", web.namespace.run("cat", "/proc/net/snmp"))
        return int(numbers.split()[heading.split().index("RetransSegs")])

    labels = ("container", "destination")
    until(
        lambda: scraper.counts(data, *labels) == {(web.name, f"c/{db.name}"): resent()},
        "the kernel's own number",
    )


def test_failures_are_counted_by_cause_and_all_else_in_the_kernel(
    start_ig: Start, namespace: Namespace
) -> None:
    namespace.ip("route", "add", "prohibit", "10.239.17.0/24")
    namespace.ip("addr", "add", "10.239.18.7/32", "dev", "lo")
    networks = ("--cidr", "lab=10.239.17.0/24", "--cidr", "own=10.239.18.7/32")
    address = ("--prometheus", "127.0.0.1:0", "--interval", "2")
    exporter = start_ig("export", *address, "--why", "--host", *networks)
    port = namespace.serve("10.239.18.7", 5432)
    namespace.connect("10.239.18.7", port, "--count", 13)
    namespace.connect("10.239.18.7", 9, "--count", 11)
    namespace.connect("10.239.17.7", 443, "--count", 5)
    url = f"http://{served(exporter)}/metrics"

    def counts(metric: str, label: str) -> dict[tuple[str, ...], int]:
        pattern = rf'^{metric}\{{.*destination="(own|lab)".*{label}="([^"]+)".*\}} (\d+)$'
        found = re.findall(pattern, read(url), re.MULTILINE)
        return {(destination, value): int(number) for destination, value, number in found}

    failures = "ig_tcp_connect_failures_total"
    until(lambda: sum(counts(failures, "cause").values()) >= 16, "the causes")
    found = counts(failures, "cause")
    if not has_drop_reasons():  # then it is not seen, and a slow machine is looked at too late
        found["own", "no-listener"] = found.pop(("own", "unknown"), 0) + found.get(
            ("own", "no-listener"), 0
        )
    assert found == {("own", "no-listener"): 11, ("lab", "route"): 5}
    connects = "ig_tcp_connects_total"
    until(lambda: sum(counts(connects, "outcome").values()) >= 29, "the attempts")
    assert counts(connects, "outcome") == {
        ("own", "established"): 13,
        ("own", "refused"): 11,
        ("lab", "failed"): 5,
    }
    assert exporter.stop(signal.SIGTERM)[2] == 0


@pytest.mark.anywhere
def test_metrics_pass_promtool(export: Start, namespace: Namespace) -> None:
    exporter = export("--host", "--open-connections")
    namespace.connect("127.0.0.1", 9)
    url = f"http://{served(exporter)}/metrics"
    until(lambda: 'port="9",outcome="refused"' in read(url), "the connect in the metrics")
    check = [need("promtool"), "check", "metrics"]
    done = subprocess.run(
        check, input=read(url), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


BORN, GROWN, LASTING, RESTARTED = "_ _ _ _ _ _ 5 5 5", "2x4 4x4", "3x8", "9 9 9 9 9 2 2 2 2"


def examples() -> list[str]:
    """Return the expressions of the documentation."""
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    table = text.partition("| question | expression |")[2].partition("\n\n")[0]
    return re.findall(r"\| `(.*)` \|$", table, re.MULTILINE)


@pytest.mark.anywhere
def test_expressions_of_the_documentation_see_what_a_series_begins_with(tmp_path: Path) -> None:
    failures, durations, causes, data, syns, lost = examples()
    labels = 'container="{}",destination="external",port="9"'

    def series(name: str, more: str, **values: str) -> list[dict[str, str]]:
        return [
            {"series": f"{name}{{{labels.format(each)},{more}}}", "values": numbers}
            for each, numbers in values.items()
        ]

    def result(expression: str, more: str, **numbers: float) -> dict[str, object]:
        found = [
            {"labels": f'{{container="{each}",destination="external"{more}}}', "value": value}
            for each, value in numbers.items()
        ]
        return {"expr": expression, "eval_time": "8m", "exp_samples": found}

    changes = {"born": BORN, "grown": GROWN, "lasting": LASTING, "restarted": RESTARTED}
    bucket = "ig_tcp_connect_duration_seconds_bucket"
    case = {
        "interval": "1m",
        "input_series": [
            *series("ig_tcp_connects_total", 'outcome="refused"', **changes),
            *series("ig_tcp_retransmits_total", 'kind="syn"', **changes),
            *series("ig_tcp_retransmits_total", 'kind="data"', **changes),
            *series("ig_tcp_connect_failures_total", 'cause="route"', **changes),
            *series(bucket, 'le="1"', born=BORN),
            *series(bucket, 'le="+Inf"', born=BORN),
            {"series": 'ig_events_lost_total{cause="a"}', "values": "0 0 0 0 0 0 0 0 0"},
            {"series": 'ig_series_overflow_total{metric="m"}', "values": "0 0 0 0 0 0 5 5 5"},
        ],
        "promql_expr_test": [
            result(failures, ',port="9",outcome="refused"', born=5, grown=2, restarted=2),
            result(data, ',port="9"', born=5, grown=2, restarted=2),
            result(syns, "", born=5, grown=2, restarted=2),
            result(causes, ',cause="route"', born=5, grown=2, restarted=2),
            result(durations, "", born=0.99),
            {**result(f"count({lost})", ""), "exp_samples": [{"labels": "{}", "value": 1}]},
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"evaluation_interval": "1m", "tests": [case]}))
    check = [need("promtool"), "test", "rules", str(file)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_service_manager_is_notified_and_only_the_privilege_to_read_counts_is_kept(
    export: Start, engine: Engine, tmp_path: Path
) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE)
    environment = {"DOCKER_HOST": engine.socket, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    before = loaded()
    exporter = export(environment=environment)
    assert manager.recv(64) == b"READY=1"
    assert read(f"http://{served(exporter)}/healthz") == "ok\n"
    status = Path(f"/proc/{exporter.process.pid}/status").read_text()
    assert re.findall(r"Cap(?:Eff|Prm):\t(\w+)", status) == [f"{BPF:016x}"] * 2
    host, _, port = served(exporter).rpartition(":")
    assert exporter.stop(signal.SIGTERM)[2] == 0
    assert manager.recv(64) == b"STOPPING=1"
    manager.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), PATIENCE)
    until(lambda: not added(before), "its programs to be gone")


@contextmanager
def no_more_files(process: int) -> Iterator[None]:
    """Leave a process no descriptor below its limit."""
    limits = resource.prlimit(process, resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir(f"/proc/{process}/fd")))
    free = next(number for number in itertools.count() if number not in used)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_NOFILE, limits)


@pytest.mark.anywhere
def test_log_file_is_json_and_opened_anew_at_a_hangup(export: Start, tmp_path: Path) -> None:
    log, old = tmp_path / "ig.log", tmp_path / "ig.log.1"
    exporter = export("--log-file", log, "--log-format", "json", "-c", "no-such")
    lines = map(json.loads, log.read_text().splitlines())
    first = next(each for each in lines if each["message"].startswith("serving http://127.0.0.1:"))
    assert first["level"] == "info"
    log.rename(old)
    exporter.process.send_signal(signal.SIGHUP)
    until(log.exists, "the log file to be opened anew")
    address = first["message"].split("/")[2]
    assert read(f"http://{address}/healthz") == "ok\n"
    host, _, port = address.rpartition(":")
    with no_more_files(exporter.process.pid), ExitStack() as clients:

        def message() -> str:
            clients.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            return log.read_text()

        until(message, "a message in the new file")
    assert "Too many open files" in json.loads(log.read_text().splitlines()[0])["message"]
    assert "Too many open files" not in old.read_text()
    assert exporter.stop(signal.SIGTERM)[1:] == ("", 0)
    assert log.stat().st_mode & 0o777 == 0o640


@pytest.mark.anywhere
@pytest.mark.parametrize("address", [":9435", "localhost:9435", "9435"])
def test_addresses_that_do_not_say_where_are_refused(start_ig: Start, address: str) -> None:
    refused = start_ig("export", "--prometheus", address, ready=False)
    _, stderr, code = refused.finished()
    assert code == 2
    assert "Use ADDRESS:PORT, such as 127.0.0.1:9435" in stderr


@pytest.mark.anywhere
def test_address_in_use_is_an_error(start_ig: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = start_ig("export", "--prometheus", address, ready=False)
        _, stderr, code = refused.finished()
    assert code == 1
    assert f"Cannot listen on {address}.\nAddress already in use" in stderr
