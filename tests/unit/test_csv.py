import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig import output
from ig.gadget import Batch, Column, Kind
from ig.output.layout import Screen
from tests.unit.output_samples import COLUMNS, events, strings


def rows(columns: tuple[Column, ...], batch: Batch) -> list[list[str]]:
    made = output.formatter("csv", columns, columns, screen=lambda: Screen(80))
    text = made.header() + made.format(batch) + made.footer()
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_names_come_first_and_every_line_ends_with_crlf() -> None:
    _, shown = output.parse_output("csv=pid,dst,latency,timestamp,shared", COLUMNS)
    made = output.formatter("csv", COLUMNS, shown)
    assert made.header() == "pid,dst,latency,timestamp,shared\r\n"
    assert made.format(events({}, {"latency": 0, "shared": True})) == (
        "750625,93.184.215.14:443,47.069µs,2026-11-20T20:33:04.123456789Z,false\r\n"
        "750625,93.184.215.14:443,,2026-11-20T20:33:04.123456789Z,true\r\n"
    )
    assert made.format(events()) == ""


def test_raw_columns_are_numbers_under_their_own_names() -> None:
    _, shown = output.parse_output("csv=latency_raw,timestamp_raw,latency", COLUMNS)
    found = rows(shown, events({}, {"latency": 0}))
    assert found == [
        ["latency_raw", "timestamp_raw", "latency"],
        ["47069", "1795206784123456789", "47.069µs"],
        ["", "1795206784123456789", ""],
    ]


def test_line_of_names_can_be_left_out() -> None:
    columns, _ = strings()
    assert output.formatter("csv", columns, columns, heading=False).header() == ""


def test_commas_and_quotes_are_quoted() -> None:
    columns, batch = strings('a,"b"', "c")
    assert output.formatter("csv", columns, columns).format(batch) == '"a,""b"""\r\nc\r\n'


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_text_is_never_a_spreadsheets_formula(start: str) -> None:
    columns, batch = strings(f"{start}cmd|' /C calc'!A0")
    assert rows(columns, batch)[1] == [f"'{start}cmd|' /C calc'!A0"]


def test_negative_numbers_stay_numbers() -> None:
    column = Column("fd", kind=Kind.INTEGER)
    assert rows((column,), Batch({"fd": [-1]}, events({}).owners)) == [["fd"], ["-1"]]


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=9))
def test_any_text_is_one_printable_cell(values: list[str]) -> None:
    columns, batch = strings(*values)
    columns = (*columns, Column("end", read=lambda batch: ["|"] * len(batch)))
    found = rows(columns, batch)
    assert [row[1] for row in found] == ["end", *["|"] * len(values)]
    assert all(cell.isprintable() for row in found for cell in row)
    for row, value in zip(found[1:], values, strict=True):
        if value.isprintable():
            assert row[0].removeprefix("'") == value.removeprefix("'")
