"""Rows of a summary: where they are counted, their bounds, and how they are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ig.commands.replay import ByTime
from ig.container import HOST, Container
from ig.errors import UsageError
from ig.gadget import Batch
from ig.gadgets import declared
from ig.output.histogram import draw
from ig.output.sink import Chain
from ig.summary import Counts, Measure
from ig.trace.summary import Summarize, summarized
from ig.values import SECOND, format_short

WHOLE = float("inf")
CONNECT = declared()["trace_tcpconnect"]
TCP = declared()["trace_tcp"]
COUNT = 7


def source(gadget: Any, **options: Any) -> str:
    return str(summarized(gadget, {"summary": WHOLE, **options}).source)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"by": ["container"]},
        {"by": ["dst.port,outcome"]},
        {"by": ["src.addr", "netns"]},
        {"filter": ["dst.name==db,outcome!=refused", "ip==6"]},
    ],
)
def test_summary_is_counted_in_the_kernel_where_keys_and_filters_allow_it(options: Any) -> None:
    assert source(CONNECT, **options) == "aggregate"


@pytest.mark.parametrize(
    "options",
    [
        {"by": ["comm"]},
        {"by": ["src"]},
        {"filter": ["latency>1ms"]},
        {"filter": ["outcome==refused || uid==0"]},
        {"filter": ["timestamp>2026-01-01T00:00:00Z"]},
        {"record": "file"},
        {"max_events": 5},
        {"why": True},
    ],
)
def test_summary_is_of_events_where_only_they_have_what_is_asked(options: Any) -> None:
    assert source(CONNECT, **options) == "program"


def test_summary_of_closes_is_of_events_where_their_far_port_is_asked() -> None:
    assert source(TCP) == "aggregate"
    assert source(TCP, filter=["dst.port==80"]) == "program"


@pytest.mark.parametrize(
    ("gadget", "options", "message"),
    [
        (CONNECT, {"summary": None, "by": ["comm"]}, "--by needs --summary"),
        (CONNECT, {"sort": ["nothing"]}, "Unknown column 'nothing'"),
        (CONNECT, {"by": ["nothing"]}, "Unknown column 'nothing'"),
        (declared()["trace_bind"], {}, "has no summary"),
    ],
)
def test_summary_that_cannot_be_is_refused(gadget: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        summarized(gadget, {"summary": WHOLE, **options})


def events(ports: range, owner: Container = HOST) -> Batch:
    """Return an answered attempt to each port."""
    names = ("type", "outcome", "retransmits", "sent", "received", "latency", "duration")
    fields: dict[str, Any] = {name: [0] * len(ports) for name in names}
    fields |= {"type": [1] * len(ports), "outcome": [1] * len(ports), "dport": list(ports)}
    return Batch(fields, [owner] * len(ports))


def test_rows_beyond_the_bound_are_one_for_each_owner_and_are_counted() -> None:
    port = next(column for column in CONNECT.columns if column.name == "dst.port")
    stage = Summarize([port], owned=True, most=COUNT)
    owners = Container("1", "one", "docker"), Container("2", "two", "docker")
    for owner in owners:
        stage.feed(events(range(1, COUNT + 4), owner))
    rows = stage.flush()
    overflow = [
        (owner.name, counts.attempts)
        for owner, counts, is_overflow in zip(
            rows.owners, rows.fields["counts"], rows.fields["overflow"], strict=True
        )
        if is_overflow
    ]
    assert overflow == [("one", 3), ("two", COUNT + 3)]
    assert stage.without_room == COUNT + 6
    assert len(rows) == COUNT + 2
    assert len(stage.flush()) == 0


def test_attempt_that_has_not_ended_is_counted_when_it_has() -> None:
    batch = events(range(1, 3))
    batch.fields["outcome"][0] = 7  # type: ignore[index]
    stage = Summarize([], owned=False)
    stage.feed(batch)
    assert [counts.attempts for counts in stage.flush().fields["counts"]] == [1]


def test_longest_and_quantiles_are_of_attempts_with_an_answer_only() -> None:
    counts = Counts()
    for outcome, bucket, longest in ((1, 100, 2700), (3, 0, 0), (3, 0, 0)):
        counts.add(Measure(1, outcome, bucket, 1, 0, 0, 0, longest))
    assert (counts.attempts, counts.latencies.quantile(50)) == (3, 2700)
    assert Counts().durations.quantile(99) == 0


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "-"),
        (7, "7ns"),
        (999, "999ns"),
        (81_234, "81.2µs"),
        (999_999, "1ms"),
        (1_012_345_678, "1.01s"),
        (999_400_000_000, "999s"),
        (3_600_000_000_000, "1h0m0s"),
    ],
)
def test_short_duration_has_three_digits_and_a_unit(nanoseconds: int, text: str) -> None:
    assert format_short([nanoseconds]) == [text]


def test_histogram_has_a_bar_for_each_line_within_the_width() -> None:
    drawn = draw({100: 1, 140: 2000, 300: 0}, 60, blocks=True).splitlines()
    assert all(len(line) <= 60 for line in drawn)
    assert max(drawn, key=len).endswith("█")
    assert drawn[0].endswith("▏")
    assert drawn[-1].rstrip().endswith("0")
    plain = draw({100: 1, 140: 2000}, 60, blocks=False)
    assert "#" in plain
    assert "█" not in plain


class Collected:
    """A sink that keeps what it takes: times of events, and ends of intervals in brackets."""

    interval = 0.0

    def __init__(self) -> None:
        self.taken: list[object] = []

    def open(self) -> None:
        pass

    def write(self, batch: Batch) -> None:
        self.taken += batch.fields["timestamp"]

    def tick(self, now: int) -> None:
        self.taken.append([now])

    def lost(self, counts: Mapping[str, int]) -> None:
        pass

    def close(self) -> None:
        pass


def test_recorded_events_are_in_the_intervals_of_their_time_and_empty_ones_are_left_out() -> None:
    sink = Collected()
    by_time = ByTime(Chain([], sink), 10.0)
    for times in ([100, 101, 109], [110, 111, 108], [112, 155, 156], [171]):
        nanoseconds = [time * SECOND for time in times]
        by_time.write(Batch({"timestamp": nanoseconds}, [HOST] * len(times)))
    taken = [
        [each[0] // SECOND] if isinstance(each, list) else int(str(each)) // SECOND
        for each in sink.taken
    ]
    assert taken == [100, 101, 109, [110], 110, 111, 108, 112, [120], 155, 156, [160], 171]
