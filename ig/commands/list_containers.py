"""`ig list-containers`: the containers of all runtimes, once or with each change."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from ig.columns import integer, owner_columns
from ig.commands import answers
from ig.commands.answers import Answers, Hint, closing
from ig.commands.display import DisplayOptions
from ig.commands.setup import check_ready_file, follow, make_index, selection, write_ready_file
from ig.container import Change, Container
from ig.containers.index import Index
from ig.errors import IgError
from ig.gadget import Batch, Column, Gadget, Kind
from ig.kernel import monitor
from ig.kernel.processes import sees_all_processes
from ig.output.sink import Formatter
from ig.output.stream import Stream, say
from ig.sockets import proc
from ig.stop import Stop
from ig.values import SECOND

_MOST_CHANGES = 65536
_TIMEOUT = 6.0  # seconds for all runtimes to list, and again for all details
_ASKING = 8  # questions for details at once
_NOT_LISTED = "its containers are not listed"
_REPORTED = ("created", "started", "renamed", "exited", "removed")


def _inode(container: Container, kind: str) -> int:
    """Return the namespace that the container's first process is in, 0 if that is not known."""
    # In a PID namespace /proc may have another process of that number.
    if not container.pid or not (sees_all_processes() or _is_in(container)):
        return 0
    return monitor.namespace(container.pid, kind)


def _warn_unseen(containers: Sequence[Container]) -> None:
    """Print a warning if namespaces are missing because host processes are not visible."""
    if not sees_all_processes() and any(each.pid and not _is_in(each) for each in containers):
        say(
            "warning: ig runs in its own PID namespace: mntns and netns of containers are not "
            "available. Run it on the host, or with --pid=host."
        )


def _is_in(container: Container) -> bool:
    return any(container.id in path for path in proc.cgroup_paths(container.pid))


def _age(batch: Batch) -> Sequence[str]:
    """Return the uptime of each, in its two largest units."""
    now = time.time_ns()
    return [_units(now - started) if started else "-" for started in batch.fields["started"]]


def _units(nanoseconds: int) -> str:
    seconds = max(nanoseconds, 0) // SECOND
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part}{smaller}"
    return f"{seconds // 60}m{seconds % 60}s" if seconds >= 60 else f"{seconds}s"


def _addresses(batch: Batch) -> Sequence[str]:
    """Return the first address of each, and how many more there are."""
    lists = [owner.addresses for owner in batch.owners]
    return [
        f"{each[0]} +{len(each) - 1}" if len(each) > 1 else "".join(each) or "-" for each in lists
    ]


_OWNER = {column.name: column for column in owner_columns()}
_integer = partial(integer, hidden=False, optional=True)
# What changes of a container is a field.
_COLUMNS = (
    Column(
        "event",
        "event",
        width=8,
        show_if=lambda options: bool(options.get("watch")),
        description="Event: exists, created, started, renamed, exited or removed.",
    ),
    replace(_OWNER["runtime"], path="runtime", drop=4, hidden=False),
    Column(
        "id",
        "id",
        width=13,
        hidden=False,
        of_owner=lambda owner: owner.id[:12],
        description="Container ID, first 12 digits.",
    ),
    replace(
        _OWNER["containername"],
        name="name",
        path="name",
        heading="",
        least=12,
        text=None,
        description="Container name.",
    ),
    replace(_OWNER["image"], path="image", drop=5, hidden=False),
    _integer(
        "pid",
        "pid",
        drop=3,
        description="Process ID of the container's first process, 0 if it is not running.",
    ),
    _integer(
        "mntns",
        "mntns_id",
        width=10,
        drop=1,
        description="Inode of the mount namespace, 0 if unknown.",
    ),
    _integer(
        "netns",
        "netns_id",
        width=10,
        drop=2,
        description="Inode of the network namespace, 0 if unknown.",
    ),
    Column(
        "ip",
        "ip",
        hidden=False,
        text=_addresses,
        description="IP addresses, comma-separated.",
    ),
    Column(
        "started",
        "started",
        Kind.TIMESTAMP,
        width=8,
        heading="UP",
        hidden=False,
        text=_age,
        description="Start time (tables: time since then); null if not started.",
    ),
    replace(_OWNER["containerid"], path="containerId"),
    *(column for column in _OWNER.values() if column.path.startswith("k8s.")),
)
LIST = Gadget(
    "list_containers", ("list-containers", ""), "List the containers of all runtimes.", _COLUMNS
)


