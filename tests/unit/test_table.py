import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig import output
from ig.containers.container import HOST
from ig.errors import UsageError
from ig.gadget import Batch, Column, Kind
from ig.output.text import display_width
from tests.unit.output_samples import COLUMNS, events, named, strings

SHOWN = output.shown_columns(COLUMNS, {})
WITH_LATENCY = output.shown_columns(COLUMNS, {"latency": True})
LONG = "a-very-long-container-name-that-goes-on-and-on"


def table(batch: Batch, width: int | None, shown: tuple[Column, ...] = SHOWN) -> list[str]:
    made = output.formatter("columns", COLUMNS, shown, width=width)
    return (made.header() + made.format(batch) + made.footer()).splitlines()


def test_a_table_stands_under_its_headings() -> None:
    assert table(events({}, {"comm": "nc", "latency": 0}), None, WITH_LATENCY) == [
        "RUNTIME.CONTAINERNAME    COMM             PID      IP SRC                    "
        "DST                         LATENCY",
        "web                      wget             750625   4  172.17.0.2:39664       "
        "93.184.215.14:443          47.069µs",
        "web                      nc               750625   4  172.17.0.2:39664       "
        "93.184.215.14:443                  ",
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
    assert names == ["pid", "comm", "containername", "dst.addr", "timestamp"]


@pytest.mark.parametrize("mode", ["json", "jsonl", "jsonpretty", "yaml", "csv", "columns"])
def test_modes_are_known(mode: str) -> None:
    assert output.parse_output(mode, COLUMNS) == (mode, SHOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns=pidd", r"(?s)'pidd'.*Known columns: timestamp, runtime,.*mean 'pid'"),
        ("columns=", "no column ''"),
        ("columns=pid,,comm", "no column ''"),
        ("jsno", "(?s)'jsno'.*columns, custom-columns, json, .*mean 'json'"),
        ("json=pid", "(?s)'json' takes no list.*columns=pid"),
        ("", "no output mode ''"),
    ],
)
def test_what_makes_no_sense_is_told_with_what_would(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        output.parse_output(text, COLUMNS)


def test_without_a_terminal_nothing_is_shortened() -> None:
    long = events(
        {"version": 6, "daddr": "2001:db8:85a3:1111:2222:8a2e:370:7334"}, owners=[named(LONG)]
    )
    row = table(long, None)[1]
    assert LONG in row
    assert "[2001:db8:85a3:1111:2222:8a2e:370:7334]:443" in row


@pytest.mark.parametrize("width", range(60, 240, 7))
def test_in_a_terminal_rows_fit_and_ports_stay_visible(width: int) -> None:
    hostile = events(
        {
            "version": 6,
            "saddr": "2001:db8:85a3:1111:2222:8a2e:370:7334",
            "daddr": "::1",
            "comm": "a" * 15,
        },
        {"version": 4, "saddr": "192.168.100.200", "sport": 65535, "comm": "\x1b" * 15},
        owners=[named(LONG), named("\u732b" * 60)],
    )
    rows = table(hostile, width)
    assert all(display_width(row) <= width for row in rows)
    assert ":39664 " in rows[1]
    assert ":65535 " in rows[2]
    assert " 750625 " in rows[1]


def test_a_wide_terminal_shows_more_of_what_is_long() -> None:
    batch = events({}, owners=[named(LONG)])
    shown = [table(batch, width)[1].split(" ")[0] for width in (70, 100, 130, 250)]
    assert [len(name) for name in shown] == sorted(len(name) for name in shown)
    assert shown[0].endswith("…")
    assert shown[3] == LONG


def test_a_wide_terminal_shows_the_longest_endpoint() -> None:
    address = "2001:db8:85a3:1111:2222:8a2e:1370:7334"
    batch = events({"version": 6, "saddr": address, "daddr": address, "sport": 65535})
    assert f"[{address}]:65535 " in table(batch, 250)[1]


def test_ports_stay_visible_however_narrow_the_terminal_is() -> None:
    row = table(events({"saddr": "192.168.100.200", "sport": 65535}), 20)[1]
    assert "192…00:65535 " in row


def test_a_short_table_does_not_spread_over_a_wide_terminal() -> None:
    assert len(table(events({}), 1000)[1]) < 250


def test_double_width_names_keep_the_columns_aligned() -> None:
    batch = events({}, {}, {}, owners=[named("web"), named("猫猫猫"), named("猫" * 40)])
    rows = table(batch, 100)
    assert len({display_width(row.split("wget", maxsplit=1)[0]) for row in rows[1:]}) == 1


def test_a_name_of_invalid_bytes_is_shown_as_escapes() -> None:
    assert "a\\xffb" in table(events({"comm": "a\udcffb"}), 100)[1]


def test_numbers_and_times_are_never_cut() -> None:
    columns = (
        Column("n", kind=Kind.INTEGER, width=2),
        Column("timestamp", kind=Kind.TIMESTAMP, width=4),
    )
    batch = Batch({"n": [123456], "timestamp": [10**9]}, [HOST])
    text = output.formatter("columns", columns, columns, width=10).format(batch)
    assert text == "123456 1970-01-01T00:00:01.000000000Z\n"


def test_an_empty_batch_has_no_text() -> None:
    assert output.formatter("columns", COLUMNS, SHOWN, width=80).format(events()) == ""


@given(
    st.lists(st.text(st.characters(exclude_categories=())), min_size=1),
    st.none() | st.integers(1, 99),
)
def test_any_text_is_one_row(values: list[str], width: int | None) -> None:
    columns, batch = strings(*values)
    columns = (*columns, Column("end", read=lambda batch: ["|"] * len(batch)))
    text = output.formatter("columns", columns, columns, width=width).format(batch)
    assert text.count("\n") == len(values)
    assert all(row.isprintable() and row.endswith("|") for row in text.split("\n")[:-1])


@given(st.sets(st.sampled_from(range(len(COLUMNS))), min_size=1), st.integers(1, 400))
def test_any_columns_fit_unless_their_least_widths_do_not(places: set[int], width: int) -> None:
    shown = tuple(COLUMNS[place] for place in sorted(places))
    rows = table(events({}, owners=[named(LONG)]), width, shown)
    least = len("\n".join(table(events({}, owners=[named(LONG)]), 1, shown)[:1]))
    assert display_width(rows[0]) <= max(width, least)
