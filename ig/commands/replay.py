"""Recordings: `--record FILE` of a trace or a snapshot, and `ig replay FILE`."""

from __future__ import annotations

import gc
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from itertools import accumulate
from typing import Any

from ig.attempts import failed
from ig.commands.display import DisplayOptions
from ig.commands.setup import selection
from ig.errors import IgError, UsageError
from ig.gadget import NOTHING, Batch, Gadget, Stage, of_each
from ig.kernel import netns
from ig.output.recorder import Recorder
from ig.output.recording import DAMAGE, Damaged, Recording
from ig.output.sink import Chain, Sink
from ig.output.stream import Stream, say
from ig.query import Filter, Limit
from ig.stop import Stop
from ig.trace.summary import summarized
from ig.values import SECOND

_CHOICES = ("containername", "podname", "namespace", "selector", "host_only")


@contextmanager
def recording(gadget: Gadget, options: Mapping[str, Any]) -> Iterator[Sequence[Sink]]:
    """Create the file that the options ask for, and yield the sinks that record.

    Raises IgError if it cannot be created or, at the end, if something was not recorded.
    """
    if not options.get("record"):
        yield ()
        return
    flags = [param.name for param in gadget.params if param.kind == "flag"]
    header = {
        "gadget": gadget.name,
        "options": {name: True for name in flags if options.get(name)},
        "interval": options.get("interval") or 0,
        "node": os.uname().nodename,
        "netns": netns.host(),
        "values": _values(gadget),
    }
    recorder = Recorder(options["record"], header)
    try:
        yield (recorder,)
    finally:
        recorder.close()
    recorder.check()


def _values(gadget: Gadget) -> dict[str, list[str]]:
    """Return what columns' values can be: another version of `ig` may have others."""
    return {column.name: list(column.values) for column in gadget.columns if column.values}


def recorded_gadget(header: Mapping[str, Any]) -> Gadget:
    """Return the gadget of a recording. Raises IgError where this `ig` has not the same."""
    from ig.gadgets import declared

    name = header.get("gadget")
    gadget = declared().get(name) if isinstance(name, str) else None
    if gadget is None or header.get("values") != _values(gadget):
        raise IgError(
            "The recording cannot be read.",
            f"It is of {name!r:.64}, which this version of ig does not have, or has otherwise.",
            "Use the version of ig, and the packages, that it was made with.",
        )
    node = str(header.get("node", ""))
    columns = [
        replace(column, of_owner=lambda _: node) if column.name == "node" else column
        for column in gadget.columns
    ]
    return replace(gadget, columns=tuple(columns))


def gadget_of(path: str) -> Gadget:
    """Return the gadget of the recording in a file. Raises IgError."""
    return recorded_gadget(Recording(path).header)


def replay(options: Mapping[str, Any]) -> None:
    """Print a recording. Raises IgError for one that is damaged."""
    played = Recording(options["file"])
    stop = Stop()
    play(played, options, Stream(1, stop), stop.noted)


def play(
    played: Recording,
    options: Mapping[str, Any],
    stream: Stream,
    uninterrupted: Callable[[], AbstractContextManager[None]],
) -> None:
    """Print a recording; lines are written whole in the context of `uninterrupted`."""
    gadget = recorded_gadget(played.header)
    options = {**_recorded_options(gadget, played.header), **_given(options)}
    if gadget.summable or any(map(options.get, ("summary", "by", "top", "histogram"))):
        gadget = summarized(gadget, options, live=False)
    display = DisplayOptions(gadget, None, options)
    records = played.records()
    kind, value = next(records, ("", None))
    display.show_pods(value.owners if value and kind == "batch" else ())
    limit = Limit(options.get("max_events") or 0)
    stages = _bounded(gadget, _shown_stages(gadget, display, options, played.header), played)
    filters = [*display.filters, *_chosen(options), *_failures(gadget, options), limit]
    sink = Chain(filters, Chain(stages, display.sink(stream)))
    take = _takers(sink, options)
    gc.enable()  # the launcher disabled it
    sink.open()
    try:
        while kind and not limit.reached():
            with uninterrupted(), _checked(played):
                take[kind](value)
            kind, value = next(records, ("", None))
    except Damaged:
        with suppress(IgError), uninterrupted(), _checked(played):
            sink.close()  # prints what was read, and ends it
        raise
    with _checked(played):
        sink.close()
    display.report_withheld()


