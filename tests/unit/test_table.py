from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig import output
from ig.container import HOST
from ig.errors import UsageError
from ig.gadget import Batch, Column, Kind
from ig.output.layout import Screen
from ig.output.text import display_width
from tests.unit.output_samples import COLUMNS, events, named, strings

SHOWN = output.shown_columns(COLUMNS, {})
WITH_LATENCY = output.shown_columns(COLUMNS, {"latency": True})
LONG = "a-very-long-container-name-that-goes-on-and-on"


def table(
    batch: Batch,
    width: int | None,
    shown: tuple[Column, ...] = SHOWN,
    *,
    sized: bool = False,
    **options: Any,
) -> list[str]:
    """Return a table's lines; with `sized` its columns are as wide as the batch needs."""
    made = output.formatter("columns", COLUMNS, shown, screen=lambda: Screen(width), **options)
    return (made.header(batch if sized else None) + made.format(batch)).splitlines()


def test_table_stands_under_its_headings() -> None:
    assert table(events({}, {"comm": "nc", "latency": 0}), None, WITH_LATENCY) == [
        "RUNTIME.CONTAINERNAME    COMM             PID      IP SRC                    "
        "DST                         LATENCY",
        "web                      wget             750625   4  172.17.0.2:39664       "
        "93.184.215.14:443           0.047ms",
        "web                      nc               750625   4  172.17.0.2:39664       "
        "93.184.215.14:443                 -",
    ]


def test_columns_are_shown_by_default_by_option_or_by_name() -> None:
    assert [column.name for column in SHOWN] == ["containername", "comm", "pid", "ip", "src", "dst"]
    assert [column.name for column in WITH_LATENCY] == [*(c.name for c in SHOWN), "latency"]
    assert output.parse_output("columns", COLUMNS) == ("columns", SHOWN)
    assert output.parse_output("columns", COLUMNS, WITH_LATENCY) == ("columns", WITH_LATENCY)
    mode, shown = output.parse_output(
        "custom-columns=PID, proc.comm,runtime.containerName,daddr,timestamp_raw", COLUMNS
    )
    assert mode == "columns"
    names = [column.name for column in shown]
    assert names == ["pid", "comm", "containername", "dst.addr", "timestamp_raw"]


@pytest.mark.parametrize("mode", ["json", "jsonl", "jsonpretty", "yaml", "csv", "columns"])
def test_modes_are_known(mode: str) -> None:
    assert output.parse_output(mode, COLUMNS) == (mode, SHOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns=pidd", r"(?s)'pidd'.*Known columns: timestamp, runtime,.*mean 'pid'"),
        ("columns=", "Unknown column ''"),
        ("columns=pid,,comm", "Unknown column ''"),
        ("jsno", "(?s)'jsno'.*columns, custom-columns, json, .*mean 'json'"),
        ("json=pid", "(?s)'json' does not accept a list.*columns=pid"),
        ("", "Unknown output mode ''"),
    ],
)
def test_output_option_that_is_invalid_is_refused_with_what_is_valid(
    text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        output.parse_output(text, COLUMNS)


def test_without_a_terminal_nothing_is_shortened() -> None:
    long = events(
        {"version": 6, "daddr": "2001:db8:85a3:1111:2222:8a2e:370:7334"}, owners=[named(LONG)]
    )
    row = table(long, None)[1]
    assert LONG in row
    assert "[2001:db8:85a3:1111:2222:8a2e:370:7334]:443" in row


IPV6 = "2001:db8:85a3:1111:2222:8a2e:1370:7334"
HOSTILE = events(
    {"version": 6, "saddr": IPV6, "daddr": IPV6, "sport": 65535, "comm": "a" * 15},
    {"version": 4, "saddr": "192.168.100.200", "sport": 65535, "comm": "\x1b" * 15},
    owners=[
        named("a-very-long-name-of-sixty-characters-for-one-of-many-replica-12"),
        named("猫" * 60),
    ],
)


@pytest.mark.parametrize("width", [*range(76, 240, 7), 80, 120])
@pytest.mark.parametrize("shown", [SHOWN, WITH_LATENCY], ids=["short", "latency"])
def test_in_a_terminal_rows_fit_and_no_address_is_cut(
    width: int, shown: tuple[Column, ...]
) -> None:
    rows = table(HOSTILE, width, shown)
    assert all(display_width(row) <= width for row in rows)
    assert f"[{IPV6}]:443" in rows[-2]
    assert "93.184.215.14:443" in rows[-1]
    assert "…" in rows[-2] or width > 150


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (110, "RUNTIME.CONTAINERNAME COMM PID IP SRC DST LATENCY"),
        (85, "CONTAINE… COMM PID SRC DST LATENCY"),
        (80, "CONTAINERNAME COMM PID DST LATENCY"),
        (60, "CONTAINERNAME COMM DST LATENCY"),
        (50, "CONTAINERNAME DST LATENCY"),
        (40, "CONTAINERNAME DST"),
        (30, "RUNTIME.CONTAINERNAME"),
    ],
)
def test_in_a_narrow_terminal_columns_go_in_their_declared_order(width: int, headings: str) -> None:
    assert table(events({}), width, WITH_LATENCY)[0].split() == headings.split()


