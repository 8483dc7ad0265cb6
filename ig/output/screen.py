"""The terminal that a table is shown on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ig.errors import UsageError

WHEN = ("auto", "always", "never")


class Screen(NamedTuple):
    """How much room there is now."""

    width: int | None = None
    """Cells of a row; None where rows may be of any length."""
    height: int = 0
    """Rows of the terminal; 0 where there is none."""


def watch(wide: bool = False) -> Callable[[], Screen]:
    """Return a function that returns stdout's screen as it is now.

    COLUMNS counts before the terminal's own width; with `wide` rows may be of any length.
    """
    told = os.environ.get("COLUMNS", "")
    fixed = int(told) if told.isdecimal() and len(told) < 6 else 0
    if not os.isatty(1):
        screen = Screen(None if wide else fixed or None)
        return lambda: screen

    def now() -> Screen:
        try:
            width, height = os.get_terminal_size(1)
        except OSError:  # it was hung up
            width = height = 0
        # A serial console reports 0 columns: its size is unknown.
        return Screen(None if wide else fixed or width or None, height)

    return now


def colored(when: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether rows are coloured: `always`, `never`, or `auto`, on terminals only.

    NO_COLOR (https://no-color.org) and TERM=dumb turn `auto` off. Raises UsageError.
    """
    if when not in WHEN:
        raise UsageError(
            f"There is no colouring {when[:64]!r}.", f"Known ones: {', '.join(WHEN)}", ""
        )
    if when == "auto":
        plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
        return os.isatty(1) and not plain
    return when == "always"
