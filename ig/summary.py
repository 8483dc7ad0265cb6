"""What was counted of TCP connections: attempts, accepts and closes, by what users ask for.

Two sources give the same counts. Events are counted here, each as one. And the programs of tcp.c
count in the kernel if it is compiled with COUNT_EVENTS (ebpf/tcp_count.h): no event crosses the
ring. `counted(gadget)` is a gadget of tcp.c that does so; its command, or a `Pipeline` with
`Loading(gadget.program, defines(gadget, options), aggregate=True)` and an `interval`, gives a batch
at each interval, whose rows are the counts of that interval:

- `cgroup`, `mntns`, `netns`, `version`, `saddr`, `daddr`, `zone`, `type`, `outcome` are those of
  events; `owners` and `peer` name the ends. `dport` is the far end's port where this end connected,
  `sport` this end's where it accepted (`direction`); the other port, chosen by a kernel, is 0.
- `bucket` is the index of latencies, of closes of durations (`ig.buckets`), 0 if there were none. A
  connection to one place so has a row for each bucket in use.
- `count` is how many, `retransmits`, `sent`, `received` and `total_latency` are sums, `max_latency`
  is the longest.
- `kind` is that of segments that were sent again (`KINDS`), of which `count` is the number: with
  COUNT_RETRANSMITS alone. Else it is 0.
- `other` is 1 in rows of what had no room among 65,536 keys: without addresses and ports.

`measures(batch)` gives both sources' rows in one form, and `Counts` adds them up:

    for measure in measures(batch):
        counts.add(measure)
    counts.latencies.quantile(99)   # ns
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ig import buckets
from ig.attempts import OUTCOMES, TYPES
from ig.columns import enum_names, hyphenated
from ig.gadget import Batch, Gadget

DIRECTIONS = hyphenated(enum_names("tcp.h", "direction"), UNKNOWN_DIRECTION="")
KINDS = hyphenated(enum_names("tcp.h", "kind"))
"""What was sent again."""
CONNECT, ACCEPT, CLOSE = map(TYPES.index, ("connect", "accept", "close"))
UNANSWERED = OUTCOMES.index("unanswered")
SHOWN = tuple(map(OUTCOMES.index, ("established", "refused", "timed-out")))
"""The outcomes that have columns of their own in tables."""
COUNTING = {"COUNT_EVENTS": 1, "LATENCY": 1}
"""C macros with which tcp.c counts."""


def counted(gadget: Gadget) -> Gadget:
    """Return the gadget, whose program is tcp.c, with what it counts instead of its events."""
    return replace(gadget, source="aggregate", defines={**gadget.defines, **COUNTING})


class Measure(NamedTuple):
    """What a row of a batch counts: one event, or several of the same type and outcome."""

    type: int
    outcome: int
    bucket: int
    """Of the latency, of closes the duration; 0 if there is none."""
    number: int
    """How many; 0 for an attempt that has not ended yet: it is counted then."""
    retransmits: int
    sent: int
    received: int
    longest: int
    """The longest latency or duration, in ns."""


def measures(batch: Batch) -> Iterator[Measure]:
    """Yield what each row counts."""
    fields = batch.fields
    types, outcomes = fields["type"], fields["outcome"]
    sums = fields["retransmits"], fields["sent"], fields["received"]
    if "count" in fields:
        numbers = fields["bucket"], fields["count"], *sums, fields["max_latency"]
        return map(Measure._make, zip(types, outcomes, *numbers, strict=True))
    longest = [
        latency if kind == CONNECT else duration
        for kind, latency, duration in zip(
            types, fields["latency"], fields["duration"], strict=True
        )
    ]
    counts = [int(outcome != UNANSWERED) for outcome in outcomes]
    indexes = map(buckets.index, longest)
    return map(Measure._make, zip(types, outcomes, indexes, counts, *sums, longest, strict=True))


@dataclass(slots=True)
class Times:
    """Durations by bucket, and the longest, in ns."""

    buckets: dict[int, int] = field(default_factory=dict)
    longest: int = 0

    def add(self, bucket: int, count: int, longest: int) -> None:
        """Count so many durations of a bucket, if it is one of durations at all."""
        if bucket:
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
            self.longest = max(self.longest, longest)

    def quantile(self, percent: int) -> int:
        """Return a quantile in ns, within its bucket; 0 if there are none."""
        return buckets.quantile(self.buckets, percent, self.longest)


@dataclass(slots=True)
class Counts:
    """What was counted under one key."""

    outcomes: list[int] = field(default_factory=lambda: [0] * len(OUTCOMES))
    """Attempts by outcome: the place is its number, as in `OUTCOMES`."""
    accepts: int = 0
    closes: int = 0
    unaccepted: int = 0
    """Connections that ended before they were accepted."""
    retransmits: int = 0
    """SYNs sent again."""
    sent: int = 0
    received: int = 0
    """Bytes of the connections that were closed."""
    latencies: Times = field(default_factory=Times)
    durations: Times = field(default_factory=Times)

    @property
    def attempts(self) -> int:
        """The number of attempts."""
        return sum(self.outcomes)

    def add(self, measure: Measure) -> None:
        """Add what a row counts."""
        kind, outcome, bucket, count, retransmits, sent, received, longest = measure
        if not count:
            return
        if kind == CONNECT:
            self.outcomes[outcome] += count
            self.retransmits += retransmits
            self.latencies.add(bucket, count, longest)
        elif kind == ACCEPT:
            self.accepts += count
        else:
            self.closes += count if kind == CLOSE else 0
            self.unaccepted += 0 if kind == CLOSE else count
            self.sent += sent
            self.received += received
            self.durations.add(bucket, count, longest)

    @property
    def others(self) -> int:
        """The number of attempts that were neither established, refused nor timed out."""
        return self.attempts - sum(self.outcomes[number] for number in SHOWN)
