"""One interval after another: the sockets are read, compared with those before, and summed up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ig.containers.peers import Peers
from ig.gadget import Batch
from ig.kernel.netns_finder import Finder
from ig.output.sink import report_lost
from ig.sockets.collect import Say, Wants, collect
from ig.sockets.owner import Known
from ig.sockets.proc import TRAFFIC
from ig.sockets.sides import Side
from ig.top.counts import accepted_at, rows_of
from ig.top.pairs import Pairs
from ig.top.rows import Row, batch_of
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
        peers: Peers,
        wants: Wants,
        say: Say,
    ) -> None:
        """`options` are those of `ig top tcp`."""
        self.accepted = bool(options.get("accepted"))
        self.processes = self._of_processes = options.get("by") == "process"
        """Whether rows are those of processes from the next interval on: set in any thread."""
        self._ports = frozenset(options.get("port") or ())
        self._version = (
            4 * bool(options.get("ipv4")) + 6 * bool(options.get("ipv6"))
        ) % 10  # 0: both
        self._known, self._peers, self._wants, self._say = known, peers, wants, say
        self._finder, self._meter, self._pairs = Finder(), Meter(), Pairs()
        self._at = 0.0

    def take(self, counted: Iterable[Row] = ()) -> Interval:
        """Return the interval since the last call, and what the kernel has `counted` in it."""
        gc.disable()  # plain lists and tuples: a collection would cost time and free nothing
        try:
            return self._taken(counted)
        finally:
            gc.enable()

    def _taken(self, counted: Iterable[Row]) -> Interval:
        processes = self.processes
        if processes != self._of_processes:
            self._of_processes, self._pairs = processes, Pairs()
        known, now, at = self._known(), time.time_ns(), time.monotonic()
        asked = {"proto": "tcp", "state": STATES, "processes": processes}
        side = Side(self.accepted, self._meter.served, self._peers.observes)
        sockets = collect(
            *(asked, known, self._wants, self._say, TRAFFIC), side=side, find=self._finder.find
        )
        sockets = self._peers.with_peers(sockets)
        traffic = self._meter.feed(
            sockets,
            now,
            filter(self._wants, known.containers),
            accepted=self.accepted,
            ports=self._ports,
            version=self._version,
        )
        seconds, self._at = at - self._at if self._at else 0.0, at
        rows = self._pairs.feed(traffic, counted, now)
        return Interval(rows, traffic, now, seconds)

    def counts(self, batch: Batch) -> list[Row]:
        """Return rows of what was counted on the wanted ports and IP version, for `take`."""
        if self.accepted:
            self._meter.note_accepted(accepted_at(batch))
        if self._version:
            batch = batch.select([each == self._version for each in batch.fields["version"]])
        rows = rows_of(batch, self.accepted)
        return [row for row in rows if not self._ports or row.sport + row.dport in self._ports]


class Counting(Protocol):
    """What the kernel counts: ig.bpf.session.Source."""

    def collect(self) -> None:
        """Have what was counted until now come with the next records."""

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Return what was collected."""


class Intervals:
    """The sink of a pipeline that counts: takes an interval at each tick, and passes it on."""

    interval = 0.0

    def __init__(
        self,
        sampler: Sampler,
        source: Counting,
        show: Callable[[Interval], None],
        ready: Callable[[], None],
    ) -> None:
        """`show` gets each interval; `ready` is called once what follows will be in one."""
        self._sampler, self._source = sampler, source
        self._show, self._ready = show, ready
        self._counted: list[Row] = []

    def open(self) -> None:
        """Begin the first interval."""
        self._source.collect()
        while list(self._source.records()):
            pass  # of the time before
        self._show(self._sampler.take())
        self._ready()

    def write(self, batch: Batch) -> None:
        """Take what was counted."""
        self._counted += self._sampler.counts(batch)

    def tick(self, now: int) -> None:  # noqa: ARG002 - the snapshot has its own time
        """End an interval, and begin the next."""
        counted, self._counted = self._counted, []
        self._show(self._sampler.take(counted))

    def lost(self, counts: Mapping[str, int]) -> None:
        """Report losses on stderr."""
        report_lost(counts, structured=False)

    def close(self) -> None:
        """Do nothing: an interval that is not over is not shown."""
