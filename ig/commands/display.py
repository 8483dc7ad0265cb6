"""Display options of a command: columns, output mode and filter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from ig import filters, output
from ig.columns import TIMESTAMP
from ig.container import Container
from ig.errors import UsageError
from ig.gadget import Batch, Column, CompatView, Gadget, Stage
from ig.memo import Cache
from ig.output.layout import colored, watch
from ig.output.sink import Formatter, IntervalPrinter, Printer, Sink
from ig.output.stream import Stream, say
from ig.output.text import format_timestamps
from ig.query import Filter, Withhold, find_column
from ig.trace.summary import MOST_ROWS, Summarize
from ig.values import SECOND

OF_PODS = ("namespace", "podname", "podcontainer")
"""The columns that are shown by default if there are pods."""
_CLEAR = "\x1b[H\x1b[2J"
_FAR_ENDS = (".name", ".namespace", ".kind")
"""Suffixes of the columns with the owner of an end of a connection."""


def _usual(
    columns: Sequence[Column], order: Sequence[str], options: Mapping[str, Any]
) -> Sequence[Column]:
    """Return the default columns, those of `order` first."""
    places = {name: place for place, name in enumerate(order)}
    shown = output.shown_columns(columns, options)
    return sorted(shown, key=lambda column: places.get(column.name, len(places)))


def _family(columns: Sequence[Column], options: Mapping[str, Any]) -> list[str]:
    """Return the filter that -4 or -6 is."""
    four, six = bool(options.get("ipv4")), bool(options.get("ipv6"))
    if four == six:
        return []
    names = {column.name for column in columns}
    name = next((each for each in ("ip", "version", "src.version") if each in names), "")
    return [f"{name}=={4 if four else 6}"] if name else []


def _of_causes(expression: str, columns: Sequence[Column]) -> bool:
    """Return whether a filter looks at the cause of an attempt, known later than the rest."""
    names = (column.name for column in filters.filtered([expression], columns))
    return any(name.partition(".")[0] == "cause" for name in names)


class DisplayOptions:
    """How events are displayed: columns, output mode, filter."""

    def __init__(self, gadget: Gadget, view: CompatView | None, options: Mapping[str, Any]) -> None:
        columns = view.columns if view else gadget.columns
        self.stages: Sequence[Stage] = ()
        """The gadget's own, which follow the filters."""
        if gadget.stages:
            self.stages, columns = gadget.stages(options)
        self.sortable = columns if gadget.stages else gadget.columns
        """The columns that the rows of an interval are sorted by."""
        time = options.get("time") or ("clock" if options.get("interval") else "none")
        self._whole = gadget.source != "program" or bool(self.stages)
        self._sockets = gadget.source == "sockets" and not self.stages
        self._timed = self._whole and time != "none"
        if self._timed and all(column.name != TIMESTAMP.name for column in columns):
            columns = (TIMESTAMP, *columns)
        if options.get("resolve"):
            columns = tuple(replace(c, read=c.resolved) if c.resolved else c for c in columns)
        self.columns = columns
        self._options = options
        self._set_filters(gadget)
        self._set_shown(gadget.shown if view is None else (), time)
        self._color = colored(options.get("color") or "auto")
        self._screen = watch(wide=bool(options.get("wide")))
        self.resolves = self._resolves(options)
        """Whether owners of far ends are shown or filtered by."""

    def _set_filters(self, gadget: Gadget) -> None:
        expressions = [*(self._options.get("filter") or ())]
        expressions += _family(gadget.columns, self._options)
        self._filtered = filters.filtered(expressions, gadget.columns)
        first = [each for each in expressions if not _of_causes(each, gadget.columns)]
        parts = (first, [each for each in expressions if each not in first])
        found = [filters.parse(part, gadget.columns) for part in parts]
        self.filters: list[Stage] = [Filter(keep) for keep in found if keep]
        self._first = int(found[0] is not None)
        self._withheld = gadget.withheld
        if gadget.withheld and self._options.get(gadget.withheld.option):
            self.filters.append(Withhold(find_column(gadget.withheld.column, gadget.columns)))

    def _set_shown(self, order: Sequence[str], time: str) -> None:
        mode = self._options.get("output") or "columns"
        self.mode = output.parse_output(mode.partition("=")[0], self.columns)[0]
        self.named: list[Column] = []
        """The columns that the user named."""
        if "=" in mode and self.mode in output.MODES:
            self.named += output.parse_output(mode, self.columns)[1]
        relative = mode.partition("=")[2].lstrip().startswith(("+", "-"))
        self._keep = bool(self.named) and not relative
        usual = _usual(self.columns, order, self._options)
        self.mode, self.shown = output.parse_output(mode, self.columns, usual)
        if self._timed and self.mode == "csv" and not self.named:
            self.shown = (TIMESTAMP, *self.shown)
        times = time_column(time)
        if times and self.mode == "columns":
            self.shown = (times, *self.shown)

    def _resolves(self, options: Mapping[str, Any]) -> bool:
        names = {c.name for c in self.columns if c.name.endswith(_FAR_ENDS)}
        structured = self.mode not in ("columns", "csv")
        if any(column.name.endswith(_FAR_ENDS) for column in self._filtered):
            return True
        asked = (
            options.get("resolve")
            or options.get("record")
            or options.get("otlp")
            or names & {column.name for column in self.shown}
        )
        return bool(names and (structured or asked))

    def show_pods(self, containers: Iterable[Container]) -> None:
        """Prepend the Kubernetes columns if a container has Kubernetes names."""
        if self.mode == "columns" and not self.named and any(each.pod_name for each in containers):
            self.shown = (*(c for c in self.columns if c.name in OF_PODS), *self.shown)

    def sink(self, stream: Stream) -> Sink:
        """Return what prints events as they come or, if they are of intervals, those of each.

        It is another package's if the output mode names one.
        """
        if self.mode not in output.MODES:
            return output.offered_sink(self._options["output"], self.columns)
        structured = self.mode.startswith("json")
        if not self._whole:
            return Printer(self.formatter(), stream, structured)
        before = _CLEAR if self._options.get("watch") and os.isatty(1) else ""
        columns = self.columns
        if self._sockets:
            columns = tuple(c for c in columns if c.show_if is None or c.show_if(self._options))
        array = self._sockets and not self._options.get("interval")
        printer = self.formatter(array, columns)
        if self._options.get("histogram"):
            printer = self._with_histograms(printer)
        return IntervalPrinter(printer, stream, structured, before, timed=self._timed)

    def _with_histograms(self, table: Formatter) -> Formatter:
        """Return the formatter of tables with histograms below. Raises UsageError for others."""
        from ig.output.histogram import Histograms

        if self.mode != "columns":
            raise UsageError(
                "--histogram is drawn below a table only.",
                remedy="In JSON and YAML the buckets are there without it.",
            )
        buckets = [column for column in self.columns if column.members]
        by = self._options.get("by")
        keys = takewhile(lambda column: column.name != "attempts", self.columns)
        titles = [column for column in keys if by and column in self.shown]
        return Histograms(table, buckets, titles, self._screen)

    def around_causes(self) -> tuple[Sequence[Stage], Sequence[Stage]]:
        """Return the filters that look at no cause, and those that follow them."""
        return self.filters[: self._first], self.filters[self._first :]

    def report_withheld(self) -> None:
        """Report the number of events that were withheld, or had no row of their own, if any."""
        for each in self.stages:
            if isinstance(each, Summarize) and each.without_room:
                say(
                    f"warning: {each.without_room} counted as `(other)`: no room for more than "
                    f"{MOST_ROWS} rows"
                )
        count = sum(each.count for each in self.filters if isinstance(each, Withhold))
        if self._withheld and count and not self.mode.startswith("json"):
            say(self._withheld.message.format(count=count))

    def formatter(self, array: bool = False, columns: Sequence[Column] = ()) -> Formatter:
        """Return the formatter; with `array`, `json` is one array."""
        return output.formatter(
            self.mode,
            columns or self.columns,
            self.shown,
            array=array,
            screen=self._screen,
            color=self._color,
            heading=not self._options.get("no_header"),
            keep=self._keep,
        )


