"""Wait, with a bound, for what tells nobody when it happens."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

PATIENCE = float(os.environ.get("IG_TESTS_PATIENCE", "30"))
"""Seconds that anything may take on a slow, busy machine before it counts as not happening."""

EMULATED = "IG_TESTS_PATIENCE" in os.environ
"""Whether this is an emulated kernel, where a container takes four seconds to start."""


def until(condition: Callable[[], Value], what: str, seconds: float = PATIENCE) -> Value:
    """Return the condition's first true value; raise TimeoutError with `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.01)
    return value