def test_columns_that_were_asked_for_stay_however_narrow_the_terminal_is() -> None:
    assert len(table(events({}), 20, WITH_LATENCY, keep=True)[0].split()) == len(WITH_LATENCY)


def test_name_grows_where_there_is_room_and_keeps_both_ends_where_there_is_none() -> None:
    batch = events({}, owners=[named(LONG)])
    shown = [table(batch, width)[-1].split(" ")[0] for width in (70, 100, 130, 250)]
    assert [len(name) for name in shown] == sorted(len(name) for name in shown)
    assert "…" in shown[0]
    assert (shown[0][:5], shown[0][-3:]) == (LONG[:5], LONG[-3:])
    assert shown[3] == LONG


def test_name_of_an_end_is_whole_where_there_is_room_and_its_port_stays() -> None:
    end = "c/ux-averylongname-of-a-replica-12:36352"
    ends = (Column("dst", width=22), Column("dst.port", kind=Kind.INTEGER), Column("n", width=40))
    batch = Batch({"dst": [end], "dst.port": [36352], "n": ["x" * 40]}, [HOST])
    for width, text in ((100, end), (63, "c/ux-ave…lica-12:36352")):
        screen = partial(Screen, width)
        made = output.formatter("columns", ends, (ends[0], ends[2]), screen=screen)
        assert made.format(batch).splitlines()[-1].split()[0] == text


def test_address_that_is_longer_than_those_before_brings_a_new_heading() -> None:
    made = output.formatter("columns", COLUMNS, SHOWN, screen=lambda: Screen(80, 24))
    assert made.header().split() == ["CONTAINERNAME", "COMM", "PID", "IP", "SRC", "DST"]
    assert len(made.format(events({}, {})).splitlines()) == 2
    heading, row = made.format(events({"version": 6, "daddr": IPV6})).splitlines()
    assert heading.split() == ["CONTAINERNAME", "COMM", "PID", "DST"]
    assert row.endswith(f" [{IPV6}]:443")
    assert len(made.format(events({}, {})).splitlines()) == 2


def test_heading_comes_again_after_each_screenful_and_after_a_resize() -> None:
    screen = Screen(120, 10)
    made = output.formatter("columns", COLUMNS, SHOWN, screen=lambda: screen)
    text = made.header() + made.format(events(*[{}] * 20))
    lines = text.splitlines()
    assert [place for place, line in enumerate(lines) if "DST" in line] == [0, 9, 18]
    screen = Screen(60, 10)
    assert made.format(events({})).splitlines()[0].split() == [
        "CONTAINERNAME",
        "COMM",
        "PID",
        "DST",
    ]
    plain = output.formatter("columns", COLUMNS, SHOWN, screen=lambda: screen, heading=False)
    assert "DST" not in plain.header() + plain.format(events(*[{}] * 40))


