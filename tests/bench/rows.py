"""Measurements with their targets, as a table in which missed ones are marked."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate


class NotMeasured(SystemExit):
    """A program under test or a load failed; uncaught, it ends the benchmark."""


@dataclass(frozen=True)
class Row:
    """A measurement."""

    what: str
    unit: str
    found: Sequence[float]
    """The values, in that unit."""
    at_most: float | None = None
    """The target, which no value may exceed."""
    detail: str = ""
    """Shown in parentheses."""

    def cells(self) -> tuple[str, str, str]:
        """Return the cells of the table; values above the target are marked."""
        found = f"{', '.join(map(number, self.found))} {self.unit}"
        if self.detail:
            found += f" ({self.detail})"
        if self.at_most is None:
            return self.what, "", found
        # Compare as printed: the mark must not contradict the numbers beside it.
        missed = any(float(number(each)) > float(number(self.at_most)) for each in self.found)
        return self.what, f"{number(self.at_most)} {self.unit}", found + " MISSED" * missed


def number(value: float) -> str:
    """Return a number with three significant figures, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.001 else "0"


def show(rows: Iterable[Row]) -> None:
    """Print each row to stderr as soon as it is measured, and the table at the end."""
    print(f"{platform.node()}, {os.cpu_count()} CPUs, Linux {platform.release()}")
    known = []
    for row in rows:
        what, _, found = cells = row.cells()
        print(f"{what}: {found}", file=sys.stderr)
        known.append(cells)
    print(tabulate(known, ("what", "at most", "found"), tablefmt="github", disable_numparse=True))
