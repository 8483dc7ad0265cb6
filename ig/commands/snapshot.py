"""`ig snapshot ...`: show the current state, once or repeatedly."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ig.commands import answers
from ig.commands.answers import Hint, closing
from ig.commands.display import DisplayOptions
from ig.commands.replay import recording
from ig.commands.setup import (
    configure_display,
    follow,
    make_index,
    selection,
    split_names,
    write_ready_file,
)
from ig.container import HOST
from ig.containers.index import Index
from ig.containers.selection import Selection
from ig.gadget import NOTHING, Batch, Column, CompatView, Gadget, Stage
from ig.kernel import netns
from ig.kernel.capabilities import Capability
from ig.output.sink import Chain, Sink
from ig.output.stream import Once, Stream, say
from ig.query import Sort, find_column
from ig.sockets.collect import PROCESS_FIELDS, Say, collect
from ig.sockets.owner import Known
from ig.sockets.proc import INFO, TIME_WAIT
from ig.stop import Stop

SNAPSHOT = (
    Capability.CAP_SYS_ADMIN,  # to enter network namespaces
    Capability.CAP_SYS_PTRACE,  # to find them, and who holds a socket
    Capability.CAP_DAC_READ_SEARCH,  # the same, and cgroups by their ids
    Capability.CAP_NET_ADMIN,  # sockets' marks
)
"""The capabilities that each snapshot needs."""
DEFAULT_ORDER = ("containername", "proto", "state", "src")
"""The default sort order."""
_CHOICES = ("containername", "podname", "namespace", "selector", "runtimes", "host_only")
_RESOLVER = "127.0.0.11"
"""The address of Docker's DNS resolver in containers of user-defined networks."""


def snapshot(gadget: Gadget, view: CompatView | None, options: Mapping[str, Any]) -> None:
    """Show the current state, once or repeatedly."""
    options = with_host(options)
    chosen = selection(options)
    options = _snapshot_options(gadget, view, options)
    display = DisplayOptions(gadget, view, options)
    stop = Stop()
    stream = Stream(1, stop)  # while it may still open what is another user's
    index = make_index(options, _needs_ends(display, options))
    name_ends = _name_ends(display, options, chosen, index)
    with recording(gadget, options) as recorders:
        answered = follow(index, options, SNAPSHOT)
        configure_display(display, chosen, index, answered)
        gc.disable()  # one pass over plain lists: a collection would cost time and free nothing
        notes = Notes(say, again=os.isatty(1))
        stages = shown_stages(gadget, display, options, netns.host(), notes.append)
        sink = Chain(display.filters, *recorders, Chain(stages, display.sink(stream)))

        def sockets() -> Batch:
            return name_ends(collect(options, known_by(index), chosen.wants, notes.append))

        def take() -> None:
            _pass_on(sockets, sink, stop)
            notes.report()

        write_ready_file(options.get("ready_file"))
        with closing(index):
            sink.open()
            seconds = options.get("watch") or options.get("interval") or sink.interval
            _take_all(take, seconds, options, stop, Hint(index, chosen, options))
            sink.close()
            if not seconds:
                answers.need_owners(answered, chosen)


def _take_all(
    take: Callable[[], None], seconds: float, options: Mapping[str, Any], stop: Stop, hint: Hint
) -> None:
    if seconds:
        repeat(seconds, take, stop.wait, options.get("count") or 0)
    else:
        hint.report_now()
        take()


def _pass_on(sockets: Callable[[], Batch], sink: Sink, stop: Stop) -> None:
    """Pass the sockets of this moment to a sink, with their time."""
    now = time.time_ns()
    batch = sockets()
    with stop.noted():
        sink.write(batch.adding({"timestamp": [now] * len(batch)}))
        del batch  # so that it is freed while it is sorted: see ig.query.sort
        sink.tick(now)


def shown_stages(
    gadget: Gadget,
    display: DisplayOptions,
    options: Mapping[str, Any],
    host: int,
    note: Callable[[str], None],
) -> list[Stage]:
    """Return the stages that fold and sort a snapshot, and the gadget's own.

    `host` is the id of the host's network namespace; `note` gets a line about what is folded.
    """
    stages: list[Stage] = []
    whole = gadget.stages or options.get("all") or options.get("filter")
    if display.mode == "columns" and not whole:
        stages.append(Fold(host, bool(options.get("state")), note))
    order = split_names(options.get("sort")) or default_order(display)
    return [*stages, *display.stages, Sort(display.sortable, order, options.get("max_rows"))]


