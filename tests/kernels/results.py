"""What the tests of a kernel have shown, by their JUnit report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate

from ig.causes.cause import KINDS, LIKELY, SEEN

Table = Sequence[Sequence[str]]
"""Rows, of which the first is the head."""
NOTHING, SKIPPED, FAILED = "-", "skipped", "FAILED"
"""Cells of a kind of causes that tests have not shown."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one test."""

    name: str
    """Its module, or class, and its own."""
    outcome: str
    """passed, skipped or failed."""
    shows: tuple[str, ...] = ()
    """The kinds of causes that it is to show."""
    causes: frozenset[str] = frozenset()
    """The kinds of causes that it saw, each with its confidence."""


def read(report: Path) -> list[Result]:
    """Return the results of a report, none if it is not there."""
    if not report.exists():
        return []
    return [_result(case) for case in ElementTree.parse(report).iter("testcase")]


def _result(case: ElementTree.Element) -> Result:
    kinds = {child.tag for child in case} - {"properties"}
    outcome = "failed" if kinds & {"failure", "error"} else "skipped" if kinds else "passed"
    name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
    said = [(each.get("name"), each.get("value", "")) for each in case.iter("property")]
    shows = tuple(value for name, value in said if name == "shows")
    return Result(name, outcome, shows, frozenset(v for name, v in said if name == "cause"))


def causes(kernels: Mapping[str, Sequence[Result]], today: str) -> Table:
    """Return a row for each kernel: today's date, and how it has shown each kind of cause."""
    rows = [[name, today, *(_cell(kind, each) for kind in KINDS)] for name, each in kernels.items()]
    return [["cause", "date", *(f"`{kind}`" for kind in KINDS)], *rows]


def merged(old: Table, new: Table) -> Table:
    """Return a table whose rows are the new ones, and the old ones of other kernels."""
    if not old or list(old[0]) != list(new[0]):
        return new
    rows = {_series(row[0]): row for row in (*old[1:], *new[1:])}
    return [new[0], *(rows[name] for name in sorted(rows, key=_order))]


def joined(old: Table, new: Table) -> Table:
    """Return causes that chosen tests have shown, with those that were shown before."""
    if not old or list(old[0]) != list(new[0]):
        return new
    before = {_series(row[0]): row for row in old[1:]}
    pairs = [(before.get(_series(row[0]), row), row) for row in new[1:]]
    rows = [[*row[:2], *map(_joined, was[2:], row[2:])] for was, row in pairs]
    return [new[0], *rows]


def _joined(old: str, new: str) -> str:
    shown = [each for each in (SEEN, LIKELY) if each in {*old.split(", "), *new.split(", ")}]
    if new in (NOTHING, SKIPPED):
        return old if old != NOTHING else new
    return new if new == FAILED else ", ".join(shown)


def _series(kernel: str) -> str:
    """Return a kernel's version of two numbers, and how it is set up."""
    release, _, setup = kernel.partition(" ")
    return f"{'.'.join(release.split('.')[:2])} {setup}".strip()


def _order(series: str) -> tuple[bool, list[int]]:
    """Return what sorts kernels by version, those with a set-up of their own last."""
    version, _, setup = series.partition(" ")
    return bool(setup), [int(part) for part in version.split(".") if part.isdecimal()]


def parse(text: str) -> Table:
    """Return the cells of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not all(set(cell) <= {"-", ":"} and cell for cell in row)]


def markdown(table: Table) -> str:
    """Return a table as Markdown; the first row is its head."""
    return tabulate(table[1:], table[0], tablefmt="github", disable_numparse=True)


def turned(table: Table) -> Table:
    """Return a table with its rows as columns."""
    return list(zip(*table, strict=True))


def _cell(kind: str, results: Iterable[Result]) -> str:
    """Return how a kind was shown; that all tests of it were skipped, or that one failed."""
    showing = [each for each in results if kind in each.shows]
    outcomes = {each.outcome for each in showing}
    if "failed" in outcomes:
        return FAILED
    found = {cause for each in showing for cause in each.causes if each.outcome == "passed"}
    shown = [each for each in (SEEN, LIKELY) if f"{kind} {each}" in found]
    return ", ".join(shown) or (SKIPPED if outcomes == {"skipped"} else NOTHING)
