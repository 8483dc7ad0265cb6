"""The gadgets: every module here that has a `GADGET`, and those that other packages offer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module, util

from ig.gadget import GROUP, Gadget


def of_command(words: Sequence[str]) -> dict[str, Gadget]:
    """Return the gadget of this package with that command, by name; nothing if there is none.

    No other gadget is imported: `trace bind` is that of the module `trace_bind`.
    """
    name = "_".join(words)
    if not name.isidentifier() or util.find_spec(f"{__name__}.{name}") is None:
        return {}
    gadget: Gadget = import_module(f"{__name__}.{name}").GADGET
    return {gadget.name: gadget} if gadget.command == tuple(words) else {}


def _built_in() -> dict[str, Gadget]:
    """Return the gadgets of this package by name."""
    import pkgutil

    modules = [import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]
    return {module.GADGET.name: module.GADGET for module in modules}


@cache
def declared() -> dict[str, Gadget]:
    """Return all gadgets by name, the built-in ones first."""
    found = _built_in()
    for gadget in _offered():
        found.setdefault(gadget.name, gadget)
    return found


def _offered() -> Iterator[Gadget]:
    if not any(map(_may_offer, sys.path)):
        return
    from importlib.metadata import entry_points  # takes as long as all gadgets

    for entry in entry_points(group=GROUP):
        gadget = entry.load()
        if isinstance(gadget, Gadget):
            yield gadget


def _may_offer(folder: str) -> bool:
    """Return whether a package in a folder may have entry points of our group."""
    try:
        names = os.listdir(folder or ".")
    except NotADirectoryError:  # an archive
        return True
    except OSError:
        return False
    return any(_has_entries(f"{folder or '.'}/{name}") for name in names)


def _has_entries(folder: str) -> bool:
    if not folder.lower().endswith(("dist-info", "egg-info")):
        return False
    try:
        with open(f"{folder}/entry_points.txt", encoding="utf-8", errors="replace") as file:
            return f"[{GROUP}]" in file.read()
    except OSError:
        return False
