"""From what the kernel did to an attempt's segments, and the evidence, to a cause."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ig.causes.cause import LIKELY, LOST, SEEN, Attempt, Cause
from ig.causes.evidence import Evidence
from ig.causes.judge import judge

RECEIVED, SENT = 1, 2
"""Bits of a reset: received by the near end, sent by this host's kernel."""
SYN, ANSWER, LEAVING = 1, 2, 4
"""What was dropped; and the bit that is set if it had not left its network namespace."""
_PORT_UNREACHABLE = (3, 3)  # ICMP type and code: TCP answers a closed port by a reset, never so
_SERVERS = frozenset({"no-listener", "listens-elsewhere", "published-port-without-backend"})
_DROPS = {
    "SOCKET_FILTER": ("local-policy", "a socket filter, a BPF program of a cgroup, or an LSM"),
    "BPF_CGROUP_EGRESS": ("local-policy", "a BPF program of a cgroup"),
    "SECURITY_HOOK": ("local-policy", "a security module (LSM)"),
    "TC_INGRESS": ("local-policy", "a program or filter of traffic control (tc ingress)"),
    "TC_EGRESS": ("local-policy", "a program or filter of traffic control (tc egress)"),
    "XDP": ("local-policy", "an XDP program"),
    "XFRM_POLICY": ("local-policy", "an IPsec policy"),
    "TCP_LISTEN_OVERFLOW": ("accept-queue-full", "the listener: its accept queue is full"),
    "SOCKET_BACKLOG": ("accept-queue-full", "the listener: its queue of segments is full"),
    "IP_RPFILTER": ("route", "the reverse path filter: no route back by that interface"),
    "IP_OUTNOROUTES": ("route", "the kernel: no route to the destination"),
    "IP_INNOROUTES": ("route", "the kernel: no route to the destination"),
    "IP_INADDRERRORS": ("route", "the kernel: the destination is no address of that network"),
    "IPV6DISABLED": ("route", "the kernel: IPv6 is disabled on that interface"),
    "NEIGH_CREATEFAIL": ("neighbour", "the kernel: no room for a neighbour"),
    "NEIGH_FAILED": ("neighbour", "the kernel: the next hop did not answer"),
    "NEIGH_QUEUEFULL": ("neighbour", "the kernel: the next hop did not answer yet"),
    "NEIGH_DEAD": ("neighbour", "the kernel: the next hop is gone"),
    "TCP_CSUM": ("dropped", "the kernel: wrong checksum"),
    "IP_CSUM": ("dropped", "the kernel: wrong checksum"),
    "QDISC_DROP": ("dropped", "a queue of traffic control"),
    "SUBSYS_QDISC": ("dropped", "a queue of traffic control"),
    "CPU_BACKLOG": ("dropped", "the kernel: the queue of that processor is full"),
    "PROTO_MEM": ("dropped", "the kernel: no memory for TCP"),
    "NOMEM": ("dropped", "the kernel: no memory"),
}
"""By the kernel's reason, the kind of the cause, and who dropped it."""


FOR_IPV4 = " (IPv4)"
"""What follows a kind that is seen of IPv4 alone."""
SEEN_BY = {
    "kfree_skb": (
        *("no-listener", "firewall-drop-in", "firewall-drop-out", "firewall-reject"),
        *("local-policy", "dropped", "accept-queue-full", "neighbour"),
    ),
    "icmp_send": (f"firewall-reject{FOR_IPV4}",),
    "tcp_send_reset": ("no-listener",),
}
"""Kinds of causes that are seen by what is reported at a tracepoint; else they are likely."""


class Signals(NamedTuple):
    """What the kernel did to the segments of an attempt: struct signals in signals.h."""

    drop: str = ""
    """Its reason to drop one, "" if none was."""
    dropped: int = 0
    """SYN or ANSWER."""
    leaving: bool = False
    """Whether it was dropped before it left the network namespace that it was made in."""
    drop_netns: int = 0
    answer_netns: int = 0
    """Where this host's kernel answered the SYN by a reset or an ICMP error, 0 if it did not."""
    server_port: int = 0
    """The SYN's destination port where it was dropped or answered."""
    icmp: tuple[int, int] = (0, 0)
    """The type and code of this host's ICMP error."""
    reset: int = 0
    """RECEIVED, SENT, both or none."""
    drops: int = 0
    """How many segments were dropped there for that reason, one after the other."""

    def every_syn(self, attempt: Attempt, retransmits: int) -> bool:
        """Return whether each SYN that was sent, or its answer, was dropped there.

        One that is `unanswered` was reported before its last SYN was sent.
        """
        return self.drops >= retransmits + (attempt.outcome != "unanswered")

    @property
    def netns(self) -> int:
        """The network namespace that they are about, 0 if there are none."""
        return self.drop_netns or self.answer_netns


