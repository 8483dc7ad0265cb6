"""Traces with `--why`: attempts in them, what events say of their causes, and rules that deny."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.features import has_drop_reasons
from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import until

TABLES = {"4": "iptables", "6": "ip6tables"}
PEER = {"4": "198.51.100.7", "6": "2001:db8:51::7"}
LOOPBACK = {"4": "127.0.0.1", "6": "::1"}
REASONS = has_drop_reasons()
"""Whether this kernel says why it drops a segment, so that causes are seen."""
SEEN = "seen" if REASONS else "likely"

VERSION = pytest.mark.parametrize("version", ["4", "6"])
HOW = pytest.mark.parametrize(
    "how", [(), ("--nonblocking", "--timeout", 1.5)], ids=("blocking", "not")
)

Cause = tuple[str, str, str]
"""The outcome, the kind of the cause, and its confidence."""


def told(event: Report) -> Cause:
    """Return what an event says of its cause."""
    return event["outcome"], event["cause"]["kind"], event["cause"]["confidence"]


class Traced:
    """A trace with --why, and the attempts of namespaces in it."""

    def __init__(self, tracer: Tracer, note: Callable[[str], None]) -> None:
        """`note` takes each kind of cause that an attempt had, with its confidence."""
        self.tracer = tracer
        self._note = note

    def attempt(self, near: Namespace, host: str, port: int, *options: object) -> Report:
        """Connect from a namespace, and return the event of how that ended."""

        def act() -> None:
            near.connect(host, port, "--kind", "6" if ":" in host else "4", *options)

        return self.ended(near.inode, host, port, act)

    def ended(self, netns: int, host: str, port: int, act: Callable[[], object]) -> Report:
        """Return the event of how an attempt that `act` makes from a network namespace ended."""
        begin = len(self.tracer.events)
        act()

        def is_wanted(event: Report) -> bool:
            place = event["netns_id"], event["dst"]["addr"], event["dst"]["port"]
            return place == (netns, host, port) and event["outcome"] != "unanswered"

        until(lambda: any(map(is_wanted, self.tracer.events[begin:])), f"the connect to {port}")
        return self.noted(next(filter(is_wanted, self.tracer.events[begin:])))

    def noted(self, event: Report) -> Report:
        """Note the cause of an event for the table of kernels, and return the event."""
        self._note(f"{event['cause']['kind']} {event['cause']['confidence']}")
        return event


def deny(namespace: Namespace, version: str, chain: str, port: int, *target: object) -> None:
    """Let a rule deny what goes to a port."""
    rule = ("-A", chain, "-p", "tcp", "--dport", port, "-j", *target)
    namespace.run(TABLES[version], *rule)
