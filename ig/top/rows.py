"""The rows of `ig top`: what the connections of an interval amount to, by pair."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

from ig.container import HOST, Container
from ig.gadget import Batch
from ig.summary import Times

WHOSE: Callable[[Container], Hashable] = attrgetter("identity", "nested")
"""Return what distinguishes an owner from others."""


def far_identity(container: Container) -> Hashable:
    """Return what distinguishes a far end's container from others; a pod is one, whoever named it.

    Its runtime or Kubernetes may have done so.
    """
    if container.pod_name:
        return container.pod_namespace, container.pod_name
    return container.identity


@dataclass(slots=True)
class Row:
    """What the connections of a pair, or of several, did in an interval."""

    owner: Container
    accepted: bool
    peer: Container
    """The owner of the far end, HOST if unknown."""
    address: str
    """The far end's, empty if there are several."""
    sport: int
    """The port that is listened on, of accepted connections; else 0."""
    dport: int
    """The port that was connected to, of others."""
    pid: int = 0
    comm: str = ""
    open: int = 0
    new: int = 0
    failed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    retransmits: int = 0
    latencies: Times = field(default_factory=Times)
    since: int = 0
    """When it was first seen, in ns since the epoch."""
    older: bool = False
    """Whether it was there when the first snapshot was taken."""
    ended: int = 0
    """When it was first seen to have no connection any more; 0 if it has."""
    failed_at: int = 0
    """The end of the last interval in which an attempt failed, in ns since the epoch; 0 if none."""
    owners: int = 1
    ends: int = 1
    """How many containers and far ends it sums up."""
    other: bool = False
    """Whether it sums up what there was no room for."""

    @property
    def whose(self) -> Hashable:
        """What distinguishes its owner from others."""
        return WHOSE(self.owner)

    @property
    def far(self) -> Hashable:
        """What distinguishes its far end from others."""
        whose = self.address if self.peer is HOST else far_identity(self.peer)
        return whose, self.sport, self.dport

    @property
    def key(self) -> Hashable:
        """What distinguishes it from other rows, in this interval and later."""
        return self.whose, self.accepted, self.far, self.pid, self.other

    def emptied(self, ended: int = 0) -> Row:
        """Return the row without counts, with the time of its end."""
        kept = replace(self, latencies=Times(), ended=self.ended or ended)
        for name in SUMS:
            setattr(kept, name, 0)
        return kept

    def add(self, other: Row) -> None:
        """Add the counts of another row."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for bucket, count in other.latencies.buckets.items():
            self.latencies.add(bucket, count, other.latencies.longest)


OF_SOCKETS = ("open", "bytes_in", "bytes_out", "retransmits")
SUMS = (*OF_SOCKETS, "new", "failed")
_FIELDS = tuple(each.name for each in fields(Row) if each.name != "owner")


def other(row: Row) -> Row:
    """Return the row, without counts, in which pairs of the same owner are that have none."""
    return Row(row.owner, row.accepted, HOST, "", 0, 0, ends=0, other=True)


def _container(row: Row) -> Hashable:
    return row.whose


def _pod(row: Row) -> Hashable:
    owner = row.owner
    return (owner.pod_namespace, owner.pod_name) if owner.pod_name else row.whose


def _destination(row: Row) -> Hashable:
    return row.far


def _process(row: Row) -> Hashable:
    return row.whose, row.pid, row.comm


_KEYS: Mapping[str, Callable[[Row], Hashable]] = {
    "container": _container,
    "pod": _pod,
    "destination": _destination,
    "process": _process,
}


def grouped(rows: Sequence[Row], by: str) -> list[Row]:
    """Return the rows summed up by container, pod, destination or process; by pair as they are."""
    if by == "pair":
        return list(rows)
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault((_KEYS[by](row), row.accepted), []).append(row)
    return [_together(group) for group in groups.values()]


def _together(group: Sequence[Row]) -> Row:
    """Return one row for several."""
    total = group[0].emptied()
    for row in group:
        total.add(row)
    first = min(group, key=lambda row: row.since)
    total.since, total.older = first.since, any(row.older for row in group)
    total.ended = 0 if any(not row.ended for row in group) else max(row.ended for row in group)
    total.owners = len({row.whose for row in group})
    if total.owners > 1:
        pods = {(row.owner.pod_namespace, row.owner.pod_name) for row in group}
        namespace, name = pods.pop() if len(pods) == 1 else ("", "")
        total.owner = Container("", "", "", pod_namespace=namespace, pod_name=name)
    total.ends = len({row.far for row in group if not row.other})
    total.ends += sum(row.ends for row in group if row.other)
    if total.ends > 1:
        total.peer, total.address, total.sport, total.dport = HOST, "", 0, 0
    if len({row.pid for row in group}) > 1:
        total.pid, total.comm = 0, ""
    return total


def in_group(pair: Row, row: Row, by: str) -> bool:
    """Return whether a pair is in a row of such a group."""
    return pair.key == row.key if by == "pair" else _KEYS[by](pair) == _KEYS[by](row)


def batch_of(rows: Sequence[Row], now: int, seconds: float) -> Batch:
    """Return the rows as events of columns, with the time and length of their interval."""
    fields: dict[str, Sequence[Any]] = {
        name: [getattr(row, name) for row in rows] for name in _FIELDS
    }
    fields["timestamp"], fields["seconds"] = [now] * len(rows), [seconds] * len(rows)
    fields["row"] = rows
    return Batch(fields, [row.owner for row in rows])