Owner = Callable[[int], str]
"""Whose a network namespace is, in words."""


def find(
    attempt: Attempt,
    signals: Signals,
    owner: Owner,
    evidence: Evidence | None,
    retransmits: int = 0,
    *,
    complete: bool = True,
) -> Cause | None:
    """Return why an attempt failed, or was slow; None where nothing shows it.

    `evidence` is None where the host was not looked at. `complete` is whether the kernel has
    reasons for its drops, and missed no signal.
    """
    if attempt.outcome == "established":
        return _slow(attempt, signals, owner, evidence, retransmits, complete=complete)
    likely = _likely(attempt, signals, evidence, complete=complete)
    if likely and likely.kind == "local-port-exhausted":
        return likely  # with figures
    return (
        _called(attempt, owner)
        or _dropped(attempt, signals, owner, likely, evidence=evidence, retransmits=retransmits)
        or _answered(attempt, signals, owner, likely, evidence)
        or likely
        or _given_up(attempt, owner)
    )


def _likely(
    attempt: Attempt, signals: Signals, evidence: Evidence | None, *, complete: bool
) -> Cause | None:
    """Return the cause that the evidence shows."""
    # Connection tracking drops nothing without a signal.
    if evidence and complete and signals.drop != "NETFILTER_DROP":
        evidence = replace(evidence, full_tables={})
    return judge(attempt, evidence) if evidence else None


def _called(attempt: Attempt, owner: Owner) -> Cause | None:
    """Return the cause that the error alone is."""
    near = owner(attempt.netns)
    if attempt.error == errno.EPERM:
        detail = "connect() was denied (EPERM): by a BPF program of the cgroup, or by an LSM"
        return Cause("local-policy", near, detail, SEEN)
    if attempt.error == errno.ECONNRESET:
        return Cause("peer-reset", attempt.address, "reset before it was established", SEEN)
    # One that began SYN_SENT had an address and a route.
    if attempt.error == errno.EADDRNOTAVAIL and attempt.latency:
        detail = f"no local port is free for {attempt.address} port {attempt.port}"
        if attempt.source_port:
            detail = f"its local port {attempt.source_port} is in use for the same destination"
        return Cause("local-port-exhausted", near, detail, SEEN)
    return None


def _dropped(
    attempt: Attempt,
    signals: Signals,
    owner: Owner,
    likely: Cause | None,
    *,
    evidence: Evidence | None,
    retransmits: int,
) -> Cause | None:
    """Return the cause where a segment was dropped."""
    where = _place(signals.drop_netns, owner)
    confidence = SEEN if signals.every_syn(attempt, retransmits) else LIKELY
    if signals.drop == "NETFILTER_DROP":
        if attempt.outcome in ("refused", "unreachable") or any(signals.icmp) or signals.reset:
            if likely and likely.kind == "firewall-reject" and likely.where == where:
                return replace(likely, confidence=SEEN)
            return None if _by_ipvs(evidence) else _rejected(signals, where, likely, retransmits)
        return _firewall(signals, where, likely, confidence)
    if signals.drop == "NO_SOCKET":
        return _no_listener(attempt, signals, where, likely)
    kind, by = _DROPS.get(signals.drop, ("", ""))
    if not kind or attempt.outcome not in LOST:
        return None
    if likely and (kind == likely.kind or likely.kind in _SAME.get(kind, ())):
        return replace(likely, confidence=confidence)
    return Cause(kind, where, f"{_words(signals)} by {by} ({signals.drop})", confidence)


_SAME = {"neighbour": ("container-gone",), "accept-queue-full": ("container-paused",)}


_NETFILTER = "netfilter (a rule, connection tracking or IPVS)"


