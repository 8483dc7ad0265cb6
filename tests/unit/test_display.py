"""How a command's events are shown: what its options need to know."""

from __future__ import annotations

from typing import Any

import pytest

from ig.commands.display import DisplayOptions, time_column
from ig.container import HOST
from ig.gadget import Batch
from ig.gadgets import declared
from ig.output.layout import Screen
from ig.output.table import TableFormatter

TCPCONNECT = declared()["trace_tcpconnect"]


@pytest.mark.parametrize(
    ("options", "resolves"),
    [
        ({}, False),
        ({"filter": ["comm==nginx"]}, False),
        ({"filter": ["dst.port==443,comm==nginx"]}, False),
        ({"filter": ["dst.name==web"]}, True),
        ({"filter": ["comm==nginx", "dst.kind:pod"]}, True),
        ({"output": "json"}, True),
        ({"resolve": True}, True),
    ],
)
def test_far_ends_are_asked_for_only_where_they_are_used(
    options: dict[str, Any], resolves: bool
) -> None:
    assert DisplayOptions(TCPCONNECT, None, options).resolves == resolves


@pytest.mark.parametrize(
    ("expressions", "before", "after"),
    [
        ([], 0, 0),
        (["comm==nginx", "dst.port==443"], 1, 0),
        (["cause.kind==route"], 0, 1),
        (["comm==nginx", "cause~rule"], 1, 1),
        (["comm==nginx||cause.where~web"], 0, 1),
    ],
)
def test_filters_that_look_at_no_cause_come_before_causes_are_found(
    expressions: list[str], before: int, after: int
) -> None:
    display = DisplayOptions(TCPCONNECT, None, {"filter": expressions})
    assert tuple(map(len, display.around_causes())) == (before, after)


@pytest.mark.parametrize("width", [None, 80])
def test_time_since_the_row_before_is_right_where_a_table_is_sized_first(width: int | None) -> None:
    column = time_column("delta")
    assert column
    printed = []
    table = TableFormatter((column,), (column,), screen=lambda: Screen(width))
    for interval in ([1_000], [2_500, 2_500, 2_500], [2_750, 4_000]):
        times = [milliseconds * 1_000_000 for milliseconds in interval]
        batch = Batch({"timestamp": times}, [HOST] * len(times))
        table.header(batch)
        parts = (batch.part(0, 2), batch.part(2, 3)) if len(times) == 3 else (batch,)
        printed += "".join(map(table.format, parts)).split()
    assert printed == ["+0.000s", *["+1.500s"] * 3, "+0.250s", "+1.250s"]
