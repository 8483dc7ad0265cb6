"""What `ig explain` prints: the steps of the way as a table, or all as one object."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from ig.causes.cause import ADVICE, Attempt, Cause
from ig.causes.evidence import Evidence
from ig.causes.steps import Step, steps
from ig.container import HOST
from ig.gadget import Batch, Column, Kind
from ig.values import format_duration

_NOT_TESTED = (
    "policies of the container's cgroup and of security modules: the attempt is made by ig itself"
)
STEPS = tuple(
    Column(name, name, width=width, hidden=False, least=least, wrap=name == "found")
    for name, width, least in (("step", 11, 0), ("result", 8, 0), ("found", 80, 24))
)
OBJECT = (
    Column("target", "target", description="What was asked for."),
    Column("container", "container", description='Container that it was made from, "" for none.'),
    Column("netns", "netns_id", Kind.INTEGER, description="Network namespace, an inode."),
    *(
        Column(f"{end}.{part}", f"{end}.{part}", kind)
        for end in ("src", "dst")
        for part, kind in (("addr", Kind.STRING), ("port", Kind.INTEGER))
    ),
    Column("outcome", "outcome", description="Outcome, as of an attempt that is traced."),
    Column("error", "error", description='Name of the error, "" for none.'),
    Column("error_raw", "error_raw", Kind.INTEGER, description="Error number (errno), 0 for none."),
    Column("latency", "latency", Kind.DURATION, description="Time to the outcome."),
    Column("steps", "steps", members=("step", "result", "found"), description="The way."),
    Column(
        "cause",
        "cause",
        json=lambda batch: batch.fields["cause"],
        description="kind, where, detail, confidence; null where nothing shows it.",
    ),
    Column("advice", "advice", description='What to do about it, "" without a cause.'),
    Column(
        "unread",
        "unread",
        json=lambda batch: batch.fields["unread"],
        description="What could not be looked at.",
    ),
)
_CAUSE = ("kind", "where", "detail", "confidence")


@dataclass(frozen=True, slots=True)
class Explained:
    """One attempt, with all that was found about it."""

    target: str
    """What was asked for."""
    container: str
    """The name of the container that it was made from, "" for none."""
    addresses: tuple[str, ...]
    """Those of the name; the first was tried."""
    attempt: Attempt
    evidence: Evidence
    cause: Cause | None

    @property
    def _error(self) -> str:
        error = self.attempt.error
        return errno.errorcode.get(error, str(error)) if error else ""

    @property
    def _unread(self) -> list[str]:
        return [*self.evidence.unread, _NOT_TESTED]

    def way(self) -> tuple[Step, ...]:
        """Return the steps from the name to the outcome."""
        attempt, (first, *others) = self.attempt, self.addresses
        name = self.target.rpartition(":")[0]
        given = "an address" if name.strip("[]").partition("%")[0] == first else f"{name}: {first}"
        more = f" (not tried: {', '.join(others)})" if others else ""
        error = f" ({self._error})" if self._error else ""
        ended = f"{attempt.outcome}{error} after {format_duration(attempt.latency)}"
        return (
            ("name", "ok", f"{given}{more}"),
            *steps(attempt, self.evidence),
            ("outcome", "ok" if attempt.outcome == "established" else "failed", ended),
        )

    def table(self) -> Batch:
        """Return the steps, the cause, what to do about it, and what was not looked at."""
        rows: list[Step] = list(self.way())
        if cause := self.cause:
            rows.append(("cause", cause.confidence, f"{cause.kind}, {cause.where}: {cause.detail}"))
            rows.append(("advice", "", ADVICE[cause.kind]))
        elif self.attempt.outcome != "established":
            rows.append(("cause", "unknown", "nothing on this host shows it"))
        rows += [("not seen", "", line) for line in self._unread]
        names: Sequence[str] = [column.name for column in STEPS]
        return Batch(dict(zip(names, zip(*rows, strict=True), strict=True)), [HOST] * len(rows))

    def object(self) -> Batch:
        """Return all of it as one row of OBJECT."""
        attempt, cause = self.attempt, self.cause
        values = {
            "target": self.target,
            "container": self.container,
            "netns": attempt.netns,
            "src.addr": attempt.source,
            "src.port": attempt.source_port,
            "dst.addr": attempt.address,
            "dst.port": attempt.port,
            "outcome": attempt.outcome,
            "error": self._error,
            "error_raw": attempt.error,
            "latency": attempt.latency,
            "steps": self.way(),
            "cause": {name: getattr(cause, name) for name in _CAUSE} if cause else None,
            "advice": ADVICE[cause.kind] if cause else "",
            "unread": self._unread,
        }
        return Batch({name: [value] for name, value in values.items()}, [HOST])
