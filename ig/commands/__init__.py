"""The commands, one module each."""

from __future__ import annotations

from typing import Any

from ig.errors import UsageError
from ig.gadget import CompatView, Gadget
from ig.options import gadget_params

INTERVAL = 2.0
"""Seconds of an interval of `ig top` where none are given."""


def run(gadget: Gadget, view: CompatView | None, options: dict[str, Any]) -> None:
    """Run a gadget's command. Raises IgError."""
    from ig.commands.setup import check_ready_file

    params = gadget_params(gadget)
    for param in params:
        given = options.get(param.name) not in (None, False, [])
        if given:
            options |= param.implies
        clash = [name for name in param.excludes if given and options.get(name)]
        if clash:
            flags = {other.name: other.flags[-1] for other in params}
            raise UsageError(
                f"{param.flags[-1]} and {flags[clash[0]]} are mutually exclusive.",
                remedy="Use only one of them.",
            )
    rates = gadget.source == "rates"
    if rates and not options.get("interval"):
        options["interval"] = INTERVAL
    if gadget.summable:
        from ig.trace.summary import summarized

        gadget = summarized(gadget, options)
    if options.get("count") and not (options.get("interval") or options.get("watch")):
        option = "--summary=SECONDS" if gadget.summable else "--interval SECONDS"
        raise UsageError("--count needs an interval.", remedy=f"Use it with {option}.")
    check_ready_file(options.get("ready_file"))
    if rates:
        from ig.commands.top import top as carry_out
    elif gadget.program:
        from ig.commands.trace import trace as carry_out
    else:
        from ig.commands.snapshot import snapshot as carry_out
    carry_out(gadget, view, options)