def _firewall(signals: Signals, where: str, likely: Cause | None, confidence: str) -> Cause:
    kind = "firewall-drop-out" if signals.leaving else "firewall-drop-in"
    # The kernel limits the rate of ICMP errors: a rule that rejects may have only dropped it.
    if likely and likely.kind in (kind, "firewall-reject") and likely.where == where:
        return likely if likely.inferred else replace(likely, confidence=confidence)
    detail = f"{_words(signals)} by {_NETFILTER} (NETFILTER_DROP)"
    return Cause(kind, where, detail, confidence)


def _rejected(signals: Signals, where: str, likely: Cause | None, retransmits: int) -> Cause | None:
    """Return the cause of an attempt that was answered, where no rule is known to have done so.

    With repeated SYNs, what was dropped need not be what was answered.
    """
    if retransmits and (likely or signals.reset & SENT):
        return None
    sure = signals.reset == RECEIVED and not retransmits  # IPVS sends ICMP errors, no resets
    detail = f"{_words(signals)} and answered by {_NETFILTER} (NETFILTER_DROP)"
    return Cause("firewall-reject", where, detail, SEEN if sure else LIKELY)


def _by_ipvs(evidence: Evidence | None) -> bool:
    """Return whether IPVS has a service there: it answers where that has no server."""
    if evidence is None:
        return False
    by = (hop.by for hop in evidence.way.translations)
    return evidence.doubt.startswith("by IPVS,") or any(each.endswith(", by IPVS") for each in by)


def _no_listener(
    attempt: Attempt, signals: Signals, where: str, likely: Cause | None
) -> Cause | None:
    if attempt.outcome != "refused":
        return None
    if likely and likely.kind in _SERVERS and likely.where == where:
        return replace(likely, confidence=SEEN)
    return Cause("no-listener", where, f"no listener on port {signals.server_port}", SEEN)


def _answered(
    attempt: Attempt,
    signals: Signals,
    owner: Owner,
    likely: Cause | None,
    evidence: Evidence | None,
) -> Cause | None:
    """Return the cause where this host's kernel has answered."""
    where = _place(signals.answer_netns, owner)
    if signals.reset & SENT:
        return _no_listener(attempt, signals, where, likely)
    if signals.icmp == _PORT_UNREACHABLE:
        if likely and likely.kind == "firewall-reject" and likely.where == where:
            return replace(likely, confidence=SEEN)
        detail = "answered by an ICMP error of netfilter (a rule, or IPVS)"
        return likely if _by_ipvs(evidence) else Cause("firewall-reject", where, detail, LIKELY)
    if any(signals.icmp) and likely and likely.kind in ("route", "neighbour", "container-gone"):
        return replace(likely, confidence=SEEN)
    return None


def _given_up(attempt: Attempt, owner: Owner) -> Cause | None:
    if attempt.outcome != "abandoned" or attempt.error:
        return None
    detail = "its own process closed the socket before there was an answer"
    return Cause("closed-by-caller", owner(attempt.netns), detail, SEEN)


def _slow(
    attempt: Attempt,
    signals: Signals,
    owner: Owner,
    evidence: Evidence | None,
    retransmits: int,
    *,
    complete: bool,
) -> Cause | None:
    if not retransmits:
        return None
    repeated = f"{retransmits} repeated SYN{'s' * (retransmits > 1)}"
    if signals.drop and signals.drop != "NO_SOCKET":
        _, by = _DROPS.get(signals.drop, ("", _NETFILTER))
        detail = f"{repeated}: {_words(signals)} by {by} ({signals.drop})"
        confidence = SEEN if signals.drops >= retransmits else LIKELY
        return Cause("syn-lost-repeated", _place(signals.drop_netns, owner), detail, confidence)
    far = evidence.backend or evidence.far if evidence else None
    if far and far.full:
        detail = f"{repeated}: the accept queue of port {far.port} is full"
        return Cause("syn-lost-repeated", far.listener, detail, LIKELY)
    # The kernel gives no reason for a SYN that an accept queue has no room for.
    if complete and not signals.drop and evidence and not (far or evidence.way.gap):
        detail = f"{repeated}: lost where this host does not see it, or answered late"
        return Cause("syn-lost-repeated", attempt.address, detail, SEEN)
    return Cause("syn-lost-repeated", "", f"{repeated}: lost, or answered late", LIKELY)


def _words(signals: Signals) -> str:
    what = "the SYN" if signals.dropped == SYN else "the answer"
    return f"{what} was dropped"


def _place(netns: int, owner: Owner) -> str:
    return owner(netns) if netns else ""
