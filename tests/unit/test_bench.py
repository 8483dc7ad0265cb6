"""The arithmetic of `make bench`: what is marked as missed, and what counts as worse."""

from __future__ import annotations

import pytest

from tests.bench.compare import Comparison, Figure, wanted
from tests.bench.rows import Row, number

FIGURE = Figure("tcpconnect: CPU per event", "us", 1.03)


def compared(*ratios: float) -> Comparison:
    """Compare rounds of these ratios, on a machine whose pace changes from round to round."""
    base = [float(2 + turn % 3) for turn in range(len(ratios))]
    return Comparison(FIGURE, base, [each * by for each, by in zip(base, ratios, strict=True)])


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((1.0, 1.0, 1.0), ""),
        ((1.02, 1.03, 1.02), ""),
        ((1.04, 1.05, 1.06, 1.07), "WORSE"),
        ((0.9, 1.04, 1.05, 1.06, 1.3), "WORSE"),
        ((0.9, 0.95, 1.05, 1.06, 1.3), "unsure"),
        ((0.9, 0.95, 1.0, 1.3, 1.3), ""),
        ((0.96, 0.95, 0.94, 1.0, 0.94), "better"),
        ((0.99, 0.98, 0.99), ""),
        ((1.1,), "WORSE"),
        ((1.0,), ""),
    ],
)
def test_bench_a_figure_is_worse_where_its_limit_is_passed_beyond_the_spread(
    ratios: tuple[float, ...], verdict: str
) -> None:
    assert compared(*ratios).verdict == verdict


def test_bench_ratios_are_of_neighbouring_rounds_not_of_medians() -> None:
    comparison = Comparison(FIGURE, base=[1, 2, 10], now=[1.1, 2.2, 11])
    assert comparison.quartiles == pytest.approx((1.1, 1.1, 1.1))
    assert comparison.cells() == (
        "tcpconnect: CPU per event, us",
        "2",
        "2.2",
        "1.100 (1.100 to 1.100)",
        "1.03",
        "WORSE",
    )


@pytest.mark.parametrize(
    ("only", "found"),
    [("", True), ("cpu per", True), ("memory, CPU per event", True), ("memory", False)],
)
def test_bench_only_names_figures_by_part_of_their_names(only: str, found: bool) -> None:
    assert wanted(FIGURE, only) == found


def test_bench_targets_that_are_missed_are_marked() -> None:
    assert Row("resident", "MB", [37, 48.2], 90).cells() == ("resident", "90 MB", "37, 48.2 MB")
    assert Row("resident", "MB", [37, 91], 90).cells()[2] == "37, 91 MB MISSED"
    assert Row("time", "s", [0.6004], 0.6).cells()[2] == "0.6 s"
    assert Row("time", "s", [0.601], 0.6).cells()[2] == "0.601 s MISSED"
    assert Row("cost", "%", [9], 8, "7 to 10").cells()[2] == "9 % (7 to 10) MISSED"
    assert Row("name", "us", [9]).cells() == ("name", "", "9 us")


def test_bench_numbers_have_three_figures() -> None:
    values = [0, 0.00012, 0.0312, 1.2345, 15.25, 99.96, 123.4, 100003]
    assert list(map(number, values)) == [
        *("0", "0", "0.0312", "1.23", "15.2", "100", "123", "100003"),
    ]