def test_finite_table_is_as_wide_as_its_content() -> None:
    for width in (None, 200):
        assert table(events({}), width, sized=True) == [
            "RUNTIME.CONTAINERNAME COMM PID    IP SRC              DST",
            "web                   wget 750625 4  172.17.0.2:39664 93.184.215.14:443",
        ]
    rows = table(HOSTILE, 120, sized=True)
    assert all(display_width(row) <= 120 for row in rows)


def test_what_there_is_not_is_a_dash_and_the_host_is_named() -> None:
    _, shown = output.parse_output(
        "columns=containername,runtime,comm,pid,uid,latency,timestamp", COLUMNS
    )
    nothing = events({"comm": "", "pid": 0, "latency": 0, "timestamp": 0}, owners=[HOST])
    assert table(nothing, None, shown)[1].split() == ["host", "-", "-", "-", "0", "-", "-"]
    assert table(nothing, 200, shown)[1].split() == ["host", "-", "-", "-", "0", "-", "-"]


def test_rows_are_coloured_by_what_their_columns_say() -> None:
    kinds = ["", "failure", "warning"]
    columns = (Column("n", kind=Kind.INTEGER, width=1, style=lambda batch: kinds[: len(batch)]),)
    batch = Batch({"n": [1, 2, 3]}, [HOST] * 3)
    for width in (None, 80):
        made = output.formatter(
            "columns", columns, columns, color=True, screen=partial(Screen, width)
        )
        assert made.format(batch) == "1\n\x1b[31m2\x1b[0m\n\x1b[33m3\x1b[0m\n"
    assert "\x1b" not in output.formatter("columns", columns, columns).format(batch)


def test_double_width_names_keep_the_columns_aligned() -> None:
    batch = events({}, {}, {}, owners=[named("web"), named("猫猫猫"), named("猫" * 40)])
    rows = table(batch, 100)
    assert len({display_width(row.split("wget", maxsplit=1)[0]) for row in rows[1:]}) == 1


def test_name_of_invalid_bytes_is_shown_as_escapes() -> None:
    assert "a\\xffb" in table(events({"comm": "a\udcffb"}), 100)[1]


def test_numbers_and_times_are_never_cut() -> None:
    columns = (
        Column("n", kind=Kind.INTEGER, width=2),
        Column("timestamp", kind=Kind.TIMESTAMP, width=4),
    )
    batch = Batch({"n": [123456], "timestamp": [10**9]}, [HOST])
    text = output.formatter(
        "columns", columns, columns, screen=lambda: Screen(10), keep=True
    ).format(batch)
    assert text == "123456 1970-01-01T00:00:01.000000000Z\n"


def test_empty_batch_has_no_text() -> None:
    assert (
        output.formatter("columns", COLUMNS, SHOWN, screen=lambda: Screen(80)).format(events())
        == ""
    )


@given(
    st.lists(st.text(st.characters(exclude_categories=())), min_size=1),
    st.none() | st.integers(1, 99),
)
def test_any_text_is_one_row(values: list[str], width: int | None) -> None:
    columns, batch = strings(*values)
    columns = (*columns, Column("end", read=lambda batch: ["|"] * len(batch)))
    text = output.formatter(
        "columns", columns, columns, screen=lambda: Screen(width), keep=True
    ).format(batch)
    assert text.count("\n") == len(values)
    assert all(row.isprintable() and row.endswith("|") for row in text.split("\n")[:-1])


@given(st.sets(st.sampled_from(range(len(COLUMNS))), min_size=1), st.integers(40, 400))
def test_any_columns_fit(places: set[int], width: int) -> None:
    shown = tuple(COLUMNS[place] for place in sorted(places))
    rows = table(events({}, owners=[named(LONG)]), width, shown)
    assert all(display_width(row) <= width for row in rows)


def test_columns_are_added_to_and_taken_from_the_usual_ones() -> None:
    _, shown = output.parse_output("columns=+error,-ip,-src,+comm", COLUMNS)
    assert [column.name for column in shown] == ["containername", "comm", "pid", "dst", "error"]
    _, shown = output.parse_output("csv=-comm, +dst.port", COLUMNS)
    assert [column.name for column in shown][-2:] == ["dst", "dst.port"]
