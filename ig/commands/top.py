"""`ig top ...`: what connections do, on a live screen, or as a table or object per interval."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ig.commands.answers import Hint, closing
from ig.commands.display import DisplayOptions
from ig.commands.setup import (
    configure_display,
    follow,
    make_index,
    selection,
    split_names,
    write_ready_file,
)
from ig.commands.snapshot import SNAPSHOT, Notes, known_by
from ig.containers.peers import Peers
from ig.errors import UsageError
from ig.gadget import CompatView, Gadget
from ig.gadgets.top_tcp import GROUPS
from ig.kernel.capabilities import need_privileges
from ig.output.sink import Chain, Sink
from ig.output.stream import Stream, say
from ig.query import Sort, find_column
from ig.stop import Stop
from ig.top.interval import Interval, Sampler
from ig.top.objects import Objects
from ig.top.rows import grouped

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
    answered = follow(index, options, SNAPSHOT)
    configure_display(display, chosen, index, answered)
    gc.freeze()  # what lives until the end need not be scanned again
    notes = Notes(say, again=False)
    known = partial(known_by, index)
    sampler = Sampler(options, known, peers.with_peers, chosen.wants, notes.append)
    tables = Tables(display, options["by"], order, options.get("max_rows"), stream)
    with closing(index), Hint(index, chosen, options):
        sampler.take()
        write_ready_file(options.get("ready_file"))
        tables.sink.open()
        _repeat(options, stop, lambda: _print(tables, sampler.take(), notes, stop))
        tables.sink.close()


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


def _repeat(options: Mapping[str, Any], stop: Stop, show: Callable[[], None]) -> None:
    """Call a function after each interval, as often as the options say."""
    left = options.get("count") or 0
    while not stop.wait(options["interval"]):
        show()
        left -= 1
        if left == 0:
            return


def _print(tables: Tables, interval: Interval, notes: Notes, stop: Stop) -> None:
    with stop.noted():
        tables.print(interval)
    notes.tell()


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
        self.sink: Sink = Chain([*display.filters, sort], self._printer(display, stream))

    def _printer(self, display: DisplayOptions, stream: Stream) -> Sink:
        if display.mode not in _JSON:
            return display.sink(stream)
        columns = [column for column in display.columns if column.name != "timestamp"]
        return Objects(columns, stream, lambda: self._seconds, display.mode == "jsonpretty")

    def print(self, interval: Interval) -> None:
        """Print the rows of an interval in which there was something."""
        self._seconds = interval.seconds
        rows = grouped([row for row in interval.rows if not row.ended], self._by)
        self.sink.write(interval.batch(rows))
        self.sink.tick(interval.now)
