"""The columns of a summary: what one row is of, and what is counted under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ig import buckets
from ig.attempts import ESTABLISHED, OUTCOMES
from ig.ends import ZONED, addresses, end_columns, end_kind, peers
from ig.gadget import Batch, Column, Kind, Sums, of_each
from ig.summary import CLOSE, CONNECT, DIRECTIONS, SHOWN, UNANSWERED, Counts, Times
from ig.values import format_short

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
    far = {
        "svc": f"s/{space}/{name}",
        "pod": f"p/{space}/{name}",
        "container": f"c/{name}",
    }.get(kind, address)
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
    shares = [(each.attempts, each.outcomes[ESTABLISHED]) for each in batch.fields["counts"]]
    return ["" if every == good else "warning" if good else "failure" for every, good in shares]


def _outcome_columns() -> Iterator[Column]:
    drops = {"established": 2, "timed-out": 10}
    for number, name in enumerate(OUTCOMES):
        if name and number != UNANSWERED:
            yield _count(
                name.replace("-", "_"),
                f"outcomes.{name}",
                lambda counts, place=number: counts.outcomes[place],  # type: ignore[misc]
                f"Attempts with the outcome {name}.",
                width=len(name),
                hidden=number not in SHOWN,
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
        drop=9,
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
    shown = {"p50": 5, "p90": 3, "p99": 6, "max": 4} if connects_only else {"p50": 4, "p99": 8}
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
