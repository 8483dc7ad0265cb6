"""`--summary`: what is counted is what took place, in the kernel and in user space."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ig import buckets, c_text
from ig.bpf.aggregates import MOST_RECORDS
from tests.host.engine import Engine
from tests.host.gadget_package import change, install, started
from tests.host.namespace import Namespace
from tests.host.terminal import Terminal
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE, until

BUCKET_PROGRAM = """
#include <stdint.h>
#include <stdio.h>
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
#include "buckets.h"

int main(void)
{
	unsigned long long value;

	while (scanf("%llu", &value) == 1)
		printf("%u\\n", bucket_of(value));
	return 0;
}
"""


def buckets_in_c(folder: Path, values: Sequence[int]) -> list[int]:
    """Return the buckets of numbers by the function of the BPF programs."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, program = folder / "buckets.c", folder / "buckets"
    source.write_text(BUCKET_PROGRAM)
    subprocess.run([compiler, "-I", c_text.folder(), "-o", program, source], check=True)
    given = "\n".join(map(str, values))
    done = subprocess.run([program], input=given, capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


@pytest.mark.anywhere
def test_buckets_of_the_programs_are_those_of_python(tmp_path: Path) -> None:
    drawn = random.Random(19)
    values = [*range(300), *(drawn.getrandbits(drawn.randint(1, 64)) for _ in range(10_007))]
    values += [(1 << power) - below for power in range(5, 65) for below in (1, 2)]
    found = buckets_in_c(tmp_path, values)
    assert found == list(map(buckets.index, values))
    assert c_text.read("buckets.h").count(f"#define BUCKETS {max(found) + 1}\t") == 1


OFFERS = "[ig.gadgets]\ncounts = counts:GADGET\n"
MODULE = """
from dataclasses import replace

from ig.columns import TIMESTAMP, enum_names, integer, named, owner_columns
from ig.gadget import Column
from ig.gadgets import trace_tcp
from ig.summary import counted

NUMBERS = ("sport", "dport", "bucket", "count", "retransmits", "sent", "received", "max_latency")
ENUMS = ("type", "outcome", "direction")

GADGET = replace(
    counted(trace_tcp.GADGET),
    name="trace_counts",
    command=("trace", "counts"),
    columns=(
        TIMESTAMP,
        *owner_columns(),
        *map(integer, ("netns", "other"), ("netns", "other")),
        *(integer(name, name) for name in NUMBERS),
        *(Column(name, name, read=named(name, enum_names("tcp.h", name))) for name in ENUMS),
        integer("first", "first", "min_time"),
        integer("last", "last", "max_time"),
    ),
    views=(),
)
"""
ATTEMPTS, REFUSED = 17, 5


def total(rows: Iterable[Mapping[str, Any]], *names: str) -> Counter[tuple[Any, ...]]:
    """Return the sums of counts by these keys."""
    sums: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        sums[tuple(row[name] for name in names)] += row["count"]
    return sums


def test_program_counts_attempts_accepts_and_closes_instead_of_events(
    start_ig: Callable[..., Tracer], tmp_path: Path, namespace: Namespace
) -> None:
    package = install(tmp_path, "counts", OFFERS, {"__init__.py": MODULE})
    ready = tmp_path / "ready"
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "-o", "json", "--ready-file", ready)
    process = started(package, "trace", "counts", *chosen)
    until(lambda: ready.exists() or process.poll() is not None, "the trace to be ready")
    before = time.time_ns()
    events = start_ig("trace", "tcp", "--host", "-F", f"netns=={namespace.inode}", "-o", "json")
    port = namespace.serve()
    namespace.connect("127.0.0.1", port, "--count", ATTEMPTS)
    namespace.connect("127.0.0.1", 1, "--count", REFUSED)
    events.wait_for(lambda event: event["type"] == "close", 2 * ATTEMPTS)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    rows = [json.loads(line) for line in said.splitlines()]
    assert total(rows, "type", "outcome", "direction", "sport", "dport") == {
        ("CONNECT", "DONE", "OUTGOING", 0, port): ATTEMPTS,
        ("CONNECT", "REFUSED", "OUTGOING", 0, 1): REFUSED,
        ("ACCEPT", "DONE", "INCOMING", port, 0): ATTEMPTS,
        ("CLOSE", "NONE", "OUTGOING", 0, port): ATTEMPTS,
        ("CLOSE", "NONE", "INCOMING", port, 0): ATTEMPTS,
    }
    assert len(rows) == len(total(rows, "type", "outcome", "sport", "dport", "bucket"))
    for row in rows:
        assert row["bucket"] == buckets.index(row["max_latency"])
        assert (row["bucket"] > 0) == (row["type"] != "ACCEPT")
        assert before < row["first"] <= row["last"] < row["timestamp_raw"]
        assert (row["retransmits"], row["other"]) == (0, 0)


