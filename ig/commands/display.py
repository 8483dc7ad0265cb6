"""Display options of a command: columns, output mode and filter."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ig import filters, output
from ig.container import Container
from ig.errors import UsageError
from ig.gadget import Batch, Column, CompatView, Gadget
from ig.memo import Cache
from ig.output.layout import colored, watch
from ig.output.text import format_timestamps
from ig.query import find_column
from ig.values import SECOND

OF_PODS = ("namespace", "podname", "podcontainer")
"""The columns that are shown by default if there are pods."""
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
    name = next(each for each in ("ip", "version", "src.version") if each in names)
    return [f"{name}=={4 if four else 6}"]


class DisplayOptions:
    """How events are displayed: columns, output mode, filter."""

    def __init__(self, gadget: Gadget, view: CompatView | None, options: Mapping[str, Any]) -> None:
        columns = view.columns if view else gadget.columns
        if options.get("resolve"):
            columns = tuple(replace(c, read=c.resolved) if c.resolved else c for c in columns)
        mode = options.get("output") or "columns"
        self.named: list[Column] = []
        """The columns that the user named."""
        if "=" in mode:
            self.named += output.parse_output(mode, columns)[1]
        relative = mode.partition("=")[2].lstrip().startswith(("+", "-"))
        self._keep = bool(self.named) and not relative
        expressions = [*(options.get("filter") or ()), *_family(gadget.columns, options)]
        self.keep = filters.parse(expressions, gadget.columns)
        self._filtered = filters.filtered(expressions, gadget.columns)
        self.withheld = 0
        """The number of withheld events that match the filter."""
        if gadget.withheld and options.get(gadget.withheld.option):
            self.keep = self._withhold(find_column(gadget.withheld.column, gadget.columns))
        usual = _usual(columns, gadget.shown if view is None else (), options)
        self.mode, self.shown = output.parse_output(mode, columns, usual)
        times = time_column(options.get("time") or "none")
        if times and self.mode == "columns":
            self.shown = (times, *self.shown)
        self.columns = columns
        self._color = colored(options.get("color") or "auto")
        self._screen = watch(wide=bool(options.get("wide")))
        self._heading = not options.get("no_header")
        self.resolves = self._resolves(options)
        """Whether owners of far ends are shown or filtered by."""

    def _withhold(self, column: Column) -> filters.Predicate:
        """Return a filter that omits and counts events with a non-zero `column`."""
        before = self.keep

        def keep(batch: Batch) -> Sequence[bool]:
            kept = before(batch) if before else [True] * len(batch)
            marked = list(map(bool, batch.read(column)))
            self.withheld += sum(map(operator.and_, kept, marked))
            return list(map(operator.gt, kept, marked))

        return keep

    def _resolves(self, options: Mapping[str, Any]) -> bool:
        names = {c.name for c in self.columns if c.name.endswith(_FAR_ENDS)}
        structured = self.mode in ("json", "jsonl", "jsonpretty", "yaml")
        if any(column.name.endswith(_FAR_ENDS) for column in self._filtered):
            return True
        asked = options.get("resolve") or names & {column.name for column in self.shown}
        return bool(names and (structured or asked))

    def show_pods(self, containers: Iterable[Container]) -> None:
        """Prepend the Kubernetes columns if a container has Kubernetes names."""
        if self.mode == "columns" and not self.named and any(each.pod_name for each in containers):
            self.shown = (*(c for c in self.columns if c.name in OF_PODS), *self.shown)

    def formatter(self, array: bool = False, columns: Sequence[Column] = ()) -> output.Formatter:
        """Return the formatter; with `array`, `json` is one array."""
        return output.formatter(
            self.mode,
            columns or self.columns,
            self.shown,
            array=array,
            screen=self._screen,
            color=self._color,
            heading=self._heading,
            keep=self._keep,
        )


FORMS = ("none", "clock", "delta", "iso")


def time_column(form: str) -> Column | None:
    """Return the column of the events' times, None for `none`.

    `clock` is the local time of day, `delta` the time since the row before, `iso` RFC 3339 in UTC.
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
    """Formats the time since the previous event, across batches."""

    def __init__(self) -> None:
        self._before = 0

    def __call__(self, batch: Batch) -> list[str]:
        times = batch.fields["timestamp"]
        before = [self._before or times[0], *times[:-1]]
        self._before = times[-1]
        return [f"{(now - then) / SECOND:+.3f}s" for now, then in zip(times, before, strict=True)]


def _clock(nanoseconds: Sequence[int]) -> list[str]:
    return [f"{_SECONDS[n // SECOND]}.{n % SECOND // 1_000_000:03d}" for n in nanoseconds]


_SECONDS: Cache[int, str] = Cache(
    lambda second: time.strftime("%H:%M:%S", time.localtime(second)), 1024
)
