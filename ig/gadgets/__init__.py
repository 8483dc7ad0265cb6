"""The gadgets: every module here that has a `GADGET`, and those that other packages offer."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from ig.gadget import GROUP, Gadget


@cache
def declared() -> dict[str, Gadget]:
    """Give all gadgets by name, the built-in ones first."""
    found: dict[str, Gadget] = {}
    for gadget in _declarations():
        found.setdefault(gadget.name, gadget)
    return found


def _declarations() -> Iterator[Gadget]:
    for module in pkgutil.iter_modules(__path__):
        yield import_module(f"{__name__}.{module.name}").GADGET
    for entry in entry_points(group=GROUP):
        gadget = entry.load()
        if isinstance(gadget, Gadget):
            yield gadget
