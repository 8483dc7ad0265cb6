"""What is asked and what is answered: an attempt to connect, and the cause of its failure."""

from __future__ import annotations

from dataclasses import dataclass

SEEN, LIKELY = "seen", "likely"
"""Confidence: a signal of this very attempt; or what the host looks like at that moment."""

WITHOUT_ANSWER = frozenset({"timed-out", "unanswered", "abandoned"})
"""The outcomes of attempts to which no answer came."""
LOST = WITHOUT_ANSWER | {"unreachable", "failed"}
"""The outcomes of attempts whose SYN may not have arrived."""

KINDS = {
    "no-listener": "nothing listens on that port at the far end, which is on this host",
    "listens-elsewhere": "the port is listened on, but at another address, such as 127.0.0.1",
    "firewall-drop-in": "a rule of this host drops it elsewhere: where it is forwarded or arrives",
    "firewall-drop-out": "a rule drops it where it is sent: in the near end's network namespace",
    "firewall-reject": "a rule of this host rejects it, by an ICMP error or a reset",
    "route": "a route refuses the destination, or there is none",
    "neighbour": "the next hop does not answer ARP or neighbour discovery",
    "accept-queue-full": "the server does not accept fast enough",
    "peer-refused": "the far end, not on this host, refused",
    "peer-reset": "the far end reset the connection before it was established",
    "local-policy": "a cgroup's BPF program, seccomp or a security module denied it",
    "container-paused": "the far end's container is paused",
    "container-gone": "the address was a container's that has ended",
    "published-port-without-backend": "the published port's container does not listen on it",
    "local-port-exhausted": "no local port is free for that destination",
    "closed-by-caller": "its own process closed the socket before there was an answer",
    "syn-lost-repeated": "it was established, but only by a repeated SYN",
    "dropped": "the kernel dropped a segment for another reason, such as a full queue",
    "no-answer": "nothing on this host explains it, and nothing came back",
}
"""The kinds of causes, with their meaning."""

ADVICE = {
    "no-listener": "Start the server, or use the port that it listens on.",
    "listens-elsewhere": "Let the server listen on 0.0.0.0 or ::, or on the address that is used.",
    "firewall-drop-in": "Allow this connection before that rule, or remove the rule.",
    "firewall-drop-out": "Allow this connection before that rule, or remove the rule.",
    "firewall-reject": "Allow this connection before that rule, or remove the rule.",
    "route": "Correct the route: `ip route get ADDRESS` in that network namespace shows it.",
    "neighbour": "Check that the address is in use on that network and that its host is up.",
    "accept-queue-full": "Find out why the server does not accept; then raise its backlog.",
    "peer-reset": "Check the service, and proxies and firewalls on the way.",
    "peer-refused": "Check the service, or the firewall, on the far host.",
    "local-policy": "Check BPF programs of the cgroup (`bpftool cgroup tree`) and LSM policies.",
    "container-paused": "Unpause the container.",
    "container-gone": "Start the container again, or use its new address.",
    "published-port-without-backend": "Let the server in the container listen on the inner port.",
    "local-port-exhausted": "Reuse connections, or widen net.ipv4.ip_local_port_range.",
    "closed-by-caller": "Give it more time, if the answer is worth the wait.",
    "syn-lost-repeated": "Find out what drops its segments there, or why the server is slow.",
    "dropped": "Look at `nstat` and `ip -s link` in that network namespace.",
    "no-answer": "Check the far host, and the firewalls on the way.",
}
"""What to do about each kind."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to connect, as it ended or stands."""

    netns: int
    """The inode of the network namespace that it was made in."""
    address: str
    """The destination, in its canonical spelling."""
    port: int
    outcome: str
    """One of the outcomes of events: refused, timed-out, unreachable, failed, unanswered, …"""
    error: int = 0
    """The error number (errno), 0 if none."""
    source: str = ""
    source_port: int = 0
    moment: int = 0
    """When it was made, in ns since the epoch; 0: now."""
    latency: int = 0
    """The ns from the SYN to the outcome, or for which there was none; 0 if not known."""
    interface: str = ""
    """The interface that it is bound to, as by the zone of an address; "" for none."""

    @property
    def version(self) -> int:
        """The version of IP, 4 or 6."""
        return 6 if ":" in self.address else 4


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an attempt failed."""

    kind: str
    """One of KINDS."""
    where: str
    """The container, the rule, the interface or the route that it lies with."""
    detail: str
    confidence: str
    """SEEN or LIKELY."""
    inferred: bool = False
    """Whether no signal of the kernel makes it more than likely."""