def show(options: Mapping[str, Any]) -> None:
    """List the selected containers; with `watch`, then print a line for each change.

    Raises IgError, once the list is printed, if it is not complete.
    """
    display = DisplayOptions(LIST, None, options)
    watching = bool(options.get("watch"))
    chosen = selection(options)
    check_ready_file(options.get("ready_file"))
    stop = Stop()
    stream = Stream(1, stop)
    index = make_index(options, consequence=_NOT_LISTED)
    changes = Changes(_MOST_CHANGES, say)
    if watching:
        gc.enable()  # the launcher disabled it
        index.subscribe(changes.put)
    with closing(index):
        answered = follow(index, options, (), _TIMEOUT)
        found, failed = _detailed(index, list(filter(chosen.wants, index.containers())))
        _warn_unseen(found)
        with stop.noted():
            formatter = _print_list(display, stream, found, watching)
            write_ready_file(options.get("ready_file"))
            Hint(index, chosen, options).report_now()
            while watching and not stop():
                change = changes.next(stream)
                if change and chosen.wants(change.container):
                    batch = _batch([change.container], change.kind)
                    stream.write(formatter.format(_kept(display, batch)))
            stream.write(formatter.footer())
        if not watching:
            _need_whole(answered, failed)


def _print_list(
    display: DisplayOptions, stream: Stream, found: list[Container], watching: bool
) -> Formatter:
    """Print the current containers; return the formatter for changes."""
    found.sort(key=lambda each: (each.runtime, each.name))
    display.show_pods(found)
    formatter = display.formatter(array=not watching)
    listed = _kept(display, _batch(found, "exists"))
    stream.write(formatter.header(None if watching else listed))
    stream.write(formatter.format(listed))
    return formatter


def _need_whole(answered: Answers, failed: int) -> None:
    if not answered.listed and not answered.missing:
        raise IgError(
            "Cannot list containers: no container runtime found.",
            remedy="Use --docker-socketpath and similar options to set its socket.",
        )
    answers.need_all(answered, "The list is incomplete")
    if failed:
        raise IgError(f"No details (pid, start time, addresses) for {failed} containers.")


def _detailed(index: Index, containers: Sequence[Container]) -> tuple[list[Container], int]:
    """Return the containers with details, and the number of those without."""
    wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
    answered: queue.SimpleQueue[tuple[int, Container]] = queue.SimpleQueue()
    for place in range(len(containers)):
        wanted.put(place)

    def ask() -> None:
        with suppress(queue.Empty):
            while True:
                place = wanted.get_nowait()
                answered.put((place, index.details(containers[place])))

    for _ in range(min(_ASKING, len(containers))):
        threading.Thread(target=ask, name="ig-details", daemon=True).start()
    found = list(containers)
    failed = set(range(len(containers)))
    ends = time.monotonic() + _TIMEOUT
    with suppress(queue.Empty):
        for _ in containers:
            place, found[place] = answered.get(timeout=max(0.0, ends - time.monotonic()))
            if found[place] is not containers[place]:
                failed.discard(place)
    running = {(each.scope, each.id) for each in index.containers()} if failed else set()
    missing = [place for place in failed if (found[place].scope, found[place].id) in running]
    return found, len(missing)


def _kept(display: DisplayOptions, batch: Batch) -> Batch:
    for stage in display.filters:
        batch = stage.feed(batch)
    return batch


class Changes:
    """The changes that are not printed yet, and the number of dropped ones."""

    def __init__(self, room: int, say: Callable[[str], None]) -> None:
        self._queue: queue.Queue[Change] = queue.Queue(room)
        self._say = say
        self._lost = 0

    def put(self, change: Change) -> None:
        """Add a change, from any thread."""
        if change.kind in _REPORTED:
            try:
                self._queue.put_nowait(change)
            except queue.Full:
                self._lost += 1

    def next(self, stream: Stream) -> Change | None:
        """Return the next change, None if there is none within 0.1 s. Raises ReaderGone."""
        try:
            return self._queue.get(timeout=0.1)
        except queue.Empty:
            stream.rest(0)
        if self._lost:
            count, self._lost = self._lost, 0
            self._say(f"{count} changes lost: the output was read too slowly")
        return None


def _batch(containers: Sequence[Container], event: str) -> Batch:
    fields: dict[str, list[Any]] = {
        "event": [event] * len(containers),
        "pid": [each.pid for each in containers],
        "mntns": [_inode(each, "mnt") for each in containers],
        "netns": [_inode(each, "net") for each in containers],
        "ip": [",".join(each.addresses) for each in containers],
        "started": [each.started for each in containers],
    }
    return Batch(fields, list(containers))
