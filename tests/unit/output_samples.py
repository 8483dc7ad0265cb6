"""Columns and batches for the tests of output and filters."""

from collections.abc import Sequence
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from ig.columns import TIMESTAMP, integer, owner_columns, process_columns
from ig.container import HOST, Container
from ig.ends import endpoint_columns
from ig.gadget import Batch, Column, Kind

WEB = Container(
    id="a84e", name="web", runtime="docker", image="nginx:1.27", labels={"labels": "are unhashable"}
)
WHEN = 1_795_206_784_123_456_789

COLUMNS = (
    TIMESTAMP,
    *owner_columns(),
    *process_columns(),
    integer("ip", "", "version", width=2, drop=1, hidden=False),
    *endpoint_columns("src", "saddr", "sport"),
    *endpoint_columns("dst", "daddr", "dport", far=True),
    Column("type", "type"),
    Column("error", "error"),
    integer("error_raw", "error_raw"),
    Column(
        "latency",
        "latency",
        Kind.DURATION,
        width=12,
        right=True,
        show_if=lambda options: bool(options.get("latency")),
    ),
    Column("shared", "shared", Kind.BOOLEAN),
)

_EVENT: dict[str, Any] = {
    "timestamp": WHEN,
    "comm": "wget",
    "pid": 750625,
    "tid": 750625,
    "mntns": 4026532180,
    "uid": 0,
    "gid": 0,
    "pcomm": "sh",
    "parent_comm": "sh",
    "parent_pid": 750600,
    "netns": 4026532184,
    "cgroup": 7,
    "version": 4,
    "saddr": "172.17.0.2",
    "sport": 39664,
    "daddr": "93.184.215.14",
    "zone": "",
    "dport": 443,
    "type": "connect",
    "error": "",
    "error_raw": 0,
    "latency": 47_069,
    "shared": False,
}


def events(*changes: dict[str, Any], owners: Sequence[Container] = ()) -> Batch:
    """Return a batch with an event for each dictionary of differences from the usual event."""
    records = [_record({**_EVENT, **change}) for change in changes]
    fields = {name: [record[name] for record in records] for name in _EVENT}
    return Batch(fields, list(owners) or [WEB] * len(records))


def named(name: str) -> Container:
    """Return a container of that name."""
    return Container(id="1", name=name, runtime="docker")


def strings(*values: str) -> tuple[tuple[Column, ...], Batch]:
    """Return one column `name` (path `proc.name`) and a batch of the host's with these values."""
    column = Column("name", "proc.name", width=8, hidden=False)
    return (column,), Batch({"name": list(values)}, [HOST] * len(values))


def _record(event: dict[str, Any]) -> dict[str, Any]:
    for address in ("saddr", "daddr"):
        family = AF_INET6 if ":" in event[address] else AF_INET
        event[address] = inet_pton(family, event[address]).ljust(16, b"\0")
    for comm in ("comm", "pcomm", "parent_comm", "zone"):
        event[comm] = event[comm].encode("utf-8", "surrogateescape").ljust(16, b"\0")
    return event
