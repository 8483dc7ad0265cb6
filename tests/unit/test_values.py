import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.errors import UsageError
from ig.values import (
    CONVERSIONS,
    MILLISECOND,
    SECOND,
    format_duration,
    format_durations,
    format_milliseconds,
    parse_duration,
)

AS_GO_PRINTS = [
    (0, "0s"),
    (1, "1ns"),
    (999, "999ns"),
    (1_000, "1µs"),
    (47_069, "47.069µs"),
    (47_060, "47.06µs"),
    (999_999, "999.999µs"),
    (1_000_000, "1ms"),
    (7_820_966, "7.820966ms"),
    (100_000_000, "100ms"),
    (999_999_999, "999.999999ms"),
    (1_006_814_808, "1.006814808s"),
    (10_000_000_000, "10s"),
    (62_500_000_000, "1m2.5s"),
    (120_000_000_000, "2m0s"),
    (3_600_000_000_000, "1h0m0s"),
    (5_400_000_000_001, "1h30m0.000000001s"),
    (-1_500_000, "-1.5ms"),
]


@pytest.mark.parametrize(("nanoseconds", "text"), AS_GO_PRINTS)
def test_durations_print_as_go_prints_them(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text


@given(st.lists(st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 2_000_000_000))))
def test_column_of_durations_prints_as_each_alone_but_for_zero(values: list[int]) -> None:
    assert format_durations(values) == [format_duration(n) if n else "" for n in values]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "-"),
        (1, "0.000ms"),
        (84_908, "0.085ms"),
        (14_149_828, "14.150ms"),
        (999_999_499, "999.999ms"),
        (999_999_500, "1.000s"),
        (1_011_430_681, "1.011s"),
        (127_000_000_000, "127.000s"),
    ],
)
def test_durations_in_tables_have_one_unit_below_a_second_and_one_above(
    nanoseconds: int, text: str
) -> None:
    assert format_milliseconds([nanoseconds]) == [text]


@given(st.integers(0, 2**63 - 1))
def test_duration_that_is_printed_is_read_back(nanoseconds: int) -> None:
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("10ms", 10_000_000),
        ("1.5s", 1_500_000_000),
        ("2m", 120_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("3us", 3_000),
        ("3µs", 3_000),
        ("3\u03bcs", 3_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        (" 7ns ", 7),
        ("0.1234567891s", 123_456_789),
    ],
)
def test_durations_are_read(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "10",
        "1.5",
        "ms",
        ".s",
        "-1s",
        "1s2",
        "1 s",
        "10 parsecs",
        "1e3s",
        "٣s",
        "300000000h",
    ],
)
def test_duration_that_is_invalid_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"10ms, 1\.5s or 1h30m"):
        parse_duration(text)


def test_duration_without_a_unit_counts_in_the_one_that_is_named() -> None:
    assert parse_duration("50", MILLISECOND) == 50_000_000
    assert parse_duration("1.5", SECOND) == 1_500_000_000
    assert parse_duration("2m", SECOND) == 120_000_000_000


def test_duration_without_a_unit_is_refused_with_units() -> None:
    with pytest.raises(UsageError, match="10ms or 10s"):
        parse_duration("10")


@given(st.text(alphabet="0123456789.nuµmsh-+ e", max_size=100) | st.text())
def test_duration_of_any_text_is_one_or_a_usage_error(text: str) -> None:
    message = ""
    try:
        assert 0 <= parse_duration(text) < 2**63
    except UsageError as error:
        message = str(error)
    assert len(message) < 500


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("seconds", "1s", 1.0),
        ("seconds", "50ms", 0.05),
        ("seconds", "0", 0.0),
        ("seconds", "90", 90.0),
        ("seconds", "2m", 120.0),
        ("interval", "0.5", 0.5),
        ("duration", "50", 50_000_000),
        ("duration", "1.5s", 1_500_000_000),
        ("port", "http", 80),
        ("ports", "80,https", [80, 443]),
        ("uid", "root", 0),
        ("uid", "1000", 1000),
    ],
)
def test_option_values_have_a_unit_or_a_name_or_are_bare_numbers(
    kind: str, text: str, value: object
) -> None:
    assert CONVERSIONS[kind](text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("seconds", "soon", "Invalid duration 'soon'"),
        ("seconds", "-1", "negative"),
        ("interval", "10ms", "(?s)'10ms': too short.*0.1 seconds"),
        ("port", "no-such-service", "(?s)Invalid port.*http"),
        ("port", "65536", "Invalid port"),
        ("port", "80,443", "(?s)Invalid port '80,443'.*-F dst.port==80,443"),
        ("ports", "80,", "Invalid port"),
        ("uid", "nobody-there", "Unknown user 'nobody-there'"),
        ("count", 0, "Invalid count 0"),
    ],
)
def test_option_values_that_are_invalid_are_refused(kind: str, text: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CONVERSIONS[kind](text)
