"""One interval after another: the sockets are read, compared with those before, and summed up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ig.gadget import Batch
from ig.sockets.collect import Say, Wants, collect
from ig.sockets.owner import Known
from ig.sockets.proc import TRAFFIC
from ig.top.rows import Pairs, Row, batch_of
from ig.top.traffic import STATES, Meter, Traffic


class Interval(NamedTuple):
    """What happened in an interval."""

    rows: Sequence[Row]
    traffic: Traffic
    """The connections that the rows sum up."""
    now: int
    """Its end, in ns since the epoch."""
    seconds: float
    """Its length; 0 of the first, in which nothing is known to have happened."""

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Return rows as events of columns."""
        return batch_of(rows, self.now, self.seconds)


class Sampler:
    """Reads the connections of wanted containers, and compares them with those read before."""

    def __init__(
        self,
        options: Mapping[str, Any],
        known: Callable[[], Known],
        name_ends: Callable[[Batch], Batch],
        wants: Wants,
        say: Say,
    ) -> None:
        """`options` are those of `ig top tcp`. `name_ends` adds the owners of far ends."""
        self.accepted = bool(options.get("accepted"))
        self.processes = options.get("by") == "process"
        self._ports = frozenset(options.get("port") or ())
        self._version = 4 * bool(options.get("ipv4")) + 6 * bool(options.get("ipv6"))
        self._known, self._name_ends, self._wants, self._say = known, name_ends, wants, say
        self._meter, self._pairs = Meter(), Pairs()
        self._at = 0.0

    def change(self, *, accepted: bool, processes: bool) -> None:
        """Have the next intervals show the other direction, or the processes of connections."""
        if (accepted, processes) != (self.accepted, self.processes):
            self.accepted, self.processes = accepted, processes
            self._meter.restart()
            self._pairs.restart()

    def take(self) -> Interval:
        """Return the interval since the last call."""
        known, now, at = self._known(), time.time_ns(), time.monotonic()
        asked = {"proto": "tcp", "state": STATES, "processes": self.processes}
        sockets = self._name_ends(collect(asked, known, self._wants, self._say, TRAFFIC))
        if self._version in (4, 6):
            sockets = sockets.select([each == self._version for each in sockets.fields["version"]])
        traffic = self._meter.feed(
            sockets,
            now,
            filter(self._wants, known.containers),
            accepted=self.accepted,
            ports=self._ports,
        )
        seconds, self._at = at - self._at if self._at else 0.0, at
        return Interval(self._pairs.feed(traffic, now), traffic, now, seconds)
