"""LATENCY is what the network took: packets are delayed on purpose, and it must say by how much."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable

import pytest

from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import EMULATED

Start = Callable[..., Tracer]
COUNT = 7
MILLISECOND = 1_000_000


def delayed(namespace: Namespace, *delay: str) -> None:
    """Delay every packet on the namespace's `lo`: a SYN, and its answer."""
    words = ["tc", "-n", namespace.name, "qdisc", "add", "dev", "lo", "root", "netem", "delay"]
    subprocess.run([*words, *delay], check=True)


def traced(start_ig: Start, namespace: Namespace) -> tuple[list[Report], list[Report]]:
    """Connect a few times, one after the other; give the events and what connect() took."""
    port = namespace.serve()
    options = ("--host", "-F", f"netns=={namespace.inode}", "--max-events", COUNT, "-o", "json")
    tracer = start_ig("trace", "tcpconnect", "--latency", *options)
    attempts = namespace.connect("127.0.0.1", port, "--count", COUNT)
    return tracer.finished()[0], attempts


def test_latency_without_delay_is_a_part_of_what_connect_took(
    start_ig: Start, namespace: Namespace
) -> None:
    events, attempts = traced(start_ig, namespace)
    took = [attempt["nanoseconds"] for attempt in attempts]
    assert all(0 < event["latency_raw"] < most for event, most in zip(events, took, strict=True))


@pytest.mark.needs("netem")
@pytest.mark.parametrize("milliseconds", [50, 500])
def test_latency_is_the_delay_that_is_steady(
    start_ig: Start, namespace: Namespace, milliseconds: int
) -> None:
    delayed(namespace, f"{milliseconds}ms")
    events, attempts = traced(start_ig, namespace)
    both_ways = 2 * milliseconds * MILLISECOND
    assert [event["outcome"] for event in events] == ["established"] * COUNT
    found = [event["latency_raw"] for event in events]
    # A busy machine sends some later than it was told to, and connect() takes as much longer.
    assert statistics.median(found) == pytest.approx(both_ways, rel=0.1)
    for latency, attempt in zip(found, attempts, strict=True):
        assert both_ways * 0.95 < latency < attempt["nanoseconds"]


@pytest.mark.needs("netem")
def test_latency_that_varies_is_reported_connection_by_connection(
    start_ig: Start, namespace: Namespace
) -> None:
    delayed(namespace, "50ms", "50ms", "25%")
    events, attempts = traced(start_ig, namespace)
    for event, attempt in zip(events, attempts, strict=True):
        # What connect() itself needs, beside the network, is little against the delay.
        slack = (50 if EMULATED else 10) * MILLISECOND
        assert event["latency_raw"] == pytest.approx(attempt["nanoseconds"], rel=0.1, abs=slack)
