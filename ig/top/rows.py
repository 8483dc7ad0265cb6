"""The rows of `ig top`: what the connections of an interval amount to, by pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from heapq import nlargest
from itertools import compress
from typing import Any

from ig.container import HOST, Container
from ig.gadget import Batch
from ig.summary import Times
from ig.top.traffic import Traffic, identity
from ig.values import SECOND

MOST = 4096
"""The most pairs that have a row of their own; the others of a container are summed up."""
LINGER = 5 * SECOND
"""How long a row stays after its last connection, in ns."""


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
    owners: int = 1
    ends: int = 1
    """How many containers and far ends it sums up."""
    other: bool = False
    """Whether it sums up what there was no room for."""

    @property
    def far(self) -> Hashable:
        """What distinguishes its far end from others."""
        whose = self.address if self.peer is HOST else identity(self.peer)
        return whose, self.sport, self.dport

    @property
    def key(self) -> Hashable:
        """What distinguishes it from other rows, in this interval and later."""
        return identity(self.owner), self.accepted, self.far, self.pid, self.other

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


_OF_SOCKETS = ("open", "bytes_in", "bytes_out", "retransmits")
SUMS = (*_OF_SOCKETS, "new", "failed")
_FIELDS = tuple(each.name for each in fields(Row) if each.name != "owner")


class Pairs:
    """The rows of all pairs, kept from one interval to the next."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._rows: dict[Hashable, Row] = {}
        self._first = True

    def feed(self, traffic: Traffic, counted: Iterable[Row], now: int) -> list[Row]:
        """Return the rows of an interval that ended at `now` (ns since the epoch).

        `counted` are those of what the kernel has counted in it.
        """
        found = distinct(_of_pairs(traffic, self._most))
        self._merge(found, counted)
        for key, row in found.items():
            before = self._rows.get(key)
            row.since = before.since if before else now
            row.older = before.older if before else self._first
        ended = [
            row.emptied(now)
            for key, row in self._rows.items()
            if key not in found and now - (row.ended or now) < LINGER
        ]
        self._first = False
        self._rows = found | {row.key: row for row in ended[: self._most]}
        return list(self._rows.values())

    def _merge(self, found: dict[Hashable, Row], counted: Iterable[Row]) -> None:
        """Add what was counted to the rows of open connections; as many others get their own."""
        apart = []
        for row in counted:
            if row.key in found:
                found[row.key].add(row)
            else:
                apart.append(row)
        apart.sort(key=lambda row: row.new + row.failed, reverse=True)
        found |= {row.key: row for row in apart[: self._most]}
        for row in apart[self._most :]:
            other = Row(row.owner, row.accepted, HOST, "", 0, 0, ends=0, other=True)
            other = found.setdefault(other.key, other)
            other.add(row)
            other.ends += row.ends


def distinct(rows: Iterable[Row]) -> dict[Hashable, Row]:
    """Return one row for each pair: what is known of a container may have changed meanwhile."""
    found: dict[Hashable, Row] = {}
    for row in rows:
        first = found.setdefault(row.key, row)
        if first is not row:
            first.add(row)
            if row.other:
                first.ends += row.ends
    return found


def _of_pairs(traffic: Traffic, most: int) -> Iterator[Row]:
    """Yield a row for each pair with connections, `most` at most, and those of the others."""
    places, at = _numbered(traffic)
    opened = Counter(at)
    sums = [
        _summed(at, values) for values in (traffic.bytes_in, traffic.bytes_out, traffic.retransmits)
    ]
    chosen: Iterable[int] = range(len(places))
    if len(places) > most:
        chosen = nlargest(most, chosen, key=opened.__getitem__)
    rest = set(range(len(places))).difference(chosen)
    others: dict[int, Row] = {}
    for number in chosen:
        row = _row(traffic, places[number])
        _add(row, (opened, *sums), number)
        yield row
    for number in rest:
        owner = traffic.sockets.owners[places[number]]
        if id(owner) not in others:
            others[id(owner)] = Row(owner, traffic.accepted, HOST, "", 0, 0, ends=0, other=True)
        _add(others[id(owner)], (opened, *sums), number)
        others[id(owner)].ends += 1
    yield from others.values()


def _add(row: Row, counts: Sequence[Mapping[int, int]], number: int) -> None:
    """Add the counts of a pair, in the order of _OF_SOCKETS."""
    for name, values in zip(_OF_SOCKETS, counts, strict=True):
        if value := values.get(number):
            setattr(row, name, getattr(row, name) + value)


def _numbered(traffic: Traffic) -> tuple[list[int], list[int]]:
    """Return the place of each pair's first connection, and each connection's pair by number."""
    fields = traffic.sockets.fields
    far = [
        address if peer is HOST else id(peer)
        for address, peer in zip(fields["daddr"], fields["peer"], strict=True)
    ]
    ports = fields["sport" if traffic.accepted else "dport"]
    holders = fields.get("pid") or [0] * len(ports)
    keys = list(zip(map(id, traffic.sockets.owners), far, ports, holders, strict=True))
    first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return list(map(first.__getitem__, numbers)), list(map(numbers.__getitem__, keys))


def _summed(at: Sequence[int], values: Sequence[int]) -> Mapping[int, int]:
    """Return the sum of each pair's values, of those that have any."""
    sums: dict[int, int] = {}
    for number, value in zip(compress(at, values), filter(None, values), strict=True):
        sums[number] = sums.get(number, 0) + value
    return sums


def _row(traffic: Traffic, place: int) -> Row:
    """Return the row of the pair that a connection belongs to, without counts."""
    fields, accepted = traffic.sockets.fields, traffic.accepted
    return Row(
        traffic.sockets.owners[place],
        accepted,
        fields["peer"][place],
        fields["daddr"][place],
        fields["sport"][place] if accepted else 0,
        0 if accepted else fields["dport"][place],
        fields["pid"][place] if "pid" in fields else 0,
        fields["comm"][place] if "comm" in fields else "",
    )


def _container(row: Row) -> Hashable:
    return identity(row.owner)


def _pod(row: Row) -> Hashable:
    owner = row.owner
    return (owner.pod_namespace, owner.pod_name) if owner.pod_name else identity(owner)


def _destination(row: Row) -> Hashable:
    return row.far


def _process(row: Row) -> Hashable:
    return identity(row.owner), row.pid, row.comm


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
    total.owners = len({identity(row.owner) for row in group})
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


def members(traffic: Traffic, row: Row, by: str) -> list[int]:
    """Return the places of the connections that a row sums up."""
    places, at = _numbered(traffic)
    wanted = {number for number, place in enumerate(places) if _same(_row(traffic, place), row, by)}
    return [place for place, number in enumerate(at) if number in wanted]


def _same(pair: Row, row: Row, by: str) -> bool:
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
