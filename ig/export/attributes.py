"""Events as attributes of log records, by OpenTelemetry's conventions where they have a name.

Others have the prefix `ig.` and the name of their column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ig.container import Container
from ig.ends import peers, shown_end
from ig.export.collector import error_type
from ig.gadget import Batch, Column, Gadget, Kind, of_each
from ig.output.text import visible
from ig.query import find_column
from ig.values import SECOND

Value = str | int | float | bool
_CONVENTIONS = {
    "pid": "process.pid",
    "tid": "thread.id",
    "comm": "thread.name",
    "pcomm": "process.executable.name",
    "uid": "process.real_user.id",
    "parent_pid": "process.parent_pid",
    "src.addr": "network.local.address",
    "src.port": "network.local.port",
    "dst.addr": "network.peer.address",
    "dst.port": "network.peer.port",
    "addr": "network.local.address",
    "port": "network.local.port",
    "proto": "network.transport",
    "ip": "network.type",
    "version": "network.type",
    "state": "network.connection.state",
}
"""The attribute of a column, by its name."""
_OMITTED = frozenset(
    ("timestamp", "error_raw", "fd", "accept_fd", "mntns", "gid", "parent_comm", "if")
)
_ZEROS = frozenset(("process.real_user.id",))
"""Attributes of which 0 is a value like any other."""
_STATES = {
    "SYN_RECV": "syn_received",
    "FIN_WAIT1": "fin_wait_1",
    "FIN_WAIT2": "fin_wait_2",
    "CLOSE": "closed",
}
"""The kernel's names of states that the conventions have another name for."""
_FORMS: dict[str, Callable[[Any], str]] = {
    "network.connection.state": lambda state: _STATES.get(state, state.lower()),
    "network.type": lambda number: f"ipv{number}" if number else "",
    "network.transport": str.lower,
}


class Attributes:
    """What the events of a gadget are called, and their attributes."""

    def __init__(
        self, gadget: Gadget, destination: Callable[[Container, str], str] | None = None
    ) -> None:
        """`destination` returns the name of a far end, of its container and its address."""
        self._name = gadget.event or "ig." + gadget.name.replace("_", ".")
        self._destination = destination or (lambda whose, _: shown_end(whose))
        typed = "{type}" in self._name
        self._type = find_column("type", gadget.columns) if typed else None
        self._columns = {
            name: column
            for column in gadget.columns
            if (name := _attribute(column)) and column is not self._type
        }
        ends = [column.end for column in gadget.columns if column.end]
        self._transport = ends[0].proto.lower() if ends else ""
        names = {column.name: column for column in gadget.columns}
        self._outcome, self._error = names.get("outcome"), names.get("error")
        self._far = names.get("dst.addr")

    def names(self, batch: Batch) -> list[str]:
        """Return the name of each event: `ig.tcp.connect`."""
        if not self._type:
            return [self._name] * len(batch)
        return [self._name.format(type=each) for each in batch.read(self._type)]

    def of(self, batch: Batch) -> list[dict[str, Value]]:
        """Return the attributes of each event; those that are empty or 0 are left out."""
        columns: dict[str, Sequence[Value]] = {}
        if self._transport:
            columns["network.transport"] = [self._transport] * len(batch)
        columns |= {name: _values(name, each, batch) for name, each in self._columns.items()}
        if self._far:
            ends = zip(peers(batch), batch.read(self._far), strict=True)
            columns["ig.destination"] = [visible(self._destination(*end)) for end in ends]
        if self._outcome:
            columns["error.type"] = list(map(error_type, batch.read(self._outcome)))
        elif self._error:
            columns["error.type"] = batch.read(self._error)
        rows = zip(*columns.values(), strict=True)
        owners = of_each(batch.owners, of_owner)
        return [
            {
                **owner,
                **{
                    name: value
                    for name, value in zip(columns, row, strict=True)
                    if value or name in _ZEROS
                },
            }
            for owner, row in zip(owners, rows, strict=True)
        ]


def _attribute(column: Column) -> str:
    """Return the name of a column's attribute, "" if it has none."""
    if column.name in _OMITTED or column.of_owner or column.end or column.members:
        return ""
    if column.name.endswith((".name", ".namespace", ".kind")) and not column.path:
        return ""  # of the ends, which have attributes of their own
    return _CONVENTIONS.get(column.name) or (f"ig.{column.name}" if column.path else "")


def _values(name: str, column: Column, batch: Batch) -> Sequence[Value]:
    values = batch.read(column)
    form = _FORMS.get(name)
    if form:
        return list(map(form, values))
    if column.kind is Kind.DURATION:
        return [nanoseconds / SECOND for nanoseconds in values]
    if column.kind is Kind.BOOLEAN:
        return list(map(bool, values))
    return list(map(visible, values)) if column.kind is Kind.STRING else values


def of_owner(container: Container) -> dict[str, Value]:
    """Return the attributes of a container; none of the host."""
    values = {
        "container.id": container.id,
        "container.name": container.name,
        "container.image.name": container.image,
        "container.runtime.name": container.engine,
        "k8s.namespace.name": container.pod_namespace,
        "k8s.pod.name": container.pod_name,
        "k8s.pod.uid": container.pod_uid,
        "k8s.container.name": container.pod_container,
    }
    return {name: visible(value) for name, value in values.items() if value}
