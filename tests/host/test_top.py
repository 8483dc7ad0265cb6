"""`ig top tcp` without a terminal: rows by interval, against what a program has transferred."""

from __future__ import annotations

import csv
import io
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ig import buckets
from tests.features import preempts_programs
from tests.host.engine import Engine
from tests.host.namespace import Namespace, Program
from tests.host.tracer import IG, Tracer, ordinary_user
from tests.host.waiting import PATIENCE

Start = Callable[..., Tracer]
Rows = list[dict[str, Any]]
HOST, COUNT, SENT, ANSWERED = "127.77.1.9", 3, 70_001, 5_003
TOP = ("top", "tcp", "--host", "--interval", "0.3")
BRIEFLY = ("--port", 7113, "-F", "dst.addr==127.77.1.13")
LISTENING_BRIEFLY = """
import signal, socket
with socket.create_server(("127.77.1.13", 7113)) as listener:
    held = []
    for _ in range(5):
        client = socket.socket()
        client.bind(("127.77.1.13", 0))
        client.connect(listener.getsockname())
        held += client, listener.accept()[0]
signal.pause()
"""


@pytest.fixture
def load(namespace: Namespace) -> Program:
    """A program that holds COUNT connections to HOST."""
    options = ("--count", COUNT, "--send", SENT, "--answer", ANSWERED)
    return namespace.start("transfer", HOST, *options)


def rows(tracer: Tracer) -> Rows:
    return [row for interval in tracer.events for row in interval["rows"]]


def total(found: Rows, name: str) -> int:
    return sum(row[name] for row in found)


def do(load: Program, number: int) -> None:
    """Send a signal to the program, and wait until it has done what that means."""
    before = len(load.reports.objects)
    load.process.send_signal(number)
    load.reports.matching(lambda report: "done" in report, before)


@pytest.mark.parametrize(
    ("options", "near", "volumes"),
    [((), "dst", (ANSWERED, SENT)), (("--accepted",), "src", (SENT, ANSWERED))],
    ids=["connected", "accepted"],
)
def test_top_counts_what_connections_transfer(
    start_ig: Start, load: Program, options: tuple[str, ...], near: str, volumes: tuple[int, int]
) -> None:
    received, sent = volumes
    port = load.reports.ready()["port"]
    tracer = start_ig(*TOP, *options, "-o", "json", "-F", f"{near}.port=={port}")
    tracer.wait_for(lambda interval: interval["rows"])
    do(load, signal.SIGUSR1)
    tracer.wait_for(lambda _: total(rows(tracer), "bytes_out") >= sent * 2 * COUNT)
    do(load, signal.SIGUSR2)
    tracer.wait_for(lambda interval: not interval["rows"])
    intervals, said, code = tracer.stop()
    assert code == 0
    assert preempts_programs() or not said  # there the kernel counts more than is missed
    found = rows(tracer)
    assert {row["open"] for row in found} >= {COUNT, 2 * COUNT}
    assert total(found, "new") == COUNT
    assert total(found, "bytes_in") == received * 2 * COUNT
    assert total(found, "bytes_out") == sent * 2 * COUNT
    assert {row[near]["port"] for row in found} == {port}
    assert {row["type"] for row in found} == {"accept" if options else "connect"}
    assert {(row["older"], row["since_raw"]) for row in found} == {(True, found[0]["since_raw"])}
    assert [each["timestamp_raw"] for each in intervals] == sorted(
        each["timestamp_raw"] for each in intervals
    )
    assert all(each["interval_raw"] > 0 for each in intervals)


def test_top_has_connections_of_a_listener_that_was_open_for_less_than_an_interval(
    start_ig: Start, namespace: Namespace
) -> None:
    tracer = start_ig("top", "tcp", "--host", "--accepted", *BRIEFLY, "-o", "json")
    Program(namespace.command(sys.executable, "-c", LISTENING_BRIEFLY))
    tracer.wait_for(lambda _: {(row["open"], row["new"]) for row in rows(tracer)} >= {(5, 0)})
    assert total(rows(tracer), "new") == 5
    assert tracer.stop()[1:] == ("", 0)


def test_top_counts_attempts_that_fail_and_their_latency(
    start_ig: Start, namespace: Namespace
) -> None:
    address, refused, served = "127.77.1.12", 11, 7
    port = namespace.serve(address)
    tracer = start_ig(*TOP, "-o", "json", "-F", f"dst.addr=={address}")
    for _ in range(refused):
        namespace.connect(address, 9)
    namespace.connect(address, port, "--count", served)

    def of(number: int) -> Rows:
        return [row for row in rows(tracer) if row["dst"]["port"] == number]

    tracer.wait_for(
        lambda _: total(of(9), "failed") == refused and total(of(port), "new") == served
    )
    assert tracer.stop()[1:] == ("", 0)
    assert total(of(port), "failed") == total(of(9), "new") == 0
    assert all(0 < row["p50_raw"] <= row["p99_raw"] for row in rows(tracer) if row["new"])


