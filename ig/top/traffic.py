"""What differs between two snapshots of the same connections: bytes, retransmits, new ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import compress, repeat
from operator import and_, attrgetter, not_, or_, sub
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
_HELD = bytes(state in (ESTABLISHED, _CLOSE_WAIT) for state in range(256))
"""By state, whether an application has the connection, or will get it by accept()."""
_LISTENS = bytes(state == LISTEN for state in range(256))
_OTHERS = bytes(state != ESTABLISHED for state in range(256))
_FIN_RECEIVED = frozenset({_CLOSE_WAIT, _LAST_ACK, _CLOSING})
_NEEDED = (
    *("version", "saddr", "sport", "daddr", "dport", "state_raw", "state", "netns_id", "ino"),
    *("cookie", "bytes_received", "bytes_acked", "retransmits", "rtt", "peer"),
    *("pid", "comm"),
)

_IDENTITY: Callable[[Container], Identity] = attrgetter("identity")
End = tuple[int, str, int]
"""The id of a network namespace, an address and a port."""
_Ends = AbstractSet[End]
_Volumes = Sequence[list[int]]
"""Bytes received, bytes acknowledged by the far end, retransmits: a list each."""
_OUT = 1
"""Where the bytes acknowledged are among them."""


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
        self._before = _Before()
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
        values = _volumes(batch, accepted)
        starts = self._starts(batch, values, accepted) if self._at else values
        self._before, self._at = self._before.followed(batch.fields["cookie"], values), now
        self._known = frozenset(map(_IDENTITY, known)) | set(of_each(batch.owners, _IDENTITY))
        return Traffic(batch, accepted, *map(_differences, values, starts))

    def _chosen(self, batch: Batch, accepted: bool, ports: Collection[int], version: int) -> Batch:
        """Return the connections of one direction, with the fields that are needed of them."""
        fields = {name: batch.fields[name] for name in _NEEDED if name in batch.fields}
        states, inodes = fields["state_raw"], fields["ino"]
        keep = bytearray(states).translate(_HELD)
        # The rest is what the kernel finishes after its application has closed it.
        for place in _places(keep, False):
            keep[place] = inodes[place] != 0 and states[place] != LISTEN
        for place in _places(self._came(fields), not accepted):
            keep[place] = False
        if ports:
            served = fields["sport" if accepted else "dport"]
            keep = bytearray(map(and_, keep, map(ports.__contains__, served)))
        if version:
            keep = bytearray(map(and_, keep, map(version.__eq__, fields["version"])))
        return Batch(fields, batch.owners).select(keep)

    def _came(self, fields: Mapping[str, Sequence[Any]]) -> Sequence[bool]:
        """Return which connections were accepted: something listens where they begin, or did so.

        The kernel gives no outgoing connection such a port, unless it is asked for it.
        """
        listening = _places(bytes(fields["state_raw"]).translate(_LISTENS))
        listeners = frozenset(_end(fields, place) for place in listening)
        came = _begin_at(listeners, fields)
        ends = set(listeners)
        gone = (self._listened | self._brief) - listeners
        if gone or self._orphans:
            rows = zip(came, _begin_at(gone, fields), fields["cookie"], strict=True)
            left = [not now and (was or cookie in self._orphans) for now, was, cookie in rows]
            self._orphans = frozenset(compress(fields["cookie"], left)) - {0}
            ends.update(_end(fields, place) for place in _places(left))
            came = list(map(or_, came, left))
        self._listened, self._brief, self.served = listeners, set(), {}
        for namespace, address, port in ends:
            self.served.setdefault(namespace, set()).add((address, port))
        return came

    def _starts(self, batch: Batch, values: _Volumes, accepted: bool) -> _Volumes:
        """Return what is to be subtracted of each connection's values."""
        cookies = batch.fields["cookie"]
        starts, new = self._before.of(cookies)
        knew = of_each(batch.owners, self._knew) if new else ()
        for place in new:
            known = cookies[place] and knew[place]
            first = (0, 0 if accepted else 1, 0)  # a connect's SYN is counted as a byte
            for start, value, none in zip(starts, values, first, strict=True):
                start[place] = none if known else value[place]
        return starts

    def _knew(self, owner: Container) -> bool:
        """Return whether the snapshot before had all connections of an owner."""
        return not owner.id or owner.started >= self._at or owner.identity in self._known


class _Before:
    """The volumes of a snapshot's connections by cookie, and of those it lacks that the one before
    had.
    """

    def __init__(self, cookies: Sequence[int] = (), values: _Volumes = ([], [], [])) -> None:
        self._cookies, self._values = cookies, values
        self._places = dict(zip(cookies, range(len(cookies)), strict=True))
        self._places.pop(0, None)
        self._missed: Mapping[int, Sequence[int]] = {}

    def of(self, cookies: Sequence[int]) -> tuple[_Volumes, list[int]]:
        """Return the volumes of these connections, and the places of those that are unknown."""
        unknown = len(self._cookies)
        places = list(map(self._places.get, cookies, repeat(unknown)))
        found = [list(map([*values, 0].__getitem__, places)) for values in self._values]
        new = []
        for place in _places(list(map(unknown.__eq__, places))) if unknown in places else ():
            missed = self._missed.get(cookies[place])
            for values, value in zip(found, missed or (), strict=False):
                values[place] = value
            if missed is None:
                new.append(place)
        return found, new

    def followed(self, cookies: Sequence[int], values: _Volumes) -> _Before:
        """Return those of the next snapshot."""
        after = _Before(cookies, values)
        missed = compress(self._places, map(not_, map(after._places.__contains__, self._places)))
        after._missed = {
            cookie: [each[self._places[cookie]] for each in self._values] for cookie in missed
        }
        return after


def _differences(values: Sequence[int], starts: Sequence[int]) -> list[int]:
    """Return what was added to each value."""
    if values == starts:
        return [0] * len(values)
    found = list(map(sub, values, starts))
    return found if min(found) >= 0 else [max(0, each) for each in found]


def _places(values: Sequence[object], wanted: bool = True) -> list[int]:
    """Return the places of the values that are true, or false."""
    return list(compress(range(len(values)), values if wanted else map(not_, values)))


def _end(fields: Mapping[str, Sequence[Any]], place: int) -> End:
    return fields["netns_id"][place], fields["saddr"][place], fields["sport"][place]


def _begin_at(listeners: _Ends, fields: Mapping[str, Sequence[Any]]) -> list[bool]:
    """Return whether each connection begins where one of the listeners is."""

    def is_served(end: End) -> bool:
        namespace, address, port = end
        return not listeners.isdisjoint((namespace, each, port) for each in serving(address))

    ports = {port for _, _, port in listeners}
    served: Cache[End, bool] = Cache(is_served)
    found = list(map(ports.__contains__, fields["sport"]))
    for place in _places(found):
        found[place] = served[_end(fields, place)]
    return found


def _volumes(batch: Batch, accepted: bool) -> _Volumes:
    """Return the volumes of each connection; of one that was connected the SYN is a byte more.

    The kernel counts the SYN of a connect, and each side's FIN, as a byte.
    """
    fields = batch.fields
    states = fields["state_raw"]
    inbound, outbound = list(fields["bytes_received"]), list(fields["bytes_acked"])
    for place in _places(bytes(states).translate(_OTHERS)):
        inbound[place] -= states[place] in _FIN_RECEIVED
        outbound[place] -= states[place] == _FIN_WAIT2
    if not accepted and 0 in outbound:
        outbound = [each or 1 for each in outbound]
    return inbound, outbound, list(fields["retransmits"])