def _takers(sink: Sink, options: Mapping[str, Any]) -> Mapping[str, Callable[[Any], None]]:
    """Return what takes each kind of record; a summary has its own intervals."""
    takers: dict[str, Callable[[Any], None]]
    takers = {"batch": sink.write, "tick": sink.tick, "lost": sink.lost}
    if options.get("summary"):
        seconds = options.get("interval")
        takers["batch"] = ByTime(sink, seconds).write if seconds else sink.write
        takers["tick"] = _nothing
    return takers


def _nothing(_: object) -> None:
    """Do nothing where the recording's intervals are not those that are shown."""


class ByTime:
    """Ends an interval of a sink whenever so many seconds of the recording have passed."""

    def __init__(self, sink: Sink, seconds: float) -> None:
        self._sink, self._length = sink, int(seconds * SECOND)
        self._due = 0

    def write(self, batch: Batch) -> None:
        """Pass the events on, and end those intervals that have any."""
        times = list(accumulate(batch.fields["timestamp"], max))  # those of cgroups overlap
        start = 0
        self._due = self._due or times[0] + self._length
        while times[-1] >= self._due:
            end = bisect_left(times, self._due)
            self._sink.write(batch.part(start, end))
            self._sink.tick(self._due)
            start = end
            self._due += ((times[start] - self._due) // self._length + 1) * self._length
        self._sink.write(batch.part(start, len(batch)))


@contextmanager
def _checked(played: Recording) -> Iterator[None]:
    """Raise Damaged for what showing values raises that no gadget gives."""
    try:
        yield
    except DAMAGE as error:
        raise played.damaged(error) from error


MOST = 1 << 30  # bytes of the events of an interval, roughly: some 400,000 sockets


class Bound:
    """The stage that raises ValueError if a recording's interval takes too much memory.

    What holds events until the end of an interval gets as many as the recording has.
    """

    def __init__(self, played: Recording, most: int) -> None:
        self._played, self._most = played, most
        self._held = 0

    def feed(self, batch: Batch) -> Batch:
        """Return the events, which are some of those read last."""
        self._held += self._played.weight
        if self._held > self._most:
            raise ValueError("an interval has more events than ig holds in memory")
        return batch

    def flush(self) -> Batch:
        """Return nothing: no event is held here."""
        self._held = 0
        return NOTHING


def _bounded(gadget: Gadget, stages: Sequence[Stage], played: Recording) -> Sequence[Stage]:
    """Return the stages and a bound of what is held: only a trace's events are printed at once.

    A trace's own stages get any number of events, and sum them up.
    """
    bound = Bound(played, MOST)
    if gadget.source != "program":
        return [bound, *stages]
    return [*stages, bound] if stages else []


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, False, [], ())}


def _recorded_options(gadget: Gadget, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the recorded command that decide which columns are shown."""
    recorded, interval = header.get("options"), header.get("interval")
    flags = {param.name for param in gadget.params if param.kind == "flag"}
    names = flags & set(recorded) if isinstance(recorded, dict) else set()
    found: dict[str, Any] = dict.fromkeys(names, True)
    if isinstance(interval, (int, float)) and interval > 0:
        found["interval"] = interval
    return found


def _chosen(options: Mapping[str, Any]) -> list[Stage]:
    """Return the stage that leaves out owners that are not selected, if any are."""
    if not any(map(options.get, _CHOICES)):
        return []
    wants = selection(options).wants

    def keep(batch: Batch) -> Sequence[object]:
        return of_each(batch.owners, wants)

    return [Filter(keep)]


def _failures(gadget: Gadget, options: Mapping[str, Any]) -> list[Stage]:
    """Return the stage that leaves out what did not fail, if --failures is given.

    Attempts are chosen as the kernel's programs do: with one that was reported as unanswered also
    its end. Raises UsageError for a gadget whose events cannot fail.
    """
    if not options.get("failure_only"):
        return []
    names = {column.name for column in gadget.columns}
    if "outcome" in names:
        return [Filter(failed)]
    if "error" in names:
        return [Filter(lambda batch: batch.fields["error"])]
    raise UsageError(
        f"A recording of {gadget.name} has no failures.",
        "--failures is for recordings of connects, accepts and binds.",
        "Use -F to choose by the columns that --columns lists.",
    )


def _shown_stages(
    gadget: Gadget, display: DisplayOptions, options: Mapping[str, Any], header: Mapping[str, Any]
) -> Sequence[Stage]:
    if gadget.source != "sockets":
        return display.stages
    from ig.commands.snapshot import shown_stages

    host = header.get("netns")
    return shown_stages(gadget, display, options, host if isinstance(host, int) else 0, say)