def _needs_ends(display: DisplayOptions, options: Mapping[str, Any]) -> bool:
    """Return whether the containers of addresses and published ports are needed."""
    return display.resolves or bool(options.get("listening"))


def _name_ends(
    display: DisplayOptions, options: Mapping[str, Any], chosen: Selection, index: Index
) -> Callable[[Batch], Batch]:
    """Return a function that names the containers of published ports and far ends, if needed.

    It adds rows for published ports without a socket, if these are requested.
    """
    if not _needs_ends(display, options):
        return lambda batch: batch
    from ig.containers.peers import Peers  # most snapshots need neither
    from ig.sockets.published import Published, silent

    peers = Peers(index) if display.resolves else None
    host = netns.host()

    def name(batch: Batch) -> Batch:
        ports = Published(index.containers(sandboxes=True), host)
        batch = ports.add(batch, silent(options, chosen.wants(HOST)))
        return peers.with_peers(batch) if peers else batch

    return name


def default_order(display: DisplayOptions) -> list[str]:
    """Return the columns to sort by where none are named, as far as there are such."""
    names = {column.name for column in display.sortable}
    return [name for name in DEFAULT_ORDER if name in names]


def _snapshot_options(
    gadget: Gadget, view: CompatView | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    display = DisplayOptions(gadget, view, options)
    sort = split_names(options.get("sort")) or []
    named = [find_column(key.lstrip("-"), display.sortable) for key in sort] + display.named
    return asked_by_columns({**options, "state": split_names(options.get("state"))}, named)


def known_by(index: Index) -> Known:
    """Return the current containers of an index."""
    return Known(index.find, index.containers(), index.strays.by_mntns)


def with_host(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options; --listening includes the host unless containers are selected."""
    if not options.get("listening") or any(map(options.get, _CHOICES)):
        return options
    return {**options, "host": True}


def asked_by_columns(options: Mapping[str, Any], columns: Iterable[Column]) -> dict[str, Any]:
    """Return the options, plus those that columns named by the user need."""
    names = {column.name for column in columns}
    return {
        **options,
        "processes": bool(options.get("processes") or names & set(PROCESS_FIELDS)),
        "info": bool(options.get("info") or names & set(INFO)),
    }


def repeat(
    seconds: float, take: Callable[[], None], wait: Callable[[float], bool], count: int = 0
) -> None:
    """Take a snapshot every `seconds`, until there are `count`, or `wait(seconds)` returns true.

    `threading.Event().wait` is such a function. A slow snapshot delays the next one; missed ones
    are not made up for.
    """
    while True:
        began = time.monotonic()
        take()
        count -= 1
        if count == 0 or wait(max(0.0, began + seconds - time.monotonic())):
            return


class Notes:
    """The messages about a snapshot, printed below it."""

    def __init__(self, say: Say, again: bool) -> None:
        """With `again`, repeat messages that were printed below another snapshot."""
        self._say = say if again else Once(say)
        self._lines: list[str] = []

    def append(self, line: str) -> None:
        """Add a line about the current snapshot."""
        self._lines.append(line)

    def report(self) -> None:
        """Print the messages added since the last call."""
        lines, self._lines = self._lines, []
        for line in filter(None, lines):
            self._say(line)


class Fold:
    """The stage that leaves out TIME_WAIT and Docker's resolver, and notes their number."""

    def __init__(self, host: int, waiting: bool, note: Callable[[str], None]) -> None:
        """`host` is the id of the host's network namespace. With `waiting`, TIME_WAIT is kept."""
        self._host, self._waiting, self._note = host, waiting, note

    def feed(self, batch: Batch) -> Batch:
        """Return the other sockets."""
        states, namespaces = batch.fields["state_raw"], batch.fields["netns_id"]
        waits = [state == TIME_WAIT and not self._waiting for state in states]
        resolves = [
            address == _RESOLVER and not port and namespace != self._host
            for address, port, namespace in zip(
                batch.fields["saddr"], batch.fields["dport"], namespaces, strict=True
            )
        ]
        counts = {"TIME_WAIT": sum(waits), f"of Docker's DNS resolver ({_RESOLVER})": sum(resolves)}
        left_out = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        if not left_out:
            return batch
        self._note(f"Not shown: {left_out}. Use --all to show them.")
        return batch.select([not (one or two) for one, two in zip(waits, resolves, strict=True)])

    def flush(self) -> Batch:
        """Return nothing: no socket is held."""
        return NOTHING
