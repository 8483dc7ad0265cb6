"""Causes from evidence, and nftables' rules against a segment, without a kernel."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import replace

import pytest

from ig.causes import firewall
from ig.causes.cause import ADVICE, KINDS, Attempt
from ig.causes.evidence import Evidence, Far
from ig.causes.firewall import INPUT, Packet
from ig.causes.judge import judge
from ig.causes.places import Hop, Listener, Way
from ig.kernel import netlink
from ig.kernel.netlink import attribute
from ig.kernel.nftables import Chain, Expression, Rule, Ruleset
from ig.kernel.routes import Neighbour, Route

ATTEMPT = Attempt(7, "192.0.2.2", 80, "refused", errno.ECONNREFUSED, "192.0.2.1", 40000)
REMOTE = Way((Hop(7, Route("unicast", 2, "", "192.0.2.0/24"), "", "eth0", "192.0.2.2"),))
SYN = Packet("192.0.2.1", 40000, "192.0.2.2", 80)


def kind(attempt: Attempt, evidence: Evidence) -> str:
    cause = judge(attempt, evidence)
    return cause.kind if cause else ""


def test_advice_is_there_for_every_kind() -> None:
    assert ADVICE.keys() == KINDS.keys()


def test_denial_of_the_call_is_a_local_policy() -> None:
    denied = replace(ATTEMPT, outcome="failed", error=errno.EPERM)
    cause = judge(denied, Evidence("container web", REMOTE))
    assert cause
    assert (cause.kind, cause.where, cause.confidence) == ("local-policy", "container web", "seen")


def test_refusal_by_what_listens_is_not_explained() -> None:
    listener = Listener("0.0.0.0", 80, 0, 128, 5)
    far = Far(8, "container db", (listener,), 80, "192.0.2.2")
    assert kind(ATTEMPT, Evidence("this host", Way((), 8), far)) == ""
    assert kind(ATTEMPT, Evidence("this host", Way((), 8), replace(far, read=False))) == ""


def test_full_queue_needs_all_listeners_full() -> None:
    full, free = Listener("0.0.0.0", 80, 129, 128, 5), Listener("0.0.0.0", 80, 128, 128, 6)
    silent = replace(ATTEMPT, outcome="unanswered", error=0)
    far = Far(8, "container db", (full, full), 80, "192.0.2.2")
    both = replace(far, listeners=(full, free))
    assert kind(silent, Evidence("this host", Way((), 8), far)) == "accept-queue-full"
    assert kind(silent, Evidence("this host", Way((), 8), both)) == ""
    assert kind(silent, Evidence("", Way((), 8), replace(far, paused=True))) == "container-paused"


def test_neighbour_that_answers_is_not_blamed() -> None:
    silent = replace(ATTEMPT, outcome="unreachable", error=errno.EHOSTUNREACH)
    hop = REMOTE.hops[0]
    for state, expected in (("FAILED", "neighbour"), ("REACHABLE", "")):
        way = Way((replace(hop, neighbour=Neighbour(state, b"")),))
        assert kind(silent, Evidence("this host", way)) == expected


def test_attempt_given_up_by_its_caller_is_not_called_unanswered() -> None:
    assert kind(replace(ATTEMPT, outcome="abandoned", error=0), Evidence("", REMOTE)) == ""


def number(value: int) -> bytes:
    return struct.pack("!I", value)


def value(data: bytes) -> bytes:
    return attribute(1, data)


def made(name: str, **data: bytes) -> Expression:
    attributes = b"".join(attribute(int(kind[1:]), each) for kind, each in data.items())
    return Expression(name, netlink.attributes(attributes))


def port(wanted: int) -> tuple[Expression, ...]:
    load = made("payload", a1=number(1), a2=number(2), a3=number(2), a4=number(2))
    return load, made("cmp", a1=number(1), a2=number(0), a3=value(struct.pack("!H", wanted)))


def verdict(code: int, chain: str = "") -> Expression:
    told = attribute(1, struct.pack("!i", code)) + attribute(2, chain.encode() + b"\0")
    return made("immediate", a1=number(0), a2=attribute(2, told))


def ruleset(*rules: tuple[Expression, ...], drops: bool = False, **more: Chain) -> Ruleset:
    listed = tuple(Rule(n, n, each, None) for n, each in enumerate(rules, 1))
    base = Chain("ip", "filter", "INPUT", "filter", INPUT, 0, drops, None, listed)
    chains = {("ip", "filter", "INPUT"): base}
    return Ruleset({**chains, **{("ip", "filter", name): each for name, each in more.items()}})


def blamed(rules: Ruleset, packet: Packet = SYN) -> list[tuple[int, bool]]:
    found = firewall.denials(rules, INPUT, packet)
    return [(each.rule.handle if each.rule else 0, each.certain) for each in found]


DROP, ACCEPT, JUMP, GOTO, RETURN = (verdict(code, "mine") for code in (0, 1, -3, -4, -5))
UNKNOWN = made("match", a1=b"recent\0")
ESTABLISHED = (
    made("ct", a1=number(1), a2=number(0)),
    made(
        "bitwise",
        a1=number(1),
        a2=number(1),
        a3=number(4),
        a4=value(struct.pack("=I", 6)),
        a5=value(bytes(4)),
    ),
    made("cmp", a1=number(1), a2=number(1), a3=value(bytes(4))),
)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (((*port(80), DROP),), [(1, True)]),
        (((*port(81), DROP),), []),
        (((UNKNOWN, DROP), (*port(80), DROP)), [(1, False), (2, False)]),
        (((*port(80), ACCEPT), (DROP,)), []),
        (((UNKNOWN, ACCEPT), (DROP,)), [(2, False)]),
        (((*ESTABLISHED, ACCEPT), (DROP,)), [(2, True)]),
        (((JUMP,), (DROP,)), [(7, True)]),
        (((UNKNOWN, JUMP), (DROP,)), [(7, False), (2, False)]),
        (((RETURN,), (DROP,)), []),
        (((made("reject"),),), [(1, True)]),
    ],
)
def test_rules_are_blamed_as_far_as_they_are_understood(
    rules: tuple[tuple[Expression, ...], ...], expected: list[tuple[int, bool]]
) -> None:
    mine = Chain("ip", "filter", "mine", "", -1, 0, False, None, (Rule(7, 1, (DROP,), None),))
    assert blamed(ruleset(*rules, mine=mine)) == expected


def test_policy_applies_to_what_no_rule_takes() -> None:
    assert blamed(ruleset((*port(81), ACCEPT), drops=True)) == [(0, True)]
    assert blamed(ruleset((*port(80), ACCEPT), drops=True)) == []
    empty = Chain("ip", "filter", "mine", "", -1, 0, False, None, ())
    assert blamed(ruleset((GOTO,), (ACCEPT,), drops=True, mine=empty)) == [(0, True)]
    assert blamed(ruleset((*ESTABLISHED, ACCEPT), drops=True), replace(SYN, flags=0x12)) == []


def test_unknown_source_matches_nothing_for_sure() -> None:
    load = made("payload", a1=number(1), a2=number(1), a3=number(12), a4=number(4))
    wanted = value(socket.inet_aton("192.0.2.1"))
    rules = ruleset((load, made("cmp", a1=number(1), a2=number(0), a3=wanted), DROP))
    assert blamed(rules) == [(1, True)]
    assert blamed(rules, replace(SYN, source="")) == [(1, False)]


def test_counters_that_stand_still_clear_a_rule() -> None:
    (denial,) = firewall.denials(ruleset((*port(80), DROP)), INPUT, SYN)
    for before, after, expected in (
        ({}, {}, [(denial, False)]),
        ({denial.key: 5}, {denial.key: 5}, []),
        ({denial.key: 5}, {denial.key: 6}, [(denial, True)]),
    ):
        assert list(firewall.rising([denial], before, after)) == expected
