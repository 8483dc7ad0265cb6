"""The pairs of an interval: what connections, and what was counted, amount to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from itertools import compress, islice, repeat

from ig.container import HOST
from ig.gadget import of_each
from ig.top.rows import OF_SOCKETS, WHOSE, Row, far_identity, in_group, other
from ig.top.traffic import Traffic
from ig.values import SECOND

MOST = 4096
"""The most pairs that have a row of their own, by what they did; a container's others have one."""
LINGER = 5 * SECOND
"""How long a row stays after its last connection, in ns."""


class Pairs:
    """The rows of all pairs, kept from one interval to the next."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._rows: dict[Hashable, Row] = {}
        self._seen: dict[Hashable, tuple[int, bool]] = {}
        self._first = True

    def feed(self, traffic: Traffic, counted: Iterable[Row], now: int) -> list[Row]:
        """Return the rows of an interval that ended at `now` (ns since the epoch).

        `counted` are those of what the kernel has counted in it.
        """
        pairs, counted = _Connections(traffic), list(counted)
        sizes = Counter(pairs.opened)
        for row in counted:
            sizes[row.key] += row.new + row.failed
        found = _with_others(pairs, counted, _largest(sizes, self._most))
        first = now, self._first
        seen = {key: self._seen.get(key, first) for key in (*sizes, *found)}
        for key, row in found.items():
            row.since, row.older = seen[key]
            before = self._rows.get(key)
            row.failed_at = now if row.failed else before.failed_at if before else 0
        ended = {
            key: row.emptied(now)
            for key, row in self._rows.items()
            if key not in seen and now - (row.ended or now) < LINGER
        }
        self._first = False
        self._rows = found | dict(islice(ended.items(), self._most))
        self._seen = seen | {key: (row.since, row.older) for key, row in ended.items()}
        return list(self._rows.values())


class _Connections:
    """The pairs that have connections, and what these did."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._places, at = _numbered(traffic)
        # What is known of a container may have changed meanwhile, so that it is there twice.
        self.numbers: dict[Hashable, list[int]] = {}
        for number, key in enumerate(_keys(traffic, self._places)):
            self.numbers.setdefault(key, []).append(number)
        volumes = (traffic.bytes_in, traffic.bytes_out, traffic.retransmits)
        self._sums = [Counter(at), *(_summed(at, values) for values in volumes)]
        self.opened = {
            key: sum(map(self._sums[0].__getitem__, numbers))
            for key, numbers in self.numbers.items()
        }

    def row(self, number: int) -> Row:
        """Return the row of a pair, without counts."""
        return _row(self._traffic, self._places[number])

    def add(self, row: Row, number: int) -> None:
        """Add what the connections of a pair did."""
        for name, values in zip(OF_SOCKETS, self._sums, strict=True):
            if value := values.get(number):
                setattr(row, name, getattr(row, name) + value)


def _largest(sizes: Mapping[Hashable, int], most: int) -> Collection[Hashable]:
    """Return the keys of the largest ones."""
    if len(sizes) <= most:
        return sizes.keys()
    return frozenset(nlargest(most, sizes, key=sizes.__getitem__))


def _with_others(
    pairs: _Connections, counted: Iterable[Row], chosen: Collection[Hashable]
) -> dict[Hashable, Row]:
    """Return the rows of chosen pairs, and one for each owner of the others."""
    found: dict[Hashable, Row] = {}
    others: dict[Hashable, Row] = {}
    summed: set[Hashable] = set()

    def of(key: Hashable, row: Row) -> Row:
        if key in chosen and not row.other:
            return found.setdefault(key, row)
        total = other(row)
        total = others.setdefault(total.key, total)
        if key not in summed:
            summed.add(key)
            total.ends += row.ends
        return total

    for key, numbers in pairs.numbers.items():
        total = of(key, pairs.row(numbers[0]))
        for number in numbers:
            pairs.add(total, number)
    for row in counted:
        total = of(row.key, row)
        if total is not row:
            total.add(row)
    return found | others


def _numbered(traffic: Traffic) -> tuple[list[int], list[int]]:
    """Return the place of each pair's first connection, and each connection's pair by number."""
    fields, count = traffic.sockets.fields, len(traffic.sockets)
    far, peers = fields["daddr"], list(map(id, fields["peer"]))
    if peers.count(id(HOST)) < count:
        ends = zip(far, peers, strict=True)
        far = [address if peer == id(HOST) else peer for address, peer in ends]
    ports = fields["sport" if traffic.accepted else "dport"]
    holders = [fields["pid"]] if fields.get("pid") else []
    keys = list(zip(map(id, traffic.sockets.owners), far, ports, *holders, strict=True))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    at = list(map(numbers.__getitem__, keys))
    places, place = [], -1
    for number in range(len(numbers)):  # each begins later than the one before
        place = at.index(number, place + 1)
        places.append(place)
    return places, at


def _keys(traffic: Traffic, places: Sequence[int]) -> Iterator[Hashable]:
    """Yield the key of the row of each of these connections, as `Row.key`."""
    fields, accepted = traffic.sockets.fields, traffic.accepted
    ends = [
        (address, port, 0) if accepted else (address, 0, port)
        for address, port in zip(
            map(fields["daddr"].__getitem__, places),
            map(fields["sport" if accepted else "dport"].__getitem__, places),
            strict=True,
        )
    ]
    peers = list(map(fields["peer"].__getitem__, places))
    owners = list(map(traffic.sockets.owners.__getitem__, places))
    pids = map(fields["pid"].__getitem__, places) if "pid" in fields else repeat(0)
    rows = zip(
        of_each(owners, WHOSE), peers, of_each(peers, far_identity), ends, pids, strict=False
    )
    for whose, peer, identity, end, pid in rows:
        yield whose, accepted, end if peer is HOST else (identity, *end[1:]), pid, False


def _summed(at: Sequence[int], values: Sequence[int]) -> Mapping[int, int]:
    """Return the sum of each pair's values, of those that have any."""
    sums: dict[int, int] = {}
    if not any(values):
        return sums
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


def members(rows: Iterable[Row], traffic: Traffic, row: Row, by: str) -> list[int]:
    """Return the places of the connections that a row sums up; `rows` are those of all pairs."""
    places, at = _numbered(traffic)
    own = {each.key for each in rows}
    wanted = set()
    for number, place in enumerate(places):
        pair = _row(traffic, place)
        if in_group(pair if pair.key in own else other(pair), row, by):
            wanted.add(number)
    return [place for place, number in enumerate(at) if number in wanted]
