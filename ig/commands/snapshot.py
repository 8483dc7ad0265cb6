"""`ig snapshot ...`: show the current state, once or repeatedly."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ig import query
from ig.commands import answers
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
from ig.container import HOST
from ig.containers.index import Index
from ig.containers.peers import Peers
from ig.containers.selection import Selection
from ig.gadget import Batch, Column, CompatView, Gadget
from ig.kernel import netns
from ig.kernel.capabilities import Capability
from ig.output.stream import Stream, say
from ig.query import find_column
from ig.sockets.collect import PROCESS_FIELDS, Say, collect
from ig.sockets.owner import Known
from ig.sockets.proc import (
    INFO,
    TIME_WAIT,
)
from ig.sockets.published import Published, silent
from ig.stop import Stop

_SNAPSHOT = (
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
    sort = split_names(options.get("sort")) or list(DEFAULT_ORDER)
    options = _snapshot_options(gadget, view, options, sort)
    display = DisplayOptions(gadget, view, options)
    stop = Stop()
    stream = Stream(1, stop)  # while it may still open what is another user's
    index = make_index(options, _tells_ends(display, options))
    answered = follow(index, options, _SNAPSHOT)
    configure_display(display, chosen, index, answered)
    gc.disable()  # one pass over plain lists: a collection would cost time and free nothing
    notes = Notes(say, again=os.isatty(1))
    name_ends = _name_ends(display, options, chosen, index)
    finish = _finish(gadget, display, {**options, "sort": sort}, notes.append)
    show = make_printer(display, options, stream, stop, notes.tell)

    def take() -> Batch:
        return finish(name_ends(collect(options, known_by(index), chosen.wants, notes.append)))

    write_ready_file(options.get("ready_file"))
    with closing(index):
        if options.get("watch"):
            watch(options["watch"], take, show, stop.wait)
        else:
            Hint(index, chosen, options).give_now()
            show(take())
            answers.need_owners(answered, chosen)


def _tells_ends(display: DisplayOptions, options: Mapping[str, Any]) -> bool:
    """Return whether the containers of addresses and published ports are needed."""
    return display.resolves or bool(options.get("listening"))


def _name_ends(
    display: DisplayOptions, options: Mapping[str, Any], chosen: Selection, index: Index
) -> Callable[[Batch], Batch]:
    """Return a function that names the containers of published ports and far ends, if needed.

    It adds rows for published ports without a socket, if these are requested.
    """
    peers = Peers(index) if display.resolves else None
    host = netns.host()

    def name(batch: Batch) -> Batch:
        if _tells_ends(display, options):
            ports = Published(index.containers(sandboxes=True), host)
            batch = ports.add(batch, silent(options, chosen.wants(HOST)))
        return peers.with_peers(batch) if peers else batch

    return name


def _finish(
    gadget: Gadget, display: DisplayOptions, options: Mapping[str, Any], note: Callable[[str], None]
) -> Callable[[Batch], Batch]:
    """Return a function that filters, folds and sorts a snapshot; `note` gets their number."""
    folds = display.mode == "columns" and not (options.get("all") or options.get("filter"))
    host = netns.host()

    def finish(batch: Batch) -> Batch:
        if display.keep:
            batch = batch.select(display.keep(batch))
        if folds:
            batch, line = folded(batch, host, bool(options.get("state")))
            note(line)
        return query.first(batch, gadget.columns, options["sort"], options.get("max_rows"))

    return finish


def _snapshot_options(
    gadget: Gadget, view: CompatView | None, options: Mapping[str, Any], sort: Sequence[str]
) -> dict[str, Any]:

    named = [find_column(key.lstrip("-"), gadget.columns) for key in sort]
    named += DisplayOptions(gadget, view, options).named
    return asked_by_columns({**options, "state": split_names(options.get("state"))}, named)


def make_printer(
    display: DisplayOptions,
    options: Mapping[str, Any],
    stream: Stream,
    stop: Stop,
    tell: Callable[[], None],
) -> Callable[[Batch], None]:
    """Return a function that prints a snapshot; on a terminal it replaces the last one."""
    columns = [c for c in display.columns if c.show_if is None or c.show_if(options)]
    formatter = display.formatter(array=True, columns=columns)

    def show(batch: Batch) -> None:
        with stop.noted():
            if options.get("watch") and os.isatty(1):
                stream.write("\x1b[H\x1b[2J")
            stream.write(formatter.header(batch))
            for part in portions(batch):
                stream.write(formatter.format(part))
            stream.write(formatter.footer())
        tell()

    return show


def known_by(index: Index) -> Known:
    """Return the current containers of an index."""
    return Known(index.find, index.containers(), index.strays)


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


def watch(
    seconds: float,
    take: Callable[[], Batch],
    show: Callable[[Batch], None],
    wait: Callable[[float], bool],
) -> None:
    """Take and show a snapshot every `seconds`, until `wait(seconds)` returns true.

    `threading.Event().wait` is such a function. A slow snapshot delays the next one; missed ones
    are not made up for.
    """
    while True:
        began = time.monotonic()
        show(take())
        if wait(max(0.0, began + seconds - time.monotonic())):
            return


class Notes:
    """The messages about a snapshot, printed below it."""

    def __init__(self, say: Say, again: bool) -> None:
        """With `again`, repeat messages that were printed below the last snapshot."""
        self._say = say
        self._again = again
        self._lines: list[str] = []
        self._said: list[str] = []

    def append(self, line: str) -> None:
        """Add a line about the current snapshot."""
        self._lines.append(line)

    def tell(self) -> None:
        """Print the messages added since the last call."""
        for line in self._lines:
            if line and (self._again or line not in self._said):
                self._say(line)
        self._lines, self._said = [], self._lines


def portions(batch: Batch, size: int = 1024) -> Iterator[Batch]:
    """Yield the batch in parts, so that the text of all rows is never in memory at once."""
    for start in range(0, len(batch), size):
        part = slice(start, start + size)
        fields = {name: values[part] for name, values in batch.fields.items()}
        yield Batch(fields, batch.owners[part])


def folded(batch: Batch, host: int, waiting: bool) -> tuple[Batch, str]:
    """Return the sockets without TIME_WAIT and Docker's resolver, and a message with their number.

    `host` is the id of the host's network namespace. With `waiting`, TIME_WAIT is kept.
    """
    states, namespaces = batch.fields["state_raw"], batch.fields["netns_id"]
    waits = [state == TIME_WAIT and not waiting for state in states]
    resolves = [
        address == _RESOLVER and not port and namespace != host
        for address, port, namespace in zip(
            batch.fields["saddr"], batch.fields["dport"], namespaces, strict=True
        )
    ]
    counts = {"TIME_WAIT": sum(waits), f"of Docker's DNS resolver ({_RESOLVER})": sum(resolves)}
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if not said:
        return batch, ""
    keep = [not (one or other) for one, other in zip(waits, resolves, strict=True)]
    return batch.select(keep), f"Not shown: {said}. Use --all to show them."
