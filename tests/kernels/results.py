"""What the tests of a kernel have shown, by their JUnit report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate

from ig.causes.cause import KINDS, LIKELY, SEEN


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


def causes(kernels: Mapping[str, Sequence[Result]]) -> str:
    """Return the table of the kinds of causes that each kernel has shown."""
    rows = [(f"`{kind}`", *(_cell(kind, each) for each in kernels.values())) for kind in KINDS]
    return tabulate(rows, ("cause", *kernels), tablefmt="github", disable_numparse=True)


def _cell(kind: str, results: Iterable[Result]) -> str:
    """Return how a kind was shown; that all tests of it were skipped, or that one failed."""
    showing = [each for each in results if kind in each.shows]
    outcomes = {each.outcome for each in showing}
    if "failed" in outcomes:
        return "FAILED"
    found = {cause for each in showing for cause in each.causes if each.outcome == "passed"}
    shown = [each for each in (SEEN, LIKELY) if f"{kind} {each}" in found]
    return ", ".join(shown) or ("skipped" if outcomes == {"skipped"} else "-")
