"""Stages: what is filtered, limited and sorted; snapshots that are repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.columns import integer
from ig.commands import snapshot
from ig.container import HOST, Container
from ig.errors import UsageError
from ig.gadget import NOTHING, Batch, Column
from ig.output.sink import Chain
from ig.query import Filter, Limit, Sort, Withhold, joined, sort

COLUMNS = (
    Column("name", read=lambda batch: [owner.name for owner in batch.owners]),
    integer("number", ""),
    Column("src"),
    Column("src.addr", read=lambda batch: batch.fields["saddr"]),
    integer("src.port", "", "sport"),
)


def batch(*rows: tuple[str, int]) -> Batch:
    fields = {"number": [number for _, number in rows]}
    return Batch(fields, [Container(name, name, "test") for name, _ in rows])


def seen(sorted_batch: Batch) -> list[tuple[str, int]]:
    names = [owner.name for owner in sorted_batch.owners]
    return list(zip(names, sorted_batch.fields["number"], strict=True))


@given(st.lists(st.tuples(st.text(alphabet="ab\u00e9", max_size=2), st.integers())))
def test_columns_count_in_their_order_and_equal_rows_keep_theirs(
    rows: list[tuple[str, int]],
) -> None:
    assert seen(sort(batch(*rows), COLUMNS, ["name", "number"])) == sorted(rows)
    expected = sorted(sorted(rows, key=lambda row: row[0]), key=lambda row: -row[1])
    assert seen(sort(batch(*rows), COLUMNS, ["-number", "name"])) == expected
    assert seen(sort(batch(*rows), COLUMNS, ["name"])) == sorted(rows, key=lambda row: row[0])


@given(st.lists(st.tuples(*[st.integers(0, 2**64)] * 5), min_size=50, max_size=80))
def test_many_distinct_values_are_distinguished(rows: list[tuple[int, ...]]) -> None:
    columns = [integer(name, "") for name in "abcde"]
    fields = dict(zip("abcde", map(list, zip(*rows, strict=True)), strict=True))
    ordered = sort(Batch(fields, [HOST] * len(rows)), columns, "abcde")
    assert list(zip(*(ordered.fields[name] for name in "abcde"), strict=True)) == sorted(rows)


def test_ends_of_connections_go_by_address_and_port_as_numbers() -> None:
    addresses = ["::1", "10.0.0.1", "9.0.0.1", "9.0.0.1"]
    fields: dict[str, list[Any]] = {"saddr": addresses, "sport": [1, 1, 100, 20], "src": [""] * 4}
    ordered = sort(Batch(fields, [HOST] * 4), COLUMNS, ["src"])
    assert list(zip(ordered.fields["saddr"], ordered.fields["sport"], strict=True)) == [
        ("9.0.0.1", 20),
        ("9.0.0.1", 100),
        ("10.0.0.1", 1),
        ("::1", 1),
    ]


def test_column_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError):
        sort(batch(("a", 1)), COLUMNS, ["-colour"])


def test_batches_are_joined_in_their_order() -> None:
    parts = [batch(("b", 1)), batch(("a", 2), ("c", 3))]
    assert seen(joined(parts)) == [("b", 1), ("a", 2), ("c", 3)]
    assert len(joined([])) == 0


@pytest.mark.parametrize("count", [0, 2])
def test_snapshot_is_taken_again_until_it_is_enough(count: int) -> None:
    taken: list[int] = []
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    snapshot.repeat(2.0, lambda: taken.append(1), wait, count)
    assert len(taken) == (count or 3)
    assert all(0 < seconds <= 2 for seconds in waits)


def test_columns_that_need_an_option_turn_it_on() -> None:
    asked = snapshot.asked_by_columns({"proto": "tcp"}, [Column("pid"), Column("state")])
    assert asked == {"proto": "tcp", "processes": True, "info": False}
    assert snapshot.asked_by_columns({}, [Column("rtt")])["info"]


@pytest.mark.parametrize(("most", "rows"), [(2, [("c", 3), ("b", 1)]), (9, None), (None, None)])
def test_sorted_snapshot_has_the_first_rows(
    most: int | None, rows: list[tuple[str, int]] | None
) -> None:
    stage = Sort(COLUMNS, ["-name"], most)
    assert len(stage.feed(batch(("b", 1), ("a", 2)))) == 0
    stage.feed(batch(("c", 3)))
    assert seen(stage.flush()) == (rows or [("c", 3), ("b", 1), ("a", 2)])
    assert len(stage.flush()) == 0


class Pairs:
    """A stage that holds events until there are two; what it gives is numbered anew."""

    def __init__(self) -> None:
        self._held: list[Batch] = []

    def feed(self, given: Batch) -> Batch:
        self._held.append(given)
        return self.flush() if sum(map(len, self._held)) >= 2 else NOTHING

    def flush(self) -> Batch:
        held, self._held = joined(self._held), []
        return held


class Seen:
    """A sink that notes what it is told."""

    interval = 0.5

    def __init__(self) -> None:
        self.told: list[Any] = []

    def open(self) -> None:
        self.told.append("open")

    def write(self, given: Batch) -> None:
        self.told.append(seen(given))

    def tick(self, now: int) -> None:
        self.told.append(now)

    def lost(self, counts: Mapping[str, int]) -> None:
        self.told.append(counts)

    def close(self) -> None:
        self.told.append("close")


def test_chain_flushes_each_stage_through_those_after_it() -> None:
    sink, limit = Seen(), Limit(4)
    numbers = Filter(lambda given: [number < 9 for number in given.fields["number"]])
    chain = Chain([numbers, limit, Pairs(), Sort(COLUMNS, ["-number"])], sink)
    assert chain.interval == sink.interval
    chain.open()
    for number in (1, 9, 2, 3):
        chain.write(batch(("a", number)))
    chain.tick(17)
    chain.lost({"cause": 1})
    chain.write(batch(("a", 4), ("a", 5)))
    chain.close()
    first, second = [("a", 3), ("a", 2), ("a", 1)], [("a", 4)]
    assert sink.told == ["open", first, 17, {"cause": 1}, second, "close"]
    assert limit.reached()


def test_stage_that_withholds_counts_what_it_leaves_out() -> None:
    stage = Withhold(COLUMNS[1])
    assert seen(stage.feed(batch(("a", 0), ("b", 2), ("c", 0)))) == [("a", 0), ("c", 0)]
    assert stage.count == 1
