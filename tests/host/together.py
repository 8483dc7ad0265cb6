"""Cases of a test, several at once: a start of the command waits, or computes on one processor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Case = TypeVar("Case")
Value = TypeVar("Value")

AT_ONCE = min(8, max(2, os.cpu_count() or 1))
"""As many as still end well within the limits of tests when they only compute."""


def together(
    check: Callable[[Case], Value], cases: Iterable[Case], at_once: int = AT_ONCE
) -> dict[Case, Value]:
    """Return what `check` returns for each case; raise AssertionError with a case that failed."""
    with ThreadPoolExecutor(at_once) as several:
        done = {case: several.submit(check, case) for case in cases}
    for case, future in done.items():
        if error := future.exception():
            raise AssertionError(f"{case!r}: {error!r}") from error
    return {case: future.result() for case, future in done.items()}
