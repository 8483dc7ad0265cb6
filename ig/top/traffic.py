"""What differs between two snapshots of the same connections: bytes, retransmits, new ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import compress
from operator import attrgetter, or_
from typing import Any, NamedTuple

from ig.container import Container, Identity
from ig.gadget import Batch, of_each
from ig.memo import Cache
from ig.sockets.proc import ESTABLISHED, LISTEN
from ig.sockets.sides import Listener, serving

STATES = (
    *("established", "fin_wait1", "fin_wait2", "close_wait", "last_ack", "closing"),
    "listen",
)
"""The states to ask for: those of connections that exist, and of listeners."""
_FIN_WAIT2, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 5, 8, 9, 11
_HELD = frozenset({ESTABLISHED, _CLOSE_WAIT})
"""The states in which an application has the connection, or will get it by accept()."""
_FIN_RECEIVED = frozenset({_CLOSE_WAIT, _LAST_ACK, _CLOSING})
_NOTHING = (0, 0, 0)
_END = ("netns_id", "saddr", "sport")
_NEEDED = (
    *("version", "saddr", "sport", "daddr", "dport", "state_raw", "state", "netns_id", "ino"),
    *("cookie", "bytes_received", "bytes_acked", "retransmits", "rtt", "peer"),
    *("pid", "comm"),
)

_IDENTITY: Callable[[Container], Identity] = attrgetter("identity")
End = tuple[int, str, int]
"""The id of a network namespace, an address and a port."""
_Ends = AbstractSet[End]
_Volumes = Mapping[int, tuple[int, int, int]]
"""By cookie: bytes received, bytes acknowledged by the far end, retransmits; of its whole life."""


class Traffic(NamedTuple):
    """The connections of one moment, and what they did since the moment before: a list each."""

    sockets: Batch
    """What the snapshot has of each, and the owner of its far end (`peer`)."""
    accepted: bool
    """Whether they were accepted; else they were connected."""
    bytes_in: Sequence[int]
    bytes_out: Sequence[int]
    """Those that the far end has acknowledged."""
    retransmits: Sequence[int]


class Meter:
    """Compares each snapshot with the one before, connection by connection.

    A connection is recognised by the kernel's cookie. One that a snapshot lacks is remembered until
    the next: the kernel's table may change while it is read.
    """

    def __init__(self) -> None:
        self._listened: _Ends = frozenset()
        self._brief: set[End] = set()
        self._orphans: frozenset[int] = frozenset()
        self._known: frozenset[Identity] = frozenset()
        self.served: dict[int, set[Listener]] = {}
        """Where connections of the last snapshot, or later ones, were accepted, by namespace."""
        self._before: _Volumes = {}
        self._missed: _Volumes = {}
        self._at = 0

    def note_accepted(self, ends: Iterable[End]) -> None:
        """Note where connections were accepted since the last snapshot.

        What listened there may have begun after it, and be closed before the next.
        """
        for namespace, address, port in ends:
            if self._listened.isdisjoint((namespace, each, port) for each in serving(address)):
                self._brief.add((namespace, address, port))
                self.served.setdefault(namespace, set()).add((address, port))

    def feed(
        self,
        batch: Batch,
        now: int,
        known: Iterable[Container] = (),
        *,
        accepted: bool = False,
        ports: Collection[int] = (),
        version: int = 0,
    ) -> Traffic:
        """Return the connections of a snapshot that was taken at `now` (ns since the epoch).

        They are the accepted ones or the others, if there are `ports` those on one of them: the
        port that was connected to; with a `version` of IP those that use it. `known` are the
        containers whose connections are all in the snapshot. What a connection did before its owner
        was known is not counted, as it may be older than the snapshot before.
        """
        batch = self._chosen(batch, accepted, ports, version)
        cookies = batch.fields["cookie"]
        values = list(zip(*_volumes(batch, accepted), strict=True))
        differences = _differences(values, self._starts(batch, values))
        seen = dict(zip(cookies, values, strict=True))
        seen.pop(0, None)
        self._missed = {cookie: self._before[cookie] for cookie in self._before.keys() - seen}
        self._before, self._at = seen, now
        self._known = frozenset(map(_IDENTITY, known)) | set(of_each(batch.owners, _IDENTITY))
        return Traffic(batch, accepted, *differences)

    def _chosen(self, batch: Batch, accepted: bool, ports: Collection[int], version: int) -> Batch:
        """Return the connections of one direction, with the fields that are needed of them."""
        fields = {name: batch.fields[name] for name in _NEEDED if name in batch.fields}
        rows = zip(self._came(fields), fields["state_raw"], fields["ino"], strict=True)
        # The rest is what the kernel finishes after its application has closed it.
        keep = [
            way == accepted and (state in _HELD or (inode != 0 and state != LISTEN))
            for way, state, inode in rows
        ]
        if ports:
            served = fields["sport" if accepted else "dport"]
            keep = [chosen and port in ports for chosen, port in zip(keep, served, strict=True)]
        if version:
            versions = zip(keep, fields["version"], strict=True)
            keep = [chosen and each == version for chosen, each in versions]
        return Batch(fields, batch.owners).select(keep)

    def _came(self, fields: Mapping[str, Sequence[Any]]) -> Sequence[bool]:
        """Return which connections were accepted: something listens where they begin, or did so.

        The kernel gives no outgoing connection such a port, unless it is asked for it.
        """
        listens = [state == LISTEN for state in fields["state_raw"]]
        listeners = frozenset(compress(_ends(fields), listens))
        came = _begin_at(listeners, fields)
        ends = set(listeners)
        gone = (self._listened | self._brief) - listeners
        if gone or self._orphans:
            rows = zip(came, _begin_at(gone, fields), fields["cookie"], strict=True)
            left = [not now and (was or cookie in self._orphans) for now, was, cookie in rows]
            self._orphans = frozenset(compress(fields["cookie"], left)) - {0}
            ends.update(compress(_ends(fields), left))
            came = list(map(or_, came, left))
        self._listened, self._brief, self.served = listeners, set(), {}
        for namespace, address, port in ends:
            self.served.setdefault(namespace, set()).add((address, port))
        return came

    def _starts(
        self, batch: Batch, values: Sequence[tuple[int, int, int]]
    ) -> Sequence[tuple[int, int, int]]:
        """Return what is to be subtracted of each connection's values."""
        if not self._at:
            return values
        cookies = batch.fields["cookie"]
        before = {**self._missed, **self._before} if self._missed else self._before
        found = list(map(before.get, cookies))
        knew = of_each(batch.owners, self._knew)
        for place in [place for place, start in enumerate(found) if start is None]:
            found[place] = _NOTHING if cookies[place] and knew[place] else values[place]
        return [start or _NOTHING for start in found]

    def _knew(self, owner: Container) -> bool:
        """Return whether the snapshot before had all connections of an owner."""
        return not owner.id or owner.started >= self._at or owner.identity in self._known


