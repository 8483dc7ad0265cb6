"""The tables of docs/kernels.md."""

from __future__ import annotations

import pytest

from ig.causes.cause import KINDS, LIKELY, SEEN
from tests.kernels.results import Result, causes, joined, markdown, merged, parse, turned

HEAD = ["kernel", "date", "trace bind"]
OLD = [
    HEAD,
    ["5.10.0-32-amd64", "2026-11-20", "27 passed"],
    ["6.12.107+deb13-amd64", "2026-11-20", "28 passed"],
    ["5.10.0-32-amd64 ig.cgroup=v1", "2026-11-20", "-"],
]


def test_rows_of_other_kernels_stay_and_those_of_an_older_release_go() -> None:
    new = [
        HEAD,
        ["6.1.0-50-amd64", "2026-11-26", "1 FAILED"],
        ["5.10.0-33-amd64", "2026-11-26", "-"],
    ]
    assert [row[:2] for row in merged(OLD, new)] == [
        ["kernel", "date"],
        ["5.10.0-33-amd64", "2026-11-26"],
        ["6.1.0-50-amd64", "2026-11-26"],
        ["6.12.107+deb13-amd64", "2026-11-20"],
        ["5.10.0-32-amd64 ig.cgroup=v1", "2026-11-20"],
    ]


def test_table_of_other_columns_is_replaced() -> None:
    new = [[*HEAD, "other"], ["6.1.0-50-amd64", "2026-11-26", "-", "-"]]
    assert merged(OLD, new) == new
    assert merged([], new) == new


@pytest.mark.parametrize(
    ("old", "new", "both"),
    [
        ("-", "-", "-"),
        ("-", "skipped", "skipped"),
        ("likely", "skipped", "likely"),
        ("seen", "-", "seen"),
        ("likely", "seen", "seen, likely"),
        ("seen, likely", "likely", "seen, likely"),
        ("FAILED", "likely", "likely"),
        ("FAILED", "-", "FAILED"),
        ("seen", "FAILED", "FAILED"),
    ],
)
def test_causes_that_chosen_tests_show_are_added_to_those_of_before(
    old: str, new: str, both: str
) -> None:
    before = [HEAD, ["5.10.0-32-amd64", "2026-11-20", old]]
    now = [HEAD, ["5.10.0-33-amd64", "2026-11-26", new], ["7.2", "2026-11-26", new]]
    assert joined(before, now)[1:] == [["5.10.0-33-amd64", "2026-11-26", both], now[2]]
    assert joined([], now) == now


def test_table_is_read_as_it_was_written() -> None:
    assert parse(f"before\n\n{markdown(OLD)}\n\nafter") == OLD
    assert parse("") == turned([]) == []


def test_causes_are_a_row_for_each_kind_and_a_column_for_each_kernel() -> None:
    first, second = list(KINDS)[:2]
    results = [
        Result("a", "passed", (first,), frozenset({f"{first} {LIKELY}", f"{first} {SEEN}"})),
        Result("b", "failed", (second,)),
    ]
    table = turned(causes({"5.10.0-32-amd64": results, "7.2": []}, "2026-11-26"))
    assert [list(row) for row in table[:4]] == [
        ["cause", "5.10.0-32-amd64", "7.2"],
        ["date", "2026-11-26", "2026-11-26"],
        [f"`{first}`", f"{SEEN}, {LIKELY}", "-"],
        [f"`{second}`", "FAILED", "-"],
    ]
