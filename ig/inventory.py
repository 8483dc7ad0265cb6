"""`ig list-containers`: the containers that the runtimes tell of, once or as they come and go."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ig import output
from ig.columns import owner_columns
from ig.containers.container import Change, Container
from ig.gadget import Batch, Column, Kind
from ig.invoke import Stop, make_index, selection
from ig.output.stream import Stream

_SYNC_PATIENCE = 2.0
_TOLD = ("created", "started", "renamed", "exited", "removed")


def _inode(pid: int, kind: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino if pid else 0
    except OSError:
        return 0  # it has ended, or is not ours to look at


# Each reads a field so that it is computed for every row anew: what a container is, changes.
_COLUMNS = (
    Column("event", "event", width=8, show_if=lambda options: bool(options.get("watch"))),
    Column(
        "runtime", "runtime", width=10, hidden=False, read=lambda b: [o.runtime for o in b.owners]
    ),
    Column("id", "id", width=13, hidden=False, read=lambda b: [o.id[:12] for o in b.owners]),
    Column("name", "name", width=24, hidden=False, read=lambda b: [o.name for o in b.owners]),
    Column("image", "image", width=24, hidden=False, read=lambda b: [o.image for o in b.owners]),
    Column("pid", "pid", Kind.INTEGER, width=8, hidden=False, read=lambda b: b.fields["pid"]),
    Column(
        "mntns", "mntns_id", Kind.INTEGER, width=10, hidden=False, read=lambda b: b.fields["mntns"]
    ),
    Column(
        "netns", "netns_id", Kind.INTEGER, width=10, hidden=False, read=lambda b: b.fields["netns"]
    ),
    Column("ip", "ip", width=16, hidden=False, read=lambda b: b.fields["ip"]),
    Column("started", "started", Kind.TIMESTAMP, hidden=False, read=lambda b: b.fields["started"]),
    Column("containerid", "containerId", read=lambda b: [o.id for o in b.owners]),
    *(column for column in owner_columns() if column.path.startswith("k8s.")),
)


def show(options: Mapping[str, Any]) -> None:
    """List the chosen containers; with `watch` go on with a line for each change."""
    shown = output.shown_columns(_COLUMNS, options)
    mode, shown = output.parse_output(options.get("output") or "columns", _COLUMNS, shown)
    width = os.get_terminal_size(1).columns if os.isatty(1) else None
    watching = bool(options.get("watch"))
    formatter = output.formatter(mode, _COLUMNS, shown, width=width, array=not watching)
    chosen = selection(options)
    stop = Stop()
    stream = Stream(1, stop)
    index = make_index(options)
    changes: queue.Queue[Change] = queue.Queue(maxsize=65536)

    def told(change: Change) -> None:
        if not changes.full():
            changes.put_nowait(change)

    if watching:
        index.subscribe(told)
    index.start()
    try:
        index.wait_synced(_SYNC_PATIENCE)
        found = [index.details(each) for each in index.containers() if chosen.wants(each)]
        found.sort(key=lambda each: (each.runtime, each.name))
        stream.write(formatter.header())
        stream.write(formatter.format(_batch(found, "exists")))
        while watching and not stop():
            _next_change(changes, lambda change: chosen.wants(change.container), formatter, stream)
        stream.write(formatter.footer())
    finally:
        index.close()


def _next_change(
    changes: queue.Queue[Change],
    wants: Callable[[Change], bool],
    formatter: output.Formatter,
    stream: Stream,
) -> None:
    try:
        change = changes.get(timeout=0.1)
    except queue.Empty:
        stream.rest(0)
        return
    if change.kind in _TOLD and wants(change):
        stream.write(formatter.format(_batch([change.container], change.kind)))


def _batch(containers: Sequence[Container], event: str) -> Batch:
    fields: dict[str, list[Any]] = {
        "event": [event] * len(containers),
        "pid": [each.pid for each in containers],
        "mntns": [_inode(each.pid, "mnt") for each in containers],
        "netns": [_inode(each.pid, "net") for each in containers],
        "ip": [",".join(each.addresses) for each in containers],
        "started": [each.started for each in containers],
    }
    return Batch(fields, list(containers))