def test_keys_without_room_are_counted_by_container_and_outcome(
    tmp_path: Path, namespace: Namespace
) -> None:
    package = install(tmp_path, "counts", OFFERS, {"__init__.py": MODULE})
    few = "defines={**counted(trace_tcp.GADGET).defines, 'MOST_KEYS': 4},"
    change(package, "counts/__init__.py", "views=(),", few + "views=(),")
    ready = tmp_path / "ready"
    process = started(package, "trace", "counts", "--host", "-o", "json", "--ready-file", ready)
    until(lambda: ready.exists() or process.poll() is not None, "the trace to be ready")
    for port in range(1, REFUSED * 10 + 1):
        namespace.connect("127.0.0.1", port)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=PATIENCE)
    rows = [json.loads(line) for line in said.splitlines()]
    assert total(rows, "type", "outcome")["CONNECT", "REFUSED"] >= REFUSED * 10
    others = sum(row["count"] for row in rows if row["other"])
    assert {row["dport"] for row in rows if row["other"]} == {0}
    assert others >= REFUSED * 10 - 4
    # What others on this host have done since the rows were read is in the number, too.
    told = re.findall(r"(\d+) events counted as `other` so far: no room for their keys", errors)
    assert int(told[-1]) >= others


SILENT = 3


@pytest.fixture
def load(namespace: Namespace) -> Callable[[], Counter[tuple[int, str]]]:
    """Return what makes attempts of known outcomes, and returns these by port."""
    port = namespace.serve()
    namespace.drop(SILENT)

    def make() -> Counter[tuple[int, str]]:
        namespace.connect("127.0.0.1", port, "--count", ATTEMPTS)
        namespace.connect("127.0.0.1", 1, "--count", REFUSED)
        namespace.connect("127.0.0.1", SILENT, "--timeout", 0.1, "--nonblocking")
        known = {(port, "established"): ATTEMPTS, (1, "refused"): REFUSED}
        return Counter({**known, (SILENT, "abandoned"): 1})

    return make


def summed(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[int, str]]:
    """Return the attempts of a summary's rows, by port and outcome."""
    return Counter(
        {
            (row["dst"]["port"], outcome): count
            for row in rows
            for outcome, count in row["outcomes"].items()
            if count
        }
    )


Load = Callable[[], Counter[tuple[int, str]]]
Start = Callable[..., Tracer]


def check_row(row: Mapping[str, Any]) -> None:
    """Check that the parts of a row agree with each other."""
    latency = row["latency"]
    assert sum(row["outcomes"].values()) == row["attempts"]
    assert all(each["from"] < each["to"] for each in latency["buckets"])
    if latency["buckets"]:
        last = latency["buckets"][-1]
        assert last["from"] <= latency["max_raw"] < last["to"]
        assert latency["p50_raw"] <= latency["p90_raw"] <= latency["p99_raw"] <= latency["max_raw"]


def test_summary_of_the_kernel_of_events_and_of_a_recording_has_the_same_rows(
    start_ig: Start, namespace: Namespace, load: Load, tmp_path: Path
) -> None:
    options = ("tcpconnect", "--host", "-F", f"netns=={namespace.inode}", "-o", "json", "--summary")
    kernel = start_ig("trace", *options)
    recorded = start_ig("trace", *options, "--record", tmp_path / "recording")
    made = load()
    found = [tracer.stop() for tracer in (kernel, recorded)]
    assert [(said, code) for _, said, code in found] == [("", 0)] * 2
    for rows, _, _ in found:
        assert summed(rows) == made
        assert len(rows) == 3
        for row in rows:
            check_row(row)
            answered = 0 if row["outcomes"]["abandoned"] else row["attempts"]
            assert sum(each["count"] for each in row["latency"]["buckets"]) == answered
    replayed = start_ig("replay", tmp_path / "recording", "--summary", "-o", "json", ready=False)
    assert replayed.finished()[0] == found[1][0]