def test_top_latencies_are_those_of_the_answers(start_ig: Start, namespace: Namespace) -> None:
    namespace.peer("--delay", 100)
    chosen = ("-o", "json", "-F", "dst.addr==198.51.100.2")
    tracer = start_ig(*TOP, *chosen)
    events = start_ig("trace", "tcpconnect", "--host", "--latency", *chosen)
    namespace.connect("198.51.100.2", 80, "--count", 3)
    tracer.wait_for(lambda _: total(rows(tracer), "new") == 3)
    assert tracer.stop()[1:] == ("", 0)
    latencies = [event["latency_raw"] for event in events.stop()[0]]
    assert len(latencies) == 3
    # Each program takes the time for itself, one shortly after the other: a bucket beside.
    low, after = buckets.bounds(buckets.index(min(latencies)))
    before, high = buckets.bounds(buckets.index(max(latencies)))
    least, most = 2 * low - after, 2 * high - before
    slow = [row for row in rows(tracer) if row["new"]]
    assert all(least <= row["p50_raw"] <= row["p99_raw"] <= most for row in slow)


@pytest.mark.anywhere
def test_top_prints_a_table_and_csv_for_each_interval(start_ig: Start, load: Program) -> None:
    port = load.reports.ready()["port"]
    chosen = (*TOP, "--count", 2, "--port", port)
    table, text = (start_ig(*chosen, "-o", mode) for mode in ("columns", "csv"))
    assert [tracer.finished()[1:] for tracer in (table, text)] == [("", 0)] * 2
    heading, row, again, _ = table.reports.lines
    assert heading == again
    assert heading.split() == [
        *("TIME", "CONTAINER", "DESTINATION", "OPEN", "NEW/S", "FAIL/S"),
        *("P50", "P99", "IN/S", "OUT/S", "RETR/S", "SINCE"),
    ]
    assert row.split()[1:-1] == ["host", f"{HOST}:{port}", str(COUNT), *"-------"]
    assert re.fullmatch(r">\d+s", row.split()[-1])
    parsed = list(csv.DictReader(io.StringIO("\n".join(text.reports.lines))))
    assert [each["open"] for each in parsed] == [str(COUNT)] * 2


def test_top_sums_up_by_process(start_ig: Start, load: Program) -> None:
    port = load.reports.ready()["port"]
    chosen = ("--by", "process", "--port", port, "--count", 1, "-o", "json")
    (interval,) = start_ig(*TOP, *chosen).finished()[0]
    (row,) = interval["rows"]
    assert (row["proc"]["pid"], row["open"]) == (load.pid, COUNT)
    assert row["proc"]["comm"].startswith("python3")


def test_top_names_both_ends_and_drops_a_container_that_is_gone(ig: Start, engine: Engine) -> None:
    server, port = engine.serve("server")
    tracer = ig("top", "tcp", "-c", f"{engine.prefix}-*", "--interval", "0.3", "--port", port)
    client = engine.program("client", "connect", server.address, port, "--count", 5, "--hold")
    client.reports.ready()
    (first, *_) = tracer.wait_for(lambda each: each["rows"] and each["rows"][0]["open"] == 5)
    (row,) = first["rows"]
    assert row["runtime"]["containerName"] == client.name
    assert (row["dst"]["name"], row["dst"]["kind"]) == (server.name, "container")
    assert not row["older"]
    tracer.wait_for(lambda _: total(rows(tracer), "new") == 5)
    engine.remove(client)
    tracer.wait_for(lambda each: not each["rows"] and each["timestamp"] > first["timestamp"])
    assert tracer.stop()[1:] == ("", 0)


def test_top_needs_root_as_traces_do() -> None:
    done = subprocess.run(
        [*ordinary_user(), str(IG), "top", "tcp"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ig: Tracing needs root.")


@pytest.mark.anywhere
def test_top_refuses_unknown_groups_and_columns(start_ig: Start) -> None:
    for options, message in (
        (("--by", "colour"), "Known groups: pair, container, pod, destination, process"),
        (("--sort", "colour"), "Unknown column 'colour'"),
        (("-F", "colour==1"), "Unknown column 'colour'"),
    ):
        _, said, code = start_ig("top", "tcp", *options, ready=False).finished()
        assert code == 2
        assert message in said
