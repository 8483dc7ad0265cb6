"""How a command's events are shown: what its options need to know."""

from __future__ import annotations

from typing import Any

import pytest

from ig.commands.display import DisplayOptions
from ig.gadgets import declared

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