def _differences(
    values: Sequence[tuple[int, int, int]], starts: Sequence[tuple[int, int, int]]
) -> tuple[list[int], list[int], list[int]]:
    """Return what was added to each value, a list each; most connections do nothing."""
    inbound, outbound, retransmits = ([0] * len(values) for _ in range(3))
    for place, (now, then) in enumerate(zip(values, starts, strict=True)):
        if now != then:
            inbound[place] = max(0, now[0] - then[0])
            outbound[place] = max(0, now[1] - then[1])
            retransmits[place] = max(0, now[2] - then[2])
    return inbound, outbound, retransmits


def _ends(fields: Mapping[str, Sequence[Any]]) -> Iterator[End]:
    return zip(*(fields[name] for name in _END), strict=True)


def _begin_at(listeners: _Ends, fields: Mapping[str, Sequence[Any]]) -> list[bool]:
    """Return whether each connection begins where one of the listeners is."""

    def is_served(end: End) -> bool:
        namespace, address, port = end
        return not listeners.isdisjoint((namespace, each, port) for each in serving(address))

    ports = {port for _, _, port in listeners}
    served: Cache[End, bool] = Cache(is_served)
    found = [port in ports for port in fields["sport"]]
    for place in [place for place, possible in enumerate(found) if possible]:
        found[place] = served[tuple(fields[name][place] for name in _END)]
    return found


def _volumes(batch: Batch, accepted: bool) -> tuple[Sequence[int], ...]:
    """Return bytes received, bytes acknowledged, and retransmits of each connection.

    The kernel counts the SYN of a connect, and each side's FIN, as a byte.
    """
    fields = batch.fields
    states = fields["state_raw"]
    inbound, outbound = fields["bytes_received"], fields["bytes_acked"]
    if states.count(ESTABLISHED) < len(states):
        inbound = [n - (s in _FIN_RECEIVED) for n, s in zip(inbound, states, strict=True)]
        outbound = [n - (s == _FIN_WAIT2) for n, s in zip(outbound, states, strict=True)]
    if not accepted:
        outbound = [n - 1 if n else 0 for n in outbound]
    return inbound, outbound, fields["retransmits"]
