"""From evidence to a cause: the nearest to the near end first; none where nothing shows it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ig.causes import firewall
from ig.causes.cause import LIKELY, LOST, SEEN, WITHOUT_ANSWER, Attempt, Cause
from ig.causes.evidence import Evidence, Far, Found
from ig.causes.places import LocalPorts
from ig.kernel.routes import REFUSALS, UNANSWERED

_ERRORS = {
    "unreachable": errno.EHOSTUNREACH,
    "prohibit": errno.EACCES,
    "blackhole": errno.EINVAL,
    "none": errno.ENETUNREACH,
}
"""What connect() fails with at once, by the kind of route."""
_ANSWERED = frozenset({errno.EACCES, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOPROTOOPT})
"""What a call fails with after its SYN was sent: with another error, none was."""
DENIED = "connect() was denied (EPERM): by a BPF program of the cgroup, by seccomp or by an LSM"
_SECOND_SYN = 950_000_000  # ns: before about a second nothing was sent again, and was not answered
_PORTS = 5  # ports that a detail names


def judge(attempt: Attempt, evidence: Evidence) -> Cause | None:
    """Return why an attempt failed, None where nothing shows it.

    An established one has a cause only where nobody will serve it.
    """
    causes = _late(evidence) if attempt.outcome == "established" else _causes(attempt, evidence)
    return next(causes, None)


def _causes(attempt: Attempt, evidence: Evidence) -> Iterator[Cause]:
    if attempt.error == errno.EPERM:
        yield Cause("local-policy", evidence.near, DENIED, SEEN)
        return
    if evidence.ports and evidence.ports.exhausted:
        yield Cause("local-port-exhausted", evidence.near, _ports(evidence.ports, attempt), SEEN)
        return
    yield from _near_route(attempt, evidence)
    yield from _firewall(attempt, evidence)
    yield from _full_tables(attempt, evidence)
    if attempt.outcome == "refused" and evidence.backend:
        yield from _backend(evidence.backend)
    if evidence.doubt:
        return  # what was looked at beyond is not what the segment came to
    yield from _routes_beyond(attempt, evidence)
    yield from _neighbour(attempt, evidence)
    if attempt.outcome in ("refused", *WITHOUT_ANSWER):
        yield from _far(attempt, evidence)
    yield from _nothing_here(attempt, evidence)


def _ports(ports: LocalPorts, attempt: Attempt) -> str:
    used = f"{ports.used:,} of {ports.usable:,} local ports ({ports.first} to {ports.last})"
    return f"{used} are in use towards {attempt.address} port {attempt.port}"


def _late(evidence: Evidence) -> Iterator[Cause]:
    far = evidence.backend or (None if evidence.doubt else evidence.far)
    if far and far.paused:
        detail = "the kernel took the connection, but no process runs that would accept it"
        yield Cause("container-paused", far.listener, detail, LIKELY)
    if evidence.backend:  # the engine's proxy took it
        yield from _backend(evidence.backend)


def _near_route(attempt: Attempt, evidence: Evidence) -> Iterator[Cause]:
    hop = next(iter(evidence.way.hops), None)
    # With another error, or with none, there was a route when the SYN was sent.
    if hop and attempt.outcome in LOST and attempt.error == _ERRORS.get(hop.route.kind):
        yield Cause("route", *_route(hop.route.kind, hop.route.prefix, evidence.near), SEEN)


def _route(kind: str, prefix: str, owner: str) -> tuple[str, str]:
    if kind == "none":
        return owner, "no route to the destination"
    return owner, f"the route {prefix or 'to the destination'} is {kind}"


def _is_lost(attempt: Attempt) -> bool:
    """Return whether a segment was sent and did not lead to the far end, or it gave no answer."""
    failed = attempt.outcome == "failed"
    return attempt.outcome in LOST and not (failed and attempt.error not in _ANSWERED)


def _routes_beyond(attempt: Attempt, evidence: Evidence) -> Iterator[Cause]:
    for hop in evidence.way.hops[1:]:
        owner = evidence.owners.get(hop.netns, "")
        if not _is_lost(attempt):
            return
        if not hop.forwards:
            yield Cause("route", owner, "it does not forward (ip_forward, forwarding)", LIKELY)
        elif hop.route.kind in REFUSALS:
            yield Cause("route", *_route(hop.route.kind, hop.route.prefix, owner), LIKELY)


def _firewall(attempt: Attempt, evidence: Evidence) -> Iterator[Cause]:
    """Yield what a rule did: first those that counted, then those without a counter."""
    if not _is_lost(attempt) and attempt.outcome != "refused":
        return
    for rose in (True, False):
        for found in evidence.firewall:
            denial = found.denial
            if found.rose is not rose or not denial.certain:
                continue
            if denial.rejects or attempt.outcome != "refused":
                yield _denied(attempt, evidence, found)


def _denied(attempt: Attempt, evidence: Evidence, found: Found) -> Cause:
    own = found.netns == attempt.netns and not found.answer
    leaving = own and found.hook in (firewall.OUTPUT, firewall.POSTROUTING)
    kind = "firewall-drop-out" if leaving else "firewall-drop-in"
    if found.denial.rejects:
        kind = "firewall-reject"
    action = "rejected" if found.denial.rejects else "dropped"
    hook = firewall.HOOKS[found.hook]
    counted = "its counter rose during the attempt" if found.rose else "by its matches"
    detail = f"{action} at {hook} by {found.denial.words} ({counted})"
    # Other traffic raises the counter, too, where there may have been no answer to this attempt.
    far = evidence.far
    there = not found.answer or bool(far and far.read and far.taking)
    return Cause(kind, found.owner, detail, _sure(found.rose and there))


def _full_tables(attempt: Attempt, evidence: Evidence) -> Iterator[Cause]:
    """Yield where connection tracking has no room for what is new: nf_conntrack_alloc()."""
    for netns, (used, most) in evidence.full_tables.items():
        kind = "firewall-drop-out" if netns == attempt.netns else "firewall-drop-in"
        detail = f"the table of connection tracking is full: {used:,} of {most:,} entries"
        yield Cause(kind, evidence.owners.get(netns, ""), detail, LIKELY, inferred=True)


def _neighbour(attempt: Attempt, evidence: Evidence) -> Iterator[Cause]:
    hop = evidence.way.hops[-1] if evidence.way.hops and not evidence.way.far else None
    known = hop.neighbour if hop else None
    if not _is_lost(attempt) or not hop or not known or known.state not in UNANSWERED:
        return
    given_up = known.state != "INCOMPLETE" or attempt.outcome in ("timed-out", "unreachable")
    if not (given_up or attempt.latency >= _SECOND_SYN):
        return
    if evidence.former:
        yield _gone(evidence, attempt)
        return
    asked = "neighbour discovery" if attempt.version == 6 else "ARP"
    where = f"{hop.interface}, {evidence.owners.get(hop.netns, '')}"
    detail = f"no answer to {asked} for {hop.next} on {hop.interface} ({known.state})"
    seen = attempt.error == errno.EHOSTUNREACH and len(evidence.way.hops) == 1
    yield Cause("neighbour", where, detail, _sure(seen))


def _gone(evidence: Evidence, attempt: Attempt) -> Cause:
    former = evidence.former
    name = f"container {former.name}" if former else ""
    return Cause("container-gone", name, f"{attempt.address} was its address", LIKELY)


def _far(attempt: Attempt, evidence: Evidence) -> Iterator[Cause]:
    """Yield what the far end shows, where it is on this host."""
    far = evidence.far
    if far is None or not far.read:
        return
    taking = far.taking
    if attempt.outcome == "refused":
        if not taking:
            yield from _backend(far) if evidence.published else (_no_listener(far),)
    elif far.full:
        queue = f"{taking[0].waiting} of {taking[0].backlog} connections wait on port {far.port}"
        kind = "container-paused" if far.paused else "accept-queue-full"
        yield Cause(kind, far.listener, f"accept queue is full: {queue}", LIKELY)


def _backend(backend: Far) -> Iterator[Cause]:
    if backend.read and not backend.taking:
        detail = f"published port: {_no_listener(backend).detail}"
        yield Cause("published-port-without-backend", backend.owner, detail, LIKELY)


def _no_listener(far: Far) -> Cause:
    elsewhere = sorted({each.place for each in far.elsewhere})
    if elsewhere:
        by = f" (by {far.server})" if far.server else ""
        detail = f"port {far.port} is listened on at {', '.join(elsewhere[:_PORTS])} only{by}"
        return Cause("listens-elsewhere", far.owner, detail, LIKELY)
    ports = sorted({each.port for each in far.listeners})
    listens = ", ".join(map(str, ports[:_PORTS])) + (", …" if len(ports) > _PORTS else "")
    others = f"listens on {listens}" if ports else "nothing listens there"
    return Cause("no-listener", far.owner, f"no listener on port {far.port} ({others})", LIKELY)


def _nothing_here(attempt: Attempt, evidence: Evidence) -> Iterator[Cause]:
    """Yield what is left where the destination is not on this host."""
    hops = evidence.way.hops
    unknown = evidence.far or evidence.way.gap or not hops
    if unknown or not hops[-1].forwards or hops[-1].route.kind in REFUSALS:
        return
    if evidence.former and _is_lost(attempt):
        yield _gone(evidence, attempt)
        return
    if attempt.outcome == "refused":
        if any(found.denial.rejects or found.denial.elsewhere for found in evidence.firewall):
            return  # one that may have sent it, or may not
        more = "" if evidence.unread else " that no rule of this host sent"
        detail = f"answered by a reset or an ICMP error{more}"
        yield Cause("peer-refused", attempt.address, detail, LIKELY)
    elif _is_silence(attempt) and not evidence.firewall:
        more = "" if evidence.unread else ", and nothing on this host explains it"
        yield Cause("no-answer", attempt.address, f"no answer{more}", LIKELY)


def _is_silence(attempt: Attempt) -> bool:
    again = attempt.outcome == "unanswered" and attempt.latency >= _SECOND_SYN
    return again or attempt.outcome == "timed-out"


def _sure(seen: bool) -> str:
    return SEEN if seen else LIKELY