def test_summary_of_latencies_is_within_a_bucket_of_each_attempts(
    start_ig: Start, namespace: Namespace
) -> None:
    namespace.peer("--delay", 40, "--answer", "reset")
    options = ("tcpconnect", "--host", "-F", f"netns=={namespace.inode}", "-o", "json")
    kernel = start_ig("trace", *options, "--summary")
    events = start_ig("trace", *options, "--latency")
    namespace.connect("198.51.100.7", 80, "--count", ATTEMPTS)
    (row,), _, _ = kernel.stop()
    latencies = sorted(event["latency_raw"] for event in events.stop()[0])
    assert row["outcomes"]["refused"] == len(latencies) == ATTEMPTS
    assert min(latencies) > 40_000_000
    check_row(row)
    # Each program takes the time for itself, one shortly after the other.
    for name, rank in (("p50_raw", 9), ("p90_raw", 16), ("p99_raw", 17), ("max_raw", 17)):
        low, high = buckets.bounds(buckets.index(latencies[rank - 1]))
        slack = high - low
        assert low - slack < row["latency"][name] < high + slack


@pytest.mark.needs("netem")
def test_summary_of_delayed_packets_has_their_delay(start_ig: Start, namespace: Namespace) -> None:
    namespace.run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "50ms")
    port = namespace.serve()
    options = ("--host", "-F", f"netns=={namespace.inode}", "-o", "json")
    tracer = start_ig("trace", "tcpconnect", "--summary", *options)
    took = namespace.connect("127.0.0.1", port, "--count", ATTEMPTS)
    (row,), _, _ = tracer.stop()
    assert row["outcomes"]["established"] == ATTEMPTS
    most = max(attempt["nanoseconds"] for attempt in took)
    assert 95_000_000 < row["latency"]["p50_raw"] <= row["latency"]["max_raw"] < most


@pytest.mark.interrupts
def test_summary_counts_syns_that_are_sent_again(start_ig: Start, namespace: Namespace) -> None:
    peer = namespace.peer("--answer", "nothing")
    tracer = start_ig(
        "trace",
        "tcpconnect",
        "--summary",
        "--host",
        "-F",
        f"netns=={namespace.inode}",
        "-o",
        "json",
    )
    namespace.connect("198.51.100.2", 80, "--syn-count", 1)
    (row,), _, _ = tracer.stop()
    syns = [report for report in peer.reports.objects if "ready" not in report]
    assert (row["outcomes"]["timed-out"], row["retransmits"]) == (1, len(syns) - 1)
    assert row["latency"]["p50"] is None


def test_summary_by_columns_is_sorted_and_cut(
    start_ig: Start, namespace: Namespace, load: Load
) -> None:
    by = ("--by", "dst.port,outcome", "--sort", "-dst.port", "--top", 2)
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "-o", "json")
    tracer = start_ig("trace", "tcpconnect", "--summary", *by, *chosen)
    made = load()
    rows = tracer.stop()[0]
    expected = sorted(made, reverse=True)[:2]
    assert [(row["dst"]["port"], row["outcome"]) for row in rows] == expected
    assert [row["attempts"] for row in rows] == [made[key] for key in expected]
    assert "runtime" not in rows[0]


MANY = """
import socket
for port in range(1, %d):
    with socket.socket() as tried:
        tried.connect_ex(("127.0.0.1", port))
"""


def test_summary_of_more_keys_than_are_read_at_once_has_all_of_them(
    start_ig: Start, namespace: Namespace
) -> None:
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "-o", "json")
    tracer = start_ig("trace", "tcpconnect", "--summary", "--by", "outcome", *chosen)
    namespace.run(sys.executable, "-c", MANY % (MOST_RECORDS + 1009))
    (row,), said, code = tracer.stop()
    assert (said, code) == ("", 0)
    assert row["outcomes"]["refused"] == MOST_RECORDS + 1008


def test_summary_of_what_only_events_have_is_of_events(
    start_ig: Start, namespace: Namespace, load: Load
) -> None:
    by = ("--by", "comm", "-F", f"netns=={namespace.inode},pid>1")
    tracer = start_ig("trace", "tcpconnect", "--summary", *by, "--host", "-o", "json")
    made = load()
    (row,), said, _ = tracer.stop()
    assert said == ""
    assert (row["proc"], row["attempts"]) == ({"comm": "python3"}, made.total())


def test_summary_of_tcp_has_accepts_closes_durations_and_bytes(
    start_ig: Start, namespace: Namespace
) -> None:
    port = namespace.serve()
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "-o", "json")
    tracer = start_ig("trace", "tcp", "--summary", *chosen)
    events = start_ig("trace", "tcp", *chosen)
    namespace.connect("127.0.0.1", port, "--count", ATTEMPTS)
    events.wait_for(lambda event: event["type"] == "close", 2 * ATTEMPTS)
    rows = {row["direction"]: row for row in tracer.stop()[0]}
    assert set(rows) == {"outgoing", "incoming"}
    assert rows["outgoing"]["destination"] == f"127.0.0.1:{port}"
    assert rows["incoming"]["destination"] == f":{port} <- 127.0.0.1"
    names = ("attempts", "accepts", "closes", "unaccepted")
    assert [rows["outgoing"][name] for name in names] == [ATTEMPTS, 0, ATTEMPTS, 0]
    assert [rows["incoming"][name] for name in names] == [0, ATTEMPTS, ATTEMPTS, 0]
    assert rows["outgoing"]["sent"] == rows["incoming"]["received"]
    assert rows["outgoing"]["received"] == rows["incoming"]["sent"]
    for row in rows.values():
        assert sum(each["count"] for each in row["duration"]["buckets"]) == ATTEMPTS
        assert row["duration"]["p50_raw"] > 0