FORMS = ("none", "clock", "delta", "iso")


def time_column(form: str) -> Column | None:
    """Return the column of the events' times, None for `none`.

    `clock` is the local time of day, `delta` the time since the row before (rows of an
    interval: since the interval before), `iso` RFC 3339 in UTC.
    Raises UsageError for anything else.
    """
    reads: dict[str, tuple[int, Callable[[Batch], Sequence[str]]]] = {
        "clock": (12, lambda batch: _clock(batch.fields["timestamp"])),
        "delta": (9, _Delta()),
        "iso": (30, lambda batch: format_timestamps(batch.fields["timestamp"])),
    }
    if form == "none":
        return None
    if form not in reads:
        raise UsageError(
            f"Unknown time format {form[:64]!r}.", f"Known formats: {', '.join(FORMS)}"
        )
    width, read = reads[form]
    return Column("time", width=width, right=form == "delta", read=read)


class _Delta:
    """Formats the time since the row before, or since the interval before if that has the same.

    A table that is sized reads the rows more than once: those that begin alike are the same.
    """

    def __init__(self) -> None:
        self._first = -1
        self._start = self._now = self._before = 0

    def __call__(self, batch: Batch) -> list[str]:
        times = batch.fields["timestamp"]
        if times[0] == self._first:
            self._now = self._start
        self._first, self._start = times[0], self._now
        texts = []
        for now in times:
            if now != self._now:
                self._before, self._now = self._now or now, now
            texts.append(f"{(now - self._before) / SECOND:+.3f}s")
        return texts


def _clock(nanoseconds: Sequence[int]) -> list[str]:
    return [f"{_SECONDS[n // SECOND]}.{n % SECOND // 1_000_000:03d}" for n in nanoseconds]


_SECONDS: Cache[int, str] = Cache(
    lambda second: time.strftime("%H:%M:%S", time.localtime(second)), 1024
)
