"""`ig top tcp`: the connections between pairs, and what they do in an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ig.columns import integer, owner_columns
from ig.container import HOST
from ig.ends import end_columns, named_end, peers
from ig.gadget import Batch, Column, Gadget, Kind, Param
from ig.values import SECOND

GROUPS = ("pair", "container", "pod", "destination", "process")
"""What rows can be summed up by."""
_OF_PAIRS = ("new", "failed")
"""What the kernel counts for all processes together."""
_UNKNOWN = ": a number; null for a process, of which it is not known"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def _accepts(options: Mapping[str, Any]) -> bool:
    return bool(options.get("accepted"))


def _connects(options: Mapping[str, Any]) -> bool:
    return not _accepts(options)


def _by_process(options: Mapping[str, Any]) -> bool:
    return options.get("by") == "process"


def compact(value: float) -> str:
    """Return a number in at most five cells: `0`, `0.4`, `12`, `1.2k`, `340M`."""
    if value < 10:
        return f"{value:.1f}" if 0 < value != int(value) else str(int(value))
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1000
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"


def age(seconds: float) -> str:
    """Return a time in at most three cells: `8s`, `12m`, `5h`, `99d`."""
    for limit, size, unit in ((_MINUTE, 1, "s"), (_HOUR, _MINUTE, "m"), (_DAY, _HOUR, "h")):
        if seconds < limit:
            return f"{int(seconds) // size}{unit}"
    return f"{int(seconds) // _DAY}d"


def _rate(field: str) -> Callable[[Batch], Sequence[int]]:
    """Return a reader of a count per second: rounded, but at least 1 if there was any."""
    return lambda batch: [
        max(round(count / seconds), 1) if count and seconds else 0
        for count, seconds in _counts(batch, field)
    ]


def _shown_rate(field: str) -> Callable[[Batch], Sequence[str]]:
    return lambda batch: [
        "?" if count is None else "-" if not count or not seconds else compact(count / seconds)
        for count, seconds in zip(_known(batch, field), batch.fields["seconds"], strict=True)
    ]


def _known(batch: Batch, field: str) -> Sequence[int | None]:
    """Return counts, None for attempts of a process: the kernel counts them without it."""
    counts = batch.fields[field]
    if field not in _OF_PAIRS or not any(batch.fields["pid"]):
        return counts
    return [None if pid else n for n, pid in zip(counts, batch.fields["pid"], strict=True)]


def _counts(batch: Batch, field: str) -> Sequence[tuple[int, float]]:
    return list(zip(batch.fields[field], batch.fields["seconds"], strict=True))


def _owner_text(batch: Batch) -> Sequence[str]:
    owners = zip(batch.owners, batch.fields["owners"], strict=True)
    return [
        f"{count} owners" if count > 1 else "host" if owner is HOST else owner.name or "(unknown)"
        for owner, count in owners
    ]


def _far_text(batch: Batch) -> Sequence[str]:
    """Return `c/NAME:PORT`, `ADDRESS:PORT`, or how many far ends a row sums up."""
    fields = batch.fields
    brackets = [f"[{text}]" if ":" in text else text for text in fields["address"]]
    ends = named_end(brackets, fields["dport"], peers(batch))
    rows = zip(ends, fields["ends"], fields["dport"], fields["other"], strict=True)
    return [
        "other"
        if other
        else f"{count} ends"
        if count != 1
        else end.removeprefix("r/")
        if port
        else end.removeprefix("r/").removesuffix(":0")
        for end, count, port, other in rows
    ]


def _since_text(batch: Batch) -> Sequence[str]:
    fields = batch.fields
    rows = zip(fields["timestamp"], fields["since"], fields["older"], strict=True)
    return [
        f"{'>' if older else ''}{age(max(0, now - since) / SECOND)}" for now, since, older in rows
    ]


def _types(batch: Batch) -> Sequence[str]:
    return ["accept" if accepted else "connect" for accepted in batch.fields["accepted"]]


def _styles(batch: Batch) -> Sequence[str]:
    return ["failure" if failed else "" for failed in batch.fields["failed"]]


def _count(name: str, description: str, heading: str, drop: int) -> tuple[Column, Column]:
    """Return the columns of a count: of the interval, for JSON, and per second, for tables."""
    return (
        integer(
            name,
            name,
            right=True,
            json=(lambda batch: _known(batch, name)) if name in _OF_PAIRS else None,
            description=f"{description} in the interval{_UNKNOWN if name in _OF_PAIRS else ''}.",
        ),
        Column(
            f"{name}_rate",
            kind=Kind.INTEGER,
            heading=heading,
            width=5,
            right=True,
            optional=True,
            drop=drop,
            hidden=False,
            read=_rate(name),
            text=_shown_rate(name),
            description=f"{description} per second.",
        ),
    )


def _latency(name: str, percent: int, description: str, drop: int) -> Column:
    return Column(
        name,
        name,
        Kind.DURATION,
        width=7,
        right=True,
        drop=drop,
        hidden=False,
        read=lambda batch: [each.quantile(percent) for each in batch.fields["latencies"]],
        description=description,
    )


def _owners() -> tuple[Column, ...]:
    return tuple(
        replace(column, heading="CONTAINER", text=_owner_text, width=16)
        if column.name == "containername"
        else column
        for column in owner_columns()
    )


def _far(name: str, heading: str, show_if: Callable[[Mapping[str, Any]], bool]) -> Column:
    return Column(
        name,
        heading=heading,
        width=24,
        least=12,
        read=_far_text,
        show_if=show_if,
        description="Far end: container, pod or address, with the port that is connected to.",
    )


GADGET = Gadget(
    name="top_tcp",
    command=("top", "tcp"),
    summary="Show who is connected to whom, and what these connections do now.",
    source="rates",
    columns=(
        *_owners(),
        Column(
            "type",
            "type",
            width=7,
            values=("connect", "accept"),
            read=_types,
            description="connect: the container has connected; accept: it has accepted.",
        ),
        integer(
            "src.port",
            "src.port",
            "sport",
            heading="PORT",
            width=5,
            right=True,
            optional=True,
            show_if=_accepts,
            description="Port that is listened on, of accepted connections; else 0.",
        ),
        _far("dst", "DESTINATION", _connects),
        _far("client", "CLIENT", _accepts),
        Column(
            "dst.addr",
            "dst.addr",
            read=lambda batch: batch.fields["address"],
            description="An address of the far end; empty if the row sums several up.",
        ),
        integer(
            "dst.port",
            "dst.port",
            "dport",
            width=5,
            right=True,
            optional=True,
            description="Port that was connected to; 0 for accepted connections.",
        ),
        *end_columns("dst", peers, paths=True),
        integer(
            "pid",
            "proc.pid",
            optional=True,
            show_if=_by_process,
            description="Process that holds the connections, with --by process; else 0.",
        ),
        Column(
            "comm",
            "proc.comm",
            least=7,
            show_if=_by_process,
            description="Name of that process.",
        ),
        integer(
            "open",
            "open",
            width=5,
            right=True,
            hidden=False,
            description="Connections open at the end of the interval.",
        ),
        *_count("new", "Connections established, or accepted", "NEW/S", 0),
        *_count("failed", "Attempts that ended without a connection", "FAIL/S", 0),
        _latency(
            "p50", 50, "Median latency of the attempts that were answered in the interval.", 8
        ),
        _latency("p99", 99, "Latency that 99 % of them did not exceed.", 7),
        *_count("bytes_in", "Bytes received on connections still open", "IN/S", 6),
        *_count("bytes_out", "Bytes acknowledged on connections still open", "OUT/S", 5),
        *_count("retransmits", "Segments retransmitted", "RETR/S", 4),
        Column(
            "since",
            "since",
            Kind.TIMESTAMP,
            heading="SINCE",
            width=4,
            right=True,
            drop=1,
            hidden=False,
            text=_since_text,
            style=_styles,
            description="When ig first saw the pair.",
        ),
        Column(
            "older",
            "older",
            Kind.BOOLEAN,
            width=5,
            description="Whether it was there when ig started, so since an unknown time.",
        ),
        integer("owners", "owners", description="Containers that the row sums up."),
        integer("ends", "ends", description="Far ends that the row sums up."),
        Column(
            "other",
            "other",
            Kind.BOOLEAN,
            width=5,
            description="Whether the row sums up pairs beyond the 4,096 largest.",
        ),
    ),
    params=(
        Param("accepted", ("-a", "--accepted"), "flag", "Show accepted connections by listener."),
        Param(
            "by",
            ("--by",),
            "string",
            f"Sum rows up by: {', '.join(GROUPS)}.",
            "pair",
        ),
        Param("port", ("--port",), "ports", "Only connections with one of these ports."),
        Param(
            "sort",
            ("--sort",),
            "strings",
            "Sort by these columns; -COLUMN: descending (default -new,-open).",
        ),
    ),
)
