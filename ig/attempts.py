"""Columns and options of TCP connections: what happened to them, and how attempts ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ig.columns import enum_names, error_column, hyphenated, integer, named
from ig.gadget import Batch, Column, Kind, Param
from ig.values import SECOND

TYPES = hyphenated(enum_names("tcp.h", "type"))
"""The types of events, each at the place of its number; "" where there is none."""
OUTCOMES = hyphenated(enum_names("tcp.h", "outcome"), NONE="", DONE="established")
"""How attempts end, in the same way."""
_FAILURES = frozenset(map(OUTCOMES.index, ("refused", "timed-out", "unreachable", "failed")))
_OPEN = frozenset(map(OUTCOMES.index, ("abandoned", "unanswered")))
ESTABLISHED = OUTCOMES.index("established")
"""The number of that outcome."""
SLOW = SECOND
"""Nanoseconds from which an answer is marked as slow."""


def _attempt_style(batch: Batch) -> Sequence[str]:
    """Return `failure` for failed attempts, `warning` for slow, abandoned and unanswered ones."""
    return [
        "failure"
        if outcome in _FAILURES
        else "warning"
        if outcome in _OPEN or (outcome and (latency >= SLOW or retransmits))
        else ""
        for outcome, latency, retransmits in zip(
            batch.fields["outcome"],
            batch.fields["latency"],
            batch.fields["retransmits"],
            strict=True,
        )
    ]


def failed(batch: Batch) -> Sequence[bool]:
    """Return of each event whether it is reported with --failures: see FAILURE_ONLY in tcp.h."""
    outcomes = batch.fields["outcome"]
    updates = batch.fields.get("update") or [0] * len(batch)
    return [
        bool(outcome) and (outcome != ESTABLISHED or bool(update))
        for outcome, update in zip(outcomes, updates, strict=True)
    ]


def wants_latency(options: Mapping[str, Any]) -> bool:
    """Return whether attempts are reported with latency, when they have ended."""
    return bool(options.get("latency"))


def _of_cause(part: str) -> Callable[[Batch], Sequence[str]]:
    return lambda batch: batch.fields.get(f"cause_{part}") or [""] * len(batch)


def _causes(batch: Batch) -> list[str]:
    """Return the detail of each cause, and where it lies."""
    pairs = zip(_of_cause("detail")(batch), _of_cause("where")(batch), strict=True)
    return [f"{detail} ({where})" if where else detail for detail, where in pairs]


def _cause_columns() -> Iterator[Column]:
    yield Column(
        "cause",
        width=60,
        least=24,
        wrap=True,
        read=_causes,
        show_if=lambda options: bool(options.get("why")),
        description="With --why: why an attempt failed or was slow, and where; empty if unknown.",
    )
    for part, description in (
        ("kind", "With --why: the kind of the cause, see explain.md."),
        ("where", "With --why: the container, rule, interface or route that it lies with."),
        ("detail", "With --why: the cause in words."),
        ("confidence", "With --why: seen (a signal of this very attempt) or likely."),
    ):
        yield Column(
            f"cause.{part}", f"cause.{part}", read=_of_cause(part), description=description
        )


def attempt_columns() -> tuple[Column, ...]:
    """Return the columns of a TCP event: type, error, outcome and times."""
    return (
        Column(
            "type",
            "type",
            width=7,
            read=named("type", TYPES),
            values=TYPES[1:],
            description="Event type: connect, accept, close, or unknown.",
        ),
        error_column(),
        integer(
            "error_raw",
            "error_raw",
            "error",
            width=5,
            description="Error number (errno), 0 if none.",
        ),
        Column(
            "outcome",
            "outcome",
            width=11,
            hidden=False,
            read=named("outcome", OUTCOMES),
            values=OUTCOMES[1:],
            style=_attempt_style,
            description=f"Outcome of an attempt: {', '.join(OUTCOMES[1:])}; else empty.",
        ),
        integer("retransmits", "retransmits", width=5, description="SYNs retransmitted."),
        Column(
            "latency",
            "latency",
            Kind.DURATION,
            width=9,
            right=True,
            show_if=wants_latency,
            description="Time from the SYN to the reply; null if there was none.",
        ),
        Column(
            "waited",
            "waited",
            Kind.DURATION,
            width=9,
            right=True,
            description="Time from the SYN to the outcome; while unanswered, until now.",
        ),
        Column(
            "update",
            "update",
            Kind.BOOLEAN,
            width=6,
            description="Whether this attempt was reported before as unanswered.",
        ),
        *_cause_columns(),
    )


LATENCY = Param(
    "latency",
    ("-L", "--latency"),
    "flag",
    "Report each attempt when it has ended, with the time from SYN to reply.",
    define="LATENCY",
)


WHY = Param(
    "why",
    ("--why",),
    "flag",
    "Find why each attempt failed, or was slow; keeps more privileges (see SECURITY.md).",
    program="tcp_why.c",
    excludes=("summary",),
)


def filter_params() -> tuple[Param, ...]:
    """Return the options that filter by process and port in the kernel."""
    return (
        Param("pid", ("--pid",), "pid", "Only the process with this PID.", define="FILTER_PID"),
        Param(
            "uid",
            ("--uid",),
            "uid",
            "Only processes of this user (name or ID).",
            define="FILTER_UID",
        ),
        Param(
            "port",
            ("--port",),
            "port",
            "Only this destination port (number or service).",
            define="FILTER_PORT",
        ),
    )
