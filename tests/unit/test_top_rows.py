"""The rows of `ig top`: pairs, their ends, groups, and what there is no room for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ig.buckets import index
from ig.container import HOST, Container
from ig.gadget import Batch
from ig.gadgets.top_tcp import GADGET, age, compact
from ig.output.text import cells
from ig.query import find_column
from ig.top.interval import Interval
from ig.top.pairs import LINGER, Pairs, members
from ig.top.rows import Row, batch_of, grouped
from ig.top.traffic import Traffic
from ig.top.view import View

WEB, API = (Container(name * 64, name, "docker") for name in "ab")
DB = Container("d" * 64, "db", "docker")
Connection = tuple[Container, Container, str, int]
ONE: Connection = (WEB, DB, "10.0.0.9", 5432)


def traffic(*connections: Connection, volume: int = 0) -> Traffic:
    owners, peer, daddr, dport = (
        list(column) for column in (zip(*connections, strict=True) if connections else [()] * 4)
    )
    fields = {"peer": peer, "daddr": daddr, "dport": dport, "sport": [40000] * len(owners)}
    flat = [volume] * len(owners)
    return Traffic(Batch(fields, owners), False, flat, flat, flat)


def counted(new: int, latencies: dict[int, int], failed: int = 0, last: int = 9) -> Row:
    row = Row(WEB, False, HOST if last != 9 else DB, f"10.0.0.{last}", 0, 5432)
    row.new, row.failed = new, failed
    for latency, count in latencies.items():
        row.latencies.add(index(latency), count, latency)
    return row


def counts(rows: Sequence[Row]) -> list[tuple[str, str, int, int]]:
    return [(row.owner.name, row.peer.name or row.address, row.dport, row.open) for row in rows]


def shown(rows: Sequence[Row], name: str, now: int = 0, seconds: float = 2.0) -> list[str]:
    return list(cells(find_column(name, GADGET.columns), batch_of(rows, now, seconds)))


def test_pairs_sum_up_connections_to_one_container_whatever_its_address() -> None:
    other: Connection = (WEB, DB, "10.1.0.9", 5432)
    far: Connection = (WEB, HOST, "198.51.100.7", 443)
    rows = Pairs().feed(traffic(ONE, ONE, other, far, volume=5), (), 10)
    assert counts(rows) == [("a", "db", 5432, 3), ("a", "198.51.100.7", 443, 1)]
    assert [(row.bytes_in, row.retransmits) for row in rows] == [(15, 15), (5, 5)]
    assert shown(rows, "dst") == ["c/db:5432", "198.51.100.7:443"]


def test_pairs_of_a_container_that_changed_meanwhile_are_one() -> None:
    changed: Connection = (WEB.copy(), DB.copy(image="postgres:16"), "10.0.0.9", 5432)
    rows = Pairs().feed(traffic(ONE, ONE, changed, volume=5), (), 10)
    assert [(row.open, row.bytes_in) for row in rows] == [(3, 15)]


def test_rows_that_ended_stay_for_five_seconds_without_counts() -> None:
    pairs = Pairs()
    pairs.feed(traffic(ONE, volume=9), (), 0)
    for now in (1, LINGER):
        (row,) = pairs.feed(traffic(), (), now)
        assert (row.open, row.bytes_in, row.ended) == (0, 0, 1)
    assert pairs.feed(traffic(), (), LINGER + 1) == []


def test_failures_only_shows_what_failed_in_the_last_five_seconds() -> None:
    pairs = Pairs()
    view = View(GADGET.columns, failures=True, order="open")

    def seen(after: int, *failed: Row) -> list[tuple[str, int]]:
        now, together = 10**18 + after, traffic(ONE)
        rows = pairs.feed(together, failed, now)
        found = view.rows(Interval(rows, together, now, 1.0), now)
        return [(row.address, row.failed) for row in found]

    assert seen(10) == []
    assert seen(11, counted(0, {}, failed=2, last=1)) == [("10.0.0.1", 2)]
    assert seen(12) == [("10.0.0.1", 0)]
    assert seen(11 + LINGER, counted(1, {1000: 1}, failed=1)) == [("10.0.0.9", 1)]
    assert seen(10 + 2 * LINGER) == [("10.0.0.9", 0)]
    assert seen(11 + 2 * LINGER) == []


def test_rows_know_since_when_and_whether_they_may_be_older() -> None:
    pairs = Pairs()
    later: Connection = (API, DB, "10.0.0.9", 5432)
    pairs.feed(traffic(ONE), (), 10)
    rows = pairs.feed(traffic(ONE, later), (), 10 + 61 * 10**9)
    assert [(row.since, row.older) for row in rows] == [(10, True), (10 + 61 * 10**9, False)]
    assert shown(rows, "since", 10 + 63 * 10**9) == [">1m", "2s"]


def test_pairs_beyond_the_most_are_summed_up_by_container() -> None:
    many: list[Connection] = [(WEB, HOST, f"192.0.2.{last}", 80) for last in range(7)]
    rows = Pairs(most=2).feed(traffic(*many, *many[3:5], (API, HOST, "192.0.2.1", 80)), (), 0)
    assert counts(rows) == [
        *(("a", "192.0.2.3", 80, 2), ("a", "192.0.2.4", 80, 2)),
        *(("a", "", 0, 5), ("b", "", 0, 1)),
    ]
    assert [(row.other, row.ends) for row in rows] == [(False, 1)] * 2 + [(True, 5), (True, 1)]
    assert shown(rows, "dst")[2:] == ["other", "other"]


def test_rows_have_what_the_kernel_counted_also_without_open_connections() -> None:
    both = [counted(7, {1000: 99, 5_000_000: 1}), counted(0, {}, failed=3, last=1)]
    rows = Pairs().feed(traffic(ONE), both, 0)
    assert [(row.open, row.new, row.failed) for row in rows] == [(1, 7, 0), (0, 0, 3)]
    batch = batch_of(rows, 0, 2.0)
    p50, p99 = (batch.read(find_column(name, GADGET.columns)) for name in ("p50", "p99"))
    assert [index(each[0]) for each in (p50, p99)] == [index(1000)] * 2
    assert (p50[1], p99[1]) == (0, 0)
    (total,) = grouped(rows, "container")
    assert (total.new, total.failed, total.latencies.longest) == (7, 3, 5_000_000)
    assert rows[0].latencies.buckets == {index(1000): 99, index(5_000_000): 1}


def test_counted_pairs_beyond_the_most_are_summed_up() -> None:
    rows = Pairs(most=1).feed(traffic(), [counted(1, {}, last=n) for n in (1, 2, 3)], 0)
    assert [(row.address, row.new, row.other) for row in rows] == [
        *(("10.0.0.1", 1, False), ("", 2, True))
    ]


def test_pair_has_a_row_with_all_of_it_or_is_summed_up() -> None:
    one: Connection = (WEB, HOST, "10.0.0.1", 5432)
    two: Connection = (WEB, HOST, "10.0.0.2", 5432)
    pairs = Pairs(most=1)
    (row, rest) = pairs.feed(traffic(one, one, two), [counted(3, {}, last=2)], 5)
    assert (row.address, row.open, row.new) == ("10.0.0.2", 1, 3)
    assert (rest.other, rest.open, rest.new, rest.ends) == (True, 2, 0, 1)
    now = traffic(one, one, two)
    (row, rest) = pairs.feed(now, (), 6)
    assert (row.address, row.open, row.since) == ("10.0.0.1", 2, 5)
    assert (rest.other, rest.open, rest.ended) == (True, 1, 0)
    assert members([row, rest], now, row, "pair") == [0, 1]
    assert members([row, rest], now, rest, "pair") == [2]


def test_attempts_of_a_process_are_unknown_not_none() -> None:
    now = traffic(ONE)
    fields = {**now.sockets.fields, "pid": [7], "comm": ["web"]}
    now = now._replace(sockets=Batch(fields, now.sockets.owners))
    rows = Pairs().feed(now, [counted(3, {})], 0)
    assert [(row.pid, row.open) for row in rows] == [(7, 1), (0, 0)]
    assert shown(rows, "new_rate") == ["?", "1.5"]
    new = find_column("new", GADGET.columns).json
    assert new is not None
    assert list(new(batch_of(rows, 0, 2.0))) == [None, 3]


@pytest.mark.parametrize(
    ("by", "wanted"),
    [
        ("pair", [("a", "c/db:5432", 1), ("a", "192.0.2.1:80", 1), ("b", "c/db:5432", 1)]),
        ("container", [("a", "2 ends", 2), ("b", "c/db:5432", 1)]),
        ("destination", [("2 owners", "c/db:5432", 2), ("a", "192.0.2.1:80", 1)]),
        ("pod", [("a", "2 ends", 2), ("b", "c/db:5432", 1)]),
        ("process", [("a", "2 ends", 2), ("b", "c/db:5432", 1)]),
    ],
)
def test_groups_sum_rows_up(by: str, wanted: list[tuple[str, str, int]]) -> None:
    rows = Pairs().feed(
        traffic(ONE, (WEB, HOST, "192.0.2.1", 80), (API, DB, "10.0.0.9", 5432)), (), 0
    )
    groups = grouped(rows, by)
    opened = [row.open for row in groups]
    assert wanted == list(
        zip(shown(groups, "containername"), shown(groups, "dst"), opened, strict=True)
    )


def test_groups_of_a_pod_have_its_name() -> None:
    one, two = (
        Container(name, name, "cri", pod_namespace="shop", pod_name="p") for name in ("x", "y")
    )
    (row,) = grouped(Pairs().feed(traffic((one, *ONE[1:]), (two, *ONE[1:])), (), 0), "pod")
    assert (row.owner.pod_name, row.owners, row.ends) == ("p", 2, 1)


def test_rates_are_per_second_and_at_least_one_if_there_was_any() -> None:
    rows = Pairs().feed(traffic(ONE, volume=3_000_001), [counted(1, {})], 0)
    batch = batch_of(rows, 0, 4.0)
    values = [find_column(name, GADGET.columns) for name in ("new_rate", "bytes_in_rate")]
    assert [list(batch.read(each)) for each in values] == [[1], [750_000]]
    assert [list(cells(each, batch)) for each in values] == [["0.2"], ["750k"]]
    assert shown(rows, "new_rate", seconds=0.0) == ["-"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.25, "0.2"), (9, "9"), (12.4, "12"), (999.4, "999"), (999.6, "1.0k")),
        *((9949, "9.9k"), (9951, "10k"), (2.5e9, "2.5G"), (3e15, "3000T")),
    ],
)
def test_compact_numbers_take_five_cells(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (86400 * 9, "9d")]
)
def test_ages_take_three_cells(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_pairs_of_a_pod_are_one_whoever_has_named_it() -> None:
    pod = DB.copy(pod_namespace="shop", pod_name="db-0")
    by_runtime = pod.copy(id="e" * 64, name="postgres", runtime="containerd")
    by_cluster = pod.copy(id="uid", name="", runtime="kubernetes", scope="pods")
    ends = [(WEB, peer, "10.0.0.9", 5432) for peer in (by_runtime, by_cluster)]
    rows = Pairs().feed(traffic(*ends), (), 10)
    assert [row.open for row in rows] == [2]
    assert shown(rows, "dst") == ["p/shop/db-0:5432"]


def test_destination_of_a_row_is_a_service_by_its_name() -> None:
    service = Container("uid", "", "kubernetes", pod_namespace="shop", service="db")
    rows = Pairs().feed(traffic((WEB, service, "10.8.0.1", 5432)), (), 10)
    assert shown(rows, "dst") == ["s/shop/db:5432"]
    assert shown(rows, "dst.kind") == ["svc"]
