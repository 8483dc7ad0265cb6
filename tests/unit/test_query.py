"""Snapshots are put in the order that was asked for, cut in portions, and repeated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.columns import integer
from ig.commands import snapshot
from ig.container import HOST, Container
from ig.errors import UsageError
from ig.gadget import Batch, Column
from ig.query import first, sort

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
def test_many_distinct_values_are_told_apart(rows: list[tuple[int, ...]]) -> None:
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


def test_a_column_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError):
        sort(batch(("a", 1)), COLUMNS, ["-colour"])


@given(st.integers(0, 20), st.integers(1, 7))
def test_portions_have_all_rows(count: int, size: int) -> None:
    rows = [(str(number), number) for number in range(count)]
    parts = list(snapshot.portions(batch(*rows), size))
    assert [row for part in parts for row in seen(part)] == rows
    assert all(0 < len(part) <= size for part in parts)


def test_a_snapshot_is_taken_again_until_it_is_enough() -> None:
    shown: list[Batch] = []
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    snapshot.watch(2.0, batch, shown.append, wait)
    assert len(shown) == 3
    assert all(0 < seconds <= 2 for seconds in waits)


def test_columns_that_need_an_option_turn_it_on() -> None:
    asked = snapshot.asked_by_columns({"proto": "tcp"}, [Column("pid"), Column("state")])
    assert asked == {"proto": "tcp", "processes": True, "info": False}
    assert snapshot.asked_by_columns({}, [Column("rtt")])["info"]


def test_only_so_many_rows_are_the_first_of_the_order() -> None:
    rows = [("b", 1), ("a", 2), ("c", 3)]
    assert seen(first(batch(*rows), COLUMNS, ["-name"], 2)) == [("c", 3), ("b", 1)]
    assert len(first(batch(*rows), COLUMNS, ["name"], 9)) == 3
    assert len(first(batch(*rows), COLUMNS, ["name"], None)) == 3
