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
- `other` is 1 in rows of what had no room among 65,536 keys: without addresses and ports.

`measures(batch)` gives both sources' rows in one form, and `Counts` adds them up:

    for measure in measures(batch):
        counts.add(measure)
    counts.latencies.quantile(99)   # ns
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ig import buckets
from ig.attempts import OUTCOMES, TYPES
from ig.columns import enum_names, hyphenated
from ig.ends import ZONED, addresses, end_columns, end_kind, peers
from ig.gadget import Batch, Column, Gadget, Kind, Sums, of_each
from ig.values import format_short

DIRECTIONS = hyphenated(enum_names("tcp.h", "direction"), UNKNOWN_DIRECTION="")
CONNECT, ACCEPT, CLOSE = map(TYPES.index, ("connect", "accept", "close"))
UNANSWERED = OUTCOMES.index("unanswered")
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
        return self.attempts - sum(self.outcomes[number] for number in _SHOWN)


_ESTABLISHED, *_REST = map(OUTCOMES.index, ("established", "refused", "timed-out"))
_SHOWN = (_ESTABLISHED, *_REST)
_OUTGOING, _INCOMING = map(DIRECTIONS.index, ("outgoing", "incoming"))
_BUCKET = ("from", "to", "count")
"""The keys of a bucket: its smallest number of ns, that of the next bucket, and how many."""


def _directions(batch: Batch) -> Sequence[int]:
    """Return who connected; recordings of before do not have it."""
    return batch.fields.get("direction") or [
        _OUTGOING if kind == CONNECT else 0 if kind == CLOSE else _INCOMING
        for kind in batch.fields["type"]
    ]


def _ports(batch: Batch) -> list[int]:
    """Return the ports that were listened at, 0 if it is not known which of the two that is."""
    ends = zip(_directions(batch), batch.fields["sport"], batch.fields["dport"], strict=True)
    return [
        far if direction == _OUTGOING else near if direction == _INCOMING else 0
        for direction, near, far in ends
    ]


def _unnamed(batch: Batch) -> list[str]:
    """Return the far addresses of which it is not known whose they are, "" for others."""
    kinds = of_each(peers(batch), end_kind)
    texts = ZONED.of(addresses(batch, "daddr"))
    return [text if kind == "raw" else "" for kind, text in zip(kinds, texts, strict=True)]


def _destination(batch: Batch) -> list[str]:
    """Return each row's far end as text, and where it listened itself."""
    names = ("dst.port", "dst.addr", "dst.kind", "dst.name", "dst.namespace")
    directions = batch.fields.get("direction") or ["outgoing"] * len(batch)
    ends = zip(*(batch.fields[name] for name in names), strict=True)
    texts = [_end(way, *end) for way, end in zip(directions, ends, strict=True)]
    overflow = batch.fields["overflow"]
    return ["(other)" if other else text for text, other in zip(texts, overflow, strict=True)]


def _end(direction: str, port: int, address: str, kind: str, *names: str) -> str:
    name, space = names
    far = {"pod": f"p/{space}/{name}", "container": f"c/{name}"}.get(kind, address)
    if direction == "incoming":
        return f":{port} <- {far}"
    if direction == "outgoing":
        return f"[{far}]:{port}" if ":" in far else f"{far}:{port}"
    return far


def _count(
    name: str, path: str, read: Callable[[Counts], int], description: str, **rest: Any
) -> Column:
    """Return the column of a number."""

    def values(batch: Batch) -> list[int]:
        return list(map(read, batch.fields["counts"]))

    return Column(
        name,
        path,
        Kind.INTEGER,
        heading=name.upper().replace("_", "-"),
        right=True,
        read=values,
        text=lambda batch: [f"{number:,}" for number in values(batch)],
        description=description,
        **rest,
    )


def _times(
    prefix: str, path: str, of: Callable[[Counts], Times], what: str, **shown: int
) -> Iterator[Column]:
    """Yield the columns of quantiles, of the longest and of the buckets."""

    def column(name: str, read: Callable[[Times], int], description: str) -> Column:
        def values(batch: Batch) -> list[int]:
            return [read(of(counts)) for counts in batch.fields["counts"]]

        return Column(
            prefix + name,
            f"{path}.{name}",
            Kind.DURATION,
            width=6,
            right=True,
            read=values,
            text=lambda batch: format_short(values(batch)),
            hidden=name not in shown,
            drop=shown.get(name, 0),
            description=description,
        )

    for percent in (50, 90, 99):
        description = f"{percent} % of {what} took this long at most (within 6 %)."
        yield column(f"p{percent}", lambda times, part=percent: times.quantile(part), description)  # type: ignore[misc]
    yield column("max", lambda times: times.longest, f"The longest time of {what}.")
    yield Column(
        f"{prefix}buckets",
        f"{path}.buckets",
        read=lambda batch: [_listed(of(counts)) for counts in batch.fields["counts"]],
        text=lambda batch: [
            " ".join(f"{format_short([low])[0]}:{count}" for low, _, count in _listed(of(counts)))
            for counts in batch.fields["counts"]
        ],
        members=_BUCKET,
        description=f"Number (`count`) of {what} that took `from` to below `to` ns.",
    )


