"""`ig list-containers`: the containers that the runtimes tell of, once or as they come and go."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import Any

from ig import monitor, ready
from ig.columns import owner_columns
from ig.containers.container import Change, Container
from ig.gadget import Batch, Column, Gadget, Kind
from ig.invoke import follow, make_index, selection
from ig.output.stream import Stream
from ig.shape import Shape
from ig.stop import Stop

_MOST_CHANGES = 65536
_TOLD = ("created", "started", "renamed", "exited", "removed")


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


_LIST = Gadget("list_containers", ("", ""), "List the containers.", _COLUMNS)


def show(options: Mapping[str, Any]) -> None:
    """List the chosen containers; with `watch` go on with a line for each change."""
    shape = Shape(_LIST, None, options)
    watching = bool(options.get("watch"))
    chosen = selection(options)
    ready.check(options.get("ready_file"))
    stop = Stop()
    stream = Stream(1, stop)
    index = make_index(options)
    changes: queue.Queue[Change] = queue.Queue(_MOST_CHANGES)
    if watching:
        index.subscribe(lambda change: None if changes.full() else changes.put_nowait(change))
    try:
        follow(index, options, ())
        found = [index.details(each) for each in index.containers() if chosen.wants(each)]
        found.sort(key=lambda each: (each.runtime, each.name))
        shape.show_pods(found)
        formatter = shape.formatter(array=not watching)
        listed = _kept(shape, _batch(found, "exists"))
        stream.write(formatter.header(None if watching else listed))
        stream.write(formatter.format(listed))
        ready.write(options.get("ready_file"))
        while watching and not stop():
            change = _next_change(changes, stream)
            if change and chosen.wants(change.container):
                batch = _batch([change.container], change.kind)
                stream.write(formatter.format(_kept(shape, batch)))
        stream.write(formatter.footer())
    finally:
        index.close()


def _kept(shape: Shape, batch: Batch) -> Batch:
    return batch.select(shape.keep(batch)) if shape.keep else batch


def _next_change(changes: queue.Queue[Change], stream: Stream) -> Change | None:
    try:
        change = changes.get(timeout=0.1)
    except queue.Empty:
        stream.rest(0)
        return None
    return change if change.kind in _TOLD else None


def _batch(containers: Sequence[Container], event: str) -> Batch:
    fields: dict[str, list[Any]] = {
        "event": [event] * len(containers),
        "pid": [each.pid for each in containers],
        "mntns": [monitor.namespace(each.pid, "mnt") if each.pid else 0 for each in containers],
        "netns": [monitor.namespace(each.pid, "net") if each.pid else 0 for each in containers],
        "ip": [",".join(each.addresses) for each in containers],
        "started": [each.started for each in containers],
    }
    return Batch(fields, list(containers))