def test_summary_is_printed_at_each_interval_and_the_rest_at_the_end(
    start_ig: Start, namespace: Namespace
) -> None:
    port = namespace.serve()
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "-o", "json")
    tracer = start_ig("trace", "tcpconnect", "--summary=0.5", *chosen)
    for before in range(3):
        namespace.connect("127.0.0.1", port, "--count", ATTEMPTS)
        tracer.wait_for(lambda row: row["attempts"], before + 1)
    namespace.connect("127.0.0.1", 1)
    rows, said, code = tracer.stop()
    assert (said, code) == ("", 0)
    assert sum(row["outcomes"]["established"] for row in rows) == 3 * ATTEMPTS
    assert rows[-1]["outcomes"]["refused"] == 1
    times = [row["timestamp_raw"] for row in rows]
    assert times == sorted(times)


def test_summary_ends_after_the_intervals_or_events_asked_for(
    start_ig: Start, namespace: Namespace
) -> None:
    chosen = ("--host", "-F", f"netns=={namespace.inode}")
    tracer = start_ig("trace", "tcpconnect", "--summary=0.2", "--count", 2, *chosen)
    rows, said, code = tracer.finished()
    assert (rows, said, code) == ([], "", 0)
    limit = ("--max-events", REFUSED, "-o", "json")
    tracer = start_ig("trace", "tcpconnect", "--summary", *limit, *chosen)
    namespace.connect("127.0.0.1", 1, "--count", 2 * REFUSED)
    (row,), said, code = tracer.finished()
    assert (row["attempts"], said, code) == (REFUSED, "", 0)


def test_summary_fits_a_terminal_and_draws_histograms_below(
    on_terminal: Callable[..., Terminal], namespace: Namespace
) -> None:
    port = namespace.serve()
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "--histogram", "--summary")
    terminal = on_terminal("trace", "tcpconnect", *chosen, size=(80, 24))
    namespace.connect("127.0.0.1", port, "--count", 1009)
    lines, _, code = terminal.stop()
    assert code == 0
    assert not any("…" in line for line in lines)
    heading = next(line for line in lines if line.startswith("CONTAINER"))
    assert heading.split()[:3] == ["CONTAINER", "DESTINATION", "ATTEMPTS"]
    assert {"REFUSED", "TIMED-OUT", "P50", "P99"} <= set(heading.split())
    assert any(f"127.0.0.1:{port}" in line and "1,009" in line for line in lines)
    assert max(map(len, lines)) <= 80
    below = lines[lines.index("latency") + 1 :]
    bars = [line for line in below if " to " in line]
    assert sum(int(line.split()[3].replace(",", "")) for line in bars) == 1009


def test_summary_names_the_container_and_its_far_end(ig: Start, engine: Engine) -> None:
    (server, port), client = engine.serve("server"), engine.idle("client")
    tracer = ig("trace", "tcp", "--summary", "-c", client.name, "-c", server.name)
    engine.connect(client, server.address, port, "--count", ATTEMPTS)
    rows = {row["runtime"]["containerName"]: row for row in tracer.stop()[0]}
    assert rows[client.name]["destination"] == f"c/{server.name}:{port}"
    assert rows[client.name]["dst"]["name"] == server.name
    assert rows[client.name]["attempts"] == ATTEMPTS
    assert rows[server.name]["destination"] == f":{port} <- c/{client.name}"
    assert rows[server.name]["accepts"] == ATTEMPTS


@pytest.mark.anywhere
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--by", "comm"), "--by needs --summary"),
        (("--summary", "--count", 2), "--count needs an interval"),
        (("--summary", "--histogram", "-o", "json"), "drawn below a table only"),
        (("--summary=0.01",), "Invalid interval"),
    ],
)
def test_summary_that_cannot_be_is_refused(
    start_ig: Start, words: Sequence[object], message: str
) -> None:
    tracer = start_ig("trace", "tcpconnect", *words, ready=False)
    _, said, code = tracer.finished()
    assert code == 2
    assert message in said