def _listed(times: Times) -> tuple[tuple[int, int, int], ...]:
    return tuple((*buckets.bounds(each), count) for each, count in sorted(times.buckets.items()))


def _style(batch: Batch) -> list[str]:
    """Return `failure` where nothing was established, `warning` where something was not."""
    shares = [(each.attempts, each.outcomes[_ESTABLISHED]) for each in batch.fields["counts"]]
    return ["" if every == good else "warning" if good else "failure" for every, good in shares]


def _outcome_columns() -> Iterator[Column]:
    drops = {"established": 2, "timed-out": 6}
    for number, name in enumerate(OUTCOMES):
        if name and number != UNANSWERED:
            yield _count(
                name.replace("-", "_"),
                f"outcomes.{name}",
                lambda counts, place=number: counts.outcomes[place],  # type: ignore[misc]
                f"Attempts with the outcome {name}.",
                width=len(name),
                hidden=number not in _SHOWN,
                drop=drops.get(name, 0),
            )


def sums(connects_only: bool) -> Sums:
    """Return what `--summary` shows of a gadget of tcp.c."""
    port = "" if connects_only else " (outgoing), or this end's (incoming)"
    direction = Column(
        "direction",
        "direction",
        read=lambda batch: [DIRECTIONS[number] for number in _directions(batch)],
        values=DIRECTIONS[1:],
        description="Who connected: outgoing (this end) or incoming; empty if unknown.",
    )
    by = (
        *(() if connects_only else (direction,)),
        *end_columns("dst", peers, paths=True),
        Column(
            "dst.addr", "dst.addr", read=_unnamed, description="Its address, if it has no name."
        ),
        Column(
            "dst.port",
            "dst.port",
            Kind.INTEGER,
            read=_ports,
            description=f"The far end's port{port}.",
        ),
    )
    label = Column(
        "dst",  # so that tables shorten names in it, but no address or port
        "destination",
        heading="DESTINATION",
        width=18,
        least=14,
        hidden=False,
        read=_destination,
        style=_style,
        description="The far end and the port; `:PORT <- FAR END` where that connected.",
    )
    kept = {"cgroup", "mntns", "netns", "version", "saddr", "daddr", "zone", "type", "outcome"}
    ports = {"dport"} if connects_only else set()
    columns = tuple(_count_columns(connects_only))
    return Sums(by, label, columns, frozenset(kept | ports | {"direction", "peer"}))


def _count_columns(connects_only: bool) -> Iterator[Column]:
    yield _count(
        "attempts",
        "attempts",
        lambda counts: counts.attempts,
        "Attempts to connect that ended.",
        hidden=False,
        width=8,
    )
    yield from _outcome_columns()
    yield _count(
        "other",
        "",
        lambda counts: counts.others,
        "Attempts with another outcome: unreachable, failed or abandoned.",
        hidden=False,
        width=5,
        drop=5,
    )
    yield _count(
        "syn_retrans",
        "retransmits",
        lambda counts: counts.retransmits,
        "SYNs retransmitted.",
        hidden=not connects_only,
        width=11,
        drop=1,
    )
    shown = {"p50": 0, "p90": 3, "p99": 0, "max": 4} if connects_only else {"p50": 4, "p99": 8}
    yield from _times("", "latency", lambda counts: counts.latencies, "answers to SYNs", **shown)
    yield from () if connects_only else _connection_columns()
    yield Column(
        "overflow",
        "overflow",
        Kind.BOOLEAN,
        description="Whether the row is of all that there was no room for.",
    )


def _connection_columns() -> Iterator[Column]:
    numbers: dict[str, tuple[Callable[[Counts], int], str]] = {
        "accepts": (lambda counts: counts.accepts, "Accepted connections."),
        "closes": (lambda counts: counts.closes, "Connections that were closed."),
        "unaccepted": (lambda counts: counts.unaccepted, "Closed before they were accepted."),
        "sent": (lambda counts: counts.sent, "Bytes sent, of closed connections."),
        "received": (lambda counts: counts.received, "Bytes received, of closed connections."),
    }
    for name, (read, description) in numbers.items():
        yield _count(name, name, read, description, hidden=name == "unaccepted", width=7)
    shown = {"p50": 7, "p99": 1}
    yield from _times(
        "duration.", "duration", lambda counts: counts.durations, "connections", **shown
    )
