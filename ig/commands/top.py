"""`ig top ...`: what connections do, on a live screen, or as a table or object per interval."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ig.bpf.loader import Loading
from ig.commands import answers
from ig.commands.answers import Hint, closing
from ig.commands.display import DisplayOptions
from ig.commands.setup import (
    asked_for,
    configure_display,
    give_up_privileges,
    make_index,
    selection,
    split_names,
    write_ready_file,
)
from ig.commands.snapshot import SNAPSHOT, Notes, known_by
from ig.commands.trace import open_source, report_compat
from ig.containers.peers import Peers
from ig.errors import UsageError
from ig.gadget import CompatView, Gadget, defines
from ig.gadgets import declared
from ig.gadgets.top_tcp import GROUPS
from ig.kernel.capabilities import Capability, need_privileges
from ig.kernel.cgroupfs import look_up
from ig.output.layout import colored
from ig.output.sink import Chain, Sink
from ig.output.stream import Stream, say
from ig.query import Sort, find_column
from ig.stop import Stop
from ig.summary import counted
from ig.top.interval import Interval, Intervals, Sampler
from ig.top.live import Live
from ig.top.objects import Objects
from ig.top.rows import Row, grouped
from ig.top.view import OF_PROCESS, View
from ig.trace.attribution import Attribution
from ig.trace.pipeline import Pipeline

_ORDER = ("-new", "-open", "containername", "dst.port")
"""The default sort order."""
_JSON = ("json", "jsonl", "jsonpretty")


def top(gadget: Gadget, view: CompatView | None, options: Mapping[str, Any]) -> None:
    """Show the connections of an interval after another, until the user stops it."""
    order = _order(gadget, options)
    display = DisplayOptions(gadget, view, options)
    chosen = selection(options)
    need_privileges()
    stop = Stop()
    stream = Stream(1, stop)  # while it may still open what is another user's
    index = make_index(options, detailed=True)
    peers = Peers(index)
    counting = counted(declared()["trace_tcp" if options["accepted"] else "trace_tcpconnect"])
    # Forks before the index starts threads.
    loading = Loading(counting.program, defines(counting, {}), aggregate=True)
    with closing(index), contextlib.closing(loading):
        report_compat()
        give_up_privileges(index, options, (Capability.CAP_BPF, *SNAPSHOT))
        index.start()
        with open_source(loading, index) as source, Hint(index, chosen, options):
            configure_display(display, chosen, index, answers.of(index, asked_for(options)))
            notes = Notes(say, again=False)
            sampler = Sampler(options, partial(known_by, index), peers, chosen.wants, notes.append)
            live = _live(display, options, order, sampler) if _is_live(options) else None
            tables = Tables(display, options["by"], order, options.get("max_rows"), stream)

            def show(interval: Interval) -> None:
                live.show(interval) if live else tables.print(interval)
                notes.report()

            def ends() -> bool:
                return stop() or (live is not None and live.ended)

            ready = partial(write_ready_file, options.get("ready_file"))
            pipeline = Pipeline(
                source,
                Attribution(index, chosen.wants, source, look_up),
                Intervals(sampler, source, show, ready),
                stream,
                ends,
                lambda: False,
                peers=peers.of_records,
                interval=options["interval"],
                intervals=options.get("count") or 0,
            )
            with stop.noted():
                live.run(pipeline.run, stream, stop) if live else pipeline.run()


def _is_live(options: Mapping[str, Any]) -> bool:
    """Return whether a screen is drawn: on a terminal, unless a format or a number is given."""
    given = any(map(options.get, ("output", "count", "no_header", "wide", "time", "max_rows")))
    terminal = os.isatty(0) and os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"
    return terminal and not given


def _live(
    display: DisplayOptions, options: Mapping[str, Any], order: Sequence[str], sampler: Sampler
) -> Live:
    """Return the live screen; it is drawn once it is run."""
    first = find_column(order[0].lstrip("+-"), display.columns).name.removesuffix("_rate")
    view = View(
        display.columns,
        display.filters,
        by=options["by"],
        order="dst" if first == "client" else first,
        descending=order[0].startswith("-"),
    )
    processes = [column for column in display.columns if column.name in OF_PROCESS]
    shown = [c for c in display.shown if c.name not in ("time", *OF_PROCESS)]
    place = next((n for n, column in enumerate(shown) if column.name == "open"), len(shown))

    def by_process(wanted: bool) -> None:
        sampler.processes = wanted

    return Live(
        view,
        [*shown[:place], *processes, *shown[place:]],
        no_color=not colored(options.get("color") or "auto"),
        by_process=by_process,
    )


def _order(gadget: Gadget, options: Mapping[str, Any]) -> Sequence[str]:
    """Return the columns to sort by. Raises UsageError for an unknown one, or group of rows."""
    if options["by"] not in GROUPS:
        raise UsageError(
            f"Unknown group {options['by'][:64]!r}.", f"Known groups: {', '.join(GROUPS)}"
        )
    order = split_names(options.get("sort")) or list(_ORDER)
    for name in order:
        find_column(name.lstrip("+-"), gadget.columns)
    return order


class Tables:
    """Prints intervals in the format of the options."""

    def __init__(
        self,
        display: DisplayOptions,
        by: str,
        order: Sequence[str],
        most: int | None,
        stream: Stream,
    ) -> None:
        self._by = by
        self._seconds = 0.0
        sort = Sort(display.columns, order, most)
        self._filters = display.filters
        self.sink: Sink = Chain([sort], self._printer(display, stream))

    def _printer(self, display: DisplayOptions, stream: Stream) -> Sink:
        if display.mode not in _JSON:
            return display.sink(stream)
        columns = [column for column in display.columns if column.name != "timestamp"]
        return Objects(columns, stream, lambda: self._seconds, display.mode == "jsonpretty")

    def print(self, interval: Interval) -> None:
        """Print the rows of an interval in which there was something; nothing of the first."""
        if not interval.seconds:
            return
        self._seconds = interval.seconds
        batch = interval.batch([row for row in interval.rows if not row.ended])
        for stage in self._filters:
            batch = stage.feed(batch)
        rows: list[Row] = list(batch.fields.get("row", ()))
        self.sink.write(interval.batch(grouped(rows, self._by)))
        self.sink.tick(interval.now)
