"""What `ig explain` prints: the steps of the way in words as a table, or all as one object."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ig.causes.cause import ADVICE, Attempt, Cause
from ig.causes.evidence import Evidence, Far
from ig.causes.packet import Packet
from ig.causes.way import Hop
from ig.container import HOST
from ig.gadget import Batch, Column, Kind
from ig.kernel.routes import REFUSALS, UNANSWERED
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
_PORTS = 8

Step = tuple[str, str, str]
"""Its name; `ok`, `failed`, `unknown` or `-` (not reached); what was found."""


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


def steps(attempt: Attempt, evidence: Evidence) -> Iterator[Step]:
    """Yield the steps of the way as far as it goes: those beyond a gap are `unknown`."""
    yield "from", "ok", evidence.near
    yield from _routes(evidence)
    for hop in evidence.way.translations:
        assert hop.came
        assert hop.went
        change = f"{_end(hop.came)} is translated to {_end(hop.went)}"
        yield "translation", "ok", f"{change}: {hop.by}"
    yield _neighbours(evidence)
    yield from _firewall(evidence)
    yield from _far(attempt, evidence)


def _routes(evidence: Evidence) -> Iterator[Step]:
    hops, way = evidence.way.hops, evidence.way
    for hop in hops:
        owner = evidence.owners.get(hop.netns, "")
        if not hop.forwards:
            yield "route", "failed", f"{owner} does not forward"
        elif hop.route.kind in REFUSALS:
            found = "no route" if hop.route.kind == "none" else f"{hop.route.kind} route"
            yield "route", "failed", f"{owner}: {found} {hop.route.prefix}".rstrip()
        else:
            yield "route", "ok", f"{owner}: {_route(hop)}"
    if way.gap:
        yield "route", "unknown", way.gap
    if way.far and not hops:
        yield "route", "ok", "an address of its own network namespace"


def _route(hop: Hop) -> str:
    via = f"via {hop.route.gateway}" if hop.route.gateway else "on the link"
    return f"{via}, {hop.interface} (route {hop.route.prefix or 'unknown'})"


def _neighbours(evidence: Evidence) -> Step:
    routed = [hop for hop in evidence.way.hops if hop.next]
    if not routed:
        return "neighbour", "-", "none is needed" if evidence.way.far else "not reached"
    hop = routed[-1]
    if hop.neighbour is None:
        return "neighbour", "unknown", f"no entry for {hop.next} on {hop.interface}"
    mac = hop.neighbour.mac.hex(":")
    found = f"{hop.next} on {hop.interface}: {hop.neighbour.state} {mac}".rstrip()
    return "neighbour", "failed" if hop.neighbour.state in UNANSWERED else "ok", found


def _firewall(evidence: Evidence) -> Iterator[Step]:
    for found in evidence.firewall:
        action = "rejects" if found.denial.rejects else "drops"
        counted = "its counter rose during the attempt" if found.rose else "no counter"
        if found.denial.elsewhere:
            result, words = "unknown", "a verdict map or a queue decides, which is not evaluated"
        elif found.denial.certain:
            result, words = "failed", f"{action} it, by its matches ({counted})"
        else:
            result, words = "unknown", f"{action} it if all of its matches hold ({counted})"
        yield "firewall", result, f"{found.where}: {words}"
    unread = [line for line in evidence.unread if line.startswith("the firewall")]
    if evidence.doubt:
        where = evidence.doubt
        yield "firewall", "unknown", f"the destination may be translated: {where}"
    if unread:
        yield "firewall", "unknown", "; ".join(unread)
    elif evidence.way.gap:
        yield "firewall", "unknown", "the way is not known further"
    elif evidence.doubt:
        return
    elif not evidence.firewall:
        yield "firewall", "ok", "no nftables rule of the network namespaces on the way denies it"


def _far(attempt: Attempt, evidence: Evidence) -> Iterator[Step]:
    far = evidence.far
    if far is None:
        gone = f"; it was container {evidence.former.name}'s" if evidence.former else ""
        yield "far end", "unknown", f"{attempt.address} was not found on this host{gone}"
        yield "listener", "-", "not looked at"
        yield "queue", "-", "not looked at"
        return
    yield _state("far end", far)
    if evidence.backend:
        behind = evidence.backend
        yield _state("published", behind, f", port {behind.port}")
        if not (far.taking and behind.taking):
            far = behind
    yield _listener(far)
    yield _queue(far)


def _state(step: str, far: Far, more: str = "") -> Step:
    state = " (paused)" if far.paused else ""
    return step, "failed" if far.paused else "ok", f"{far.owner}{more}{state}"


def _listener(far: Far) -> Step:
    if not far.read:
        return "listener", "unknown", "the sockets there could not be read"
    if far.taking:
        places = ", ".join(sorted({_place(each.address, each.port) for each in far.taking}))
        return "listener", "ok", places + (f" ({far.server})" if far.server else "")
    others = sorted({_place(each.address, each.port) for each in far.elsewhere or far.listeners})
    named = ", ".join(others[:_PORTS]) + (", …" if len(others) > _PORTS else "")
    by = f" ({far.server})" if far.server else ""
    return "listener", "failed", f"none on port {far.port}; there are: {named or 'none at all'}{by}"


def _queue(far: Far) -> Step:
    if not far.taking:
        return "queue", "-", "no listener"
    fullest = max(far.taking, key=lambda each: each.waiting)
    result = "failed" if far.full else "ok"
    return "queue", result, f"{fullest.waiting} of {fullest.backlog} connections wait"


def _end(packet: Packet) -> str:
    return _place(packet.destination, packet.port)


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
