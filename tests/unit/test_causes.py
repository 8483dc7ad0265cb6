"""Causes from evidence, and nftables' rules against a segment, without a kernel."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ig.causes import firewall
from ig.causes.cause import ADVICE, KINDS, Attempt
from ig.causes.evidence import Evidence, Far, Found
from ig.causes.expressions import Budget
from ig.causes.firewall import INPUT, OUTPUT
from ig.causes.judge import judge
from ig.causes.packet import Packet
from ig.causes.places import Listener
from ig.causes.way import Hop, Way
from ig.causes.xtables import To
from ig.commands.explained import steps
from ig.kernel import ipvs, netlink
from ig.kernel.conntrack import Tuple
from ig.kernel.netlink import attribute
from ig.kernel.nftables import Chain, Expression, Rule, Ruleset
from ig.kernel.nftables_sets import Element, Set
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
    far = Far(8, "container db", (listener,), 80, ("192.0.2.2",))
    assert kind(ATTEMPT, Evidence("this host", Way((), 8), far)) == ""
    assert kind(ATTEMPT, Evidence("this host", Way((), 8), replace(far, read=False))) == ""


def test_full_queue_needs_all_listeners_full() -> None:
    full, free = Listener("0.0.0.0", 80, 129, 128, 5), Listener("0.0.0.0", 80, 128, 128, 6)
    silent = replace(ATTEMPT, outcome="unanswered", error=0)
    far = Far(8, "container db", (full, full), 80, ("192.0.2.2",))
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


def test_neighbour_that_is_still_asked_is_not_blamed() -> None:
    way = Way((replace(REMOTE.hops[0], neighbour=Neighbour("INCOMPLETE", b"")),))
    silent = replace(ATTEMPT, outcome="unanswered", error=0, latency=300_000_000)
    assert kind(silent, Evidence("this host", way)) == ""
    assert kind(replace(silent, latency=1_100_000_000), Evidence("this host", way)) == "neighbour"


def test_silence_is_never_seen_and_needs_two_attempts() -> None:
    silent = replace(ATTEMPT, outcome="unanswered", error=0, latency=1_100_000_000)
    cause = judge(silent, Evidence("this host", REMOTE))
    assert cause
    assert (cause.kind, cause.confidence) == ("no-answer", "likely")
    assert kind(replace(silent, latency=500_000_000), Evidence("this host", REMOTE)) == ""


def test_refusal_from_elsewhere_claims_no_more_than_was_read() -> None:
    read = judge(ATTEMPT, Evidence("this host", REMOTE))
    partly = judge(ATTEMPT, Evidence("this host", REMOTE, unread=("the firewall of this host",)))
    assert read
    assert partly
    assert (read.kind, read.confidence) == ("peer-refused", "likely")
    assert (partly.kind, partly.confidence) == ("peer-refused", "likely")
    assert "that no rule of this host sent" in read.detail
    assert "rule" not in partly.detail
    for evidence in (
        Evidence("this host", REMOTE, doubt="by nftables, this host"),
        Evidence("this host", replace(REMOTE, gap="which of 2 network namespaces")),
    ):
        assert judge(ATTEMPT, evidence) is None


def test_call_that_sent_no_syn_is_not_blamed_on_what_is_on_the_way() -> None:
    (denial,) = firewall.denials(ruleset((DROP,)), INPUT, SYN).denials
    rule = Found(denial, INPUT, "this host", rose=True)
    hop = replace(REMOTE.hops[0], neighbour=Neighbour("FAILED", b""))
    beyond = Way((REMOTE.hops[0], Hop(8, Route("none"), "eth0")))
    for error, expected in (
        (errno.ENOBUFS, ("", "", "")),
        (errno.EADDRNOTAVAIL, ("", "", "")),
        (errno.EHOSTUNREACH, ("firewall-drop-in", "neighbour", "route")),
    ):
        failed = replace(ATTEMPT, outcome="failed", error=error)
        found = (
            kind(failed, Evidence("", REMOTE, firewall=(rule,))),
            kind(failed, Evidence("", Way((hop,)))),
            kind(failed, Evidence("", beyond)),
        )
        assert found == expected


def test_counter_of_a_rule_for_answers_needs_a_listener_on_this_host() -> None:
    silent = replace(ATTEMPT, outcome="timed-out", error=errno.ETIMEDOUT)
    (denial,) = firewall.denials(ruleset((DROP,)), INPUT, SYN).denials
    far = Far(8, "container db", (Listener("0.0.0.0", 80, 0, 128, 5),), 80, ("192.0.2.2",))
    for answer, there, expected in (
        (False, None, "seen"),
        (True, None, "likely"),
        (True, replace(far, listeners=()), "likely"),
        (True, far, "seen"),
    ):
        found = Found(denial, INPUT, "this host", rose=True, netns=7, answer=answer)
        cause = judge(silent, Evidence("this host", REMOTE, there, firewall=(found,)))
        assert cause
        assert (cause.kind, cause.confidence) == ("firewall-drop-in", expected)


def test_drop_out_is_of_the_near_ends_own_segments() -> None:
    silent = replace(ATTEMPT, outcome="timed-out", error=errno.ETIMEDOUT)
    (denial,) = firewall.denials(ruleset((DROP,)), INPUT, SYN).denials
    for netns, answer, expected in (
        (7, False, "firewall-drop-out"),
        (8, False, "firewall-drop-in"),
        (7, True, "firewall-drop-in"),
    ):
        found = Found(denial, OUTPUT, "", rose=False, netns=netns, answer=answer)
        assert kind(silent, Evidence("", REMOTE, firewall=(found,))) == expected


def test_route_that_came_after_the_syn_is_not_blamed() -> None:
    way = Way((Hop(7, Route("none"), ""),))
    missing = replace(ATTEMPT, outcome="failed", error=errno.ENETUNREACH)
    silent = replace(ATTEMPT, outcome="timed-out", error=errno.ETIMEDOUT)
    assert kind(missing, Evidence("this host", way)) == "route"
    assert kind(silent, Evidence("this host", way)) == ""


def test_published_port_without_a_listener_at_any_address_has_a_cause() -> None:
    proxy = Listener("0.0.0.0", 80, 0, 128, 5)
    inner = Listener("198.18.0.2", 7000, 0, 128, 6)
    host = Far(1, "this host", (proxy,), 80, ("192.0.2.2",))
    backend = Far(8, "container web", (), 7000, ("172.17.0.2", "198.18.0.2"))
    evidence = Evidence("this host", Way((), 1), host, backend, doubt="by nftables")
    assert kind(ATTEMPT, evidence) == "published-port-without-backend"
    listens = replace(evidence, backend=replace(backend, listeners=(inner,)))
    taken = replace(ATTEMPT, outcome="established", error=0)  # by the engine's proxy
    assert kind(taken, evidence) == "published-port-without-backend"
    assert kind(taken, listens) == kind(ATTEMPT, listens) == ""


def test_way_that_is_not_known_further_is_a_step() -> None:
    way = replace(REMOTE, gap="the route: Operation not permitted")
    found = {name: result for name, result, _ in steps(ATTEMPT, Evidence("this host", way))}
    assert (found["route"], found["firewall"]) == ("unknown", "unknown")


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
    found = firewall.denials(rules, INPUT, packet).denials
    return [(each.key[-1], each.certain) for each in found]


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


def test_socket_forgets_its_register() -> None:
    load, compare = port(81)
    socket_mark = made("socket", a1=number(1), a2=number(1))
    assert blamed(ruleset((load, socket_mark, compare, DROP))) == [(1, False)]


def test_header_that_a_rule_writes_is_not_known_from_there_on() -> None:
    write = made("payload", a2=number(2), a3=number(2), a4=number(2), a5=number(1))
    new = made("immediate", a1=number(1), a2=value(struct.pack("!H", 81)))
    rules = (*port(80), new, write), (*port(80), ACCEPT), (*port(81), DROP), (*port(82), DROP)
    assert blamed(ruleset(*rules)) == [(3, False), (4, False)]
    never = (*port(79), new, write), *rules[1:]
    assert blamed(ruleset(*never)) == []


def objref(kind: int = 0) -> Expression:
    return made("objref", a1=number(kind)) if kind else made("objref", a3=number(1), a4=b"map\0")


@pytest.mark.parametrize(
    ("expression", "certain"),
    [
        (objref(1), True),  # a counter
        (objref(3), True),  # a helper of connection tracking
        (objref(2), False),  # a quota
        (objref(4), False),  # a limit
        (objref(5), False),  # a number of connections
        (objref(), False),  # by a map, which may not have the key
        (made("dynset", a1=b"met\0", a3=number(0)), False),  # the set may be full
        (made("dynset", a1=b"met\0", a3=number(2)), True),  # delete
        (made("tproxy", a1=number(2)), False),  # there may be no such socket
    ],
)
def test_expressions_that_may_end_a_rule_make_it_uncertain(
    expression: Expression, certain: bool
) -> None:
    assert blamed(ruleset((expression, DROP), drops=True))[0] == (1, certain)


def test_proxy_that_decides_by_its_socket_is_unknown() -> None:
    rules = ruleset((made("target", a1=b"TPROXY\0"),), (DROP,))
    assert blamed(rules) == [(1, False), (2, False)]


SYN6 = Packet("2001:db8::1", 40000, "2001:db8::2", 80)


@pytest.mark.parametrize(
    ("family", "packet", "to"),
    [
        (2, SYN, To("192.0.2.9", 0)),
        (2, SYN6, None),
        (10, SYN, None),
        (10, SYN6, To("2001:db8::9", 0)),
    ],
)
def test_translation_of_the_other_version_is_passed_over(
    family: int, packet: Packet, to: To | None
) -> None:
    own = ip_address("192.0.2.9" if family == 2 else "2001:db8::9").packed
    stored = made("immediate", a1=number(1), a2=value(own))
    nat = made("nat", a1=number(1), a2=number(family), a3=number(1))
    rules = Rule(1, 1, (stored, nat), None), Rule(2, 2, (DROP,), None)
    base = Chain("inet", "t", "c", "nat", OUTPUT, -100, False, None, rules)
    found = firewall.translations(Ruleset({("inet", "t", "c"): base}), OUTPUT, packet)
    assert [each.to for each in found.translations] == ([to] if to else [])


def test_ports_are_translated_for_both_versions() -> None:
    stored = made("immediate", a1=number(1), a2=value(struct.pack("!H", 8080)))
    nat = made("nat", a1=number(1), a2=number(1), a5=number(1))
    base = Chain(
        "inet", "t", "c", "nat", OUTPUT, 0, False, None, (Rule(1, 1, (stored, nat), None),)
    )
    for packet in (SYN, SYN6):
        found = firewall.translations(Ruleset({("inet", "t", "c"): base}), OUTPUT, packet)
        assert [(each.to, each.certain) for each in found.translations] == [(To("", 8080), True)]


def test_rules_that_are_too_many_are_unknown_after_a_bound() -> None:
    jumps = 6
    chains = {
        f"c{n}": Chain(
            "ip",
            "filter",
            f"c{n}",
            "",
            -1,
            0,
            False,
            None,
            tuple(Rule(k, k, (UNKNOWN, verdict(-3, f"c{n + 1}")), None) for k in range(1, 11)),
        )
        for n in range(jumps)
    }
    last = Rule(1, 1, (*port(80), ACCEPT), None)
    chains[f"c{jumps}"] = Chain("ip", "filter", f"c{jumps}", "", -1, 0, False, None, (last,))
    rules = ruleset((UNKNOWN, verdict(-3, "c0")), (DROP,))
    led = {("ip", "filter", name): chain for name, chain in chains.items()}
    rules = replace(rules, chains={**rules.chains, **led})
    found = firewall.denials(rules, INPUT, SYN, budget=Budget(1_000))
    assert found.unread == ("there are too many rules to look at",)
    assert not any(each.certain for each in found.denials)
    assert any(each.elsewhere for each in found.denials)
    assert len(found.denials) < 20
    assert blamed(ruleset(*((UNKNOWN, RETURN),) * 100, (DROP,))) == [(101, False)]


def test_elements_of_sets_count_as_rules_do() -> None:
    elements = tuple(Element(number(n), number(n)) for n in range(1_000))
    lookup = made("lookup", a1=b"many\0", a2=number(1))
    rules = replace(
        ruleset((lookup, DROP)), sets={("ip", "filter", "many"): Set(4, elements=elements)}
    )
    found = firewall.denials(rules, INPUT, SYN, budget=Budget(500))
    assert found.unread == ("there are too many rules to look at",)
    assert [each.certain for each in found.denials] == [False]


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
    (denial,) = firewall.denials(ruleset((*port(80), DROP)), INPUT, SYN).denials
    for before, after, expected in (
        ({}, {}, [(denial, False)]),
        ({denial.key: 5}, {denial.key: 5}, []),
        ({denial.key: 5}, {denial.key: 6}, [(denial, True)]),
    ):
        assert list(firewall.rising((denial,), before, after)) == expected


def test_rule_that_is_not_understood_is_not_blamed_for_its_counter() -> None:
    silent = replace(ATTEMPT, outcome="timed-out", error=errno.ETIMEDOUT)
    for expression, expected in ((UNKNOWN, ""), (made("counter"), "firewall-drop-in")):
        (denial,) = firewall.denials(ruleset((expression, DROP)), INPUT, SYN).denials
        evidence = Evidence("", REMOTE, firewall=(Found(denial, INPUT, "this host", rose=True),))
        assert kind(silent, evidence) == expected


def conntrack(states: int, *, inverted: int = 0, asked: int = 1) -> Expression:
    info = bytes(146) + struct.pack("=HHHH", asked, inverted, states, 0) + bytes(8)
    return made("match", a1=b"conntrack\0", a2=number(3), a3=info)


INVALID, RELATED_ESTABLISHED, NEW, TRANSLATED = 0x01, 0x06, 0x08, 0x80


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (conntrack(INVALID), []),
        (conntrack(RELATED_ESTABLISHED), []),
        (conntrack(NEW), [(1, True)]),
        (conntrack(RELATED_ESTABLISHED, inverted=1), [(1, True)]),
        (conntrack(TRANSLATED), [(1, False)]),
        (conntrack(NEW, asked=3), [(1, False)]),
        (replace(conntrack(NEW), data={1: b"conntrack\0"}), [(1, False)]),
    ],
)
def test_conntrack_states_are_understood(
    match: Expression, expected: list[tuple[int, bool]]
) -> None:
    assert blamed(ruleset((match, DROP))) == expected


def test_conntrack_state_is_unknown_after_notrack() -> None:
    state = (*ESTABLISHED, ACCEPT), (DROP,)
    for port_of_rule, certain in ((80, False), (81, True)):
        off = Rule(9, 1, (*port(port_of_rule), made("notrack")), None)
        raw = Chain("ip", "filter", "raw", "filter", firewall.PREROUTING, -300, False, None, (off,))
        assert blamed(ruleset(*state, raw=raw)) == [(2, certain)]


@pytest.mark.parametrize(
    ("hook", "priority", "certain"),
    [(OUTPUT, -300, False), (OUTPUT, -200, False), (OUTPUT, -150, True), (INPUT, -300, True)],
)
def test_conntrack_state_is_unknown_before_connection_tracking(
    hook: int, priority: int, certain: bool
) -> None:
    rules = Rule(1, 1, (*ESTABLISHED, ACCEPT), None), Rule(2, 2, (DROP,), None)
    base = Chain("ip", "t", "c", "filter", hook, priority, False, None, rules)
    found = firewall.denials(Ruleset({("ip", "t", "c"): base}), hook, SYN).denials
    assert [(each.place, each.certain) for each in found] == [(2, certain)]


def translates(*rules: tuple[Expression, ...], **more: Chain) -> bool:
    listed = tuple(Rule(n, n, each, None) for n, each in enumerate(rules, 1))
    base = Chain("ip", "nat", "OUTPUT", "nat", OUTPUT, -100, False, None, listed)
    chains = {("ip", "nat", "OUTPUT"): base}
    chains |= {("ip", "nat", name): chain for name, chain in more.items()}
    return bool(firewall.translations(Ruleset(chains), OUTPUT, SYN).translations)


def test_translation_of_the_destination_is_found() -> None:
    redirect = made("target", a1=b"REDIRECT\0")
    assert translates((*port(80), redirect))
    assert translates((*port(80), made("redir")))
    assert translates((UNKNOWN, made("nat", a1=number(1))))
    assert translates((made("lookup", a1=b"services\0", a2=number(1), a3=number(0)),))
    assert not translates((*port(81), redirect))
    assert not translates((*port(80), ACCEPT), (redirect,))
    assert not translates((made("nat", a1=number(0)),), (made("masq"),))
    published = Rule(7, 1, (*port(80), made("target", a1=b"DNAT\0")), None)
    mine = Chain("ip", "nat", "mine", "", -1, 0, False, None, (published,))
    assert translates((UNKNOWN, JUMP), mine=mine)


def test_verdict_map_makes_what_follows_uncertain() -> None:
    lookup = made("lookup", a1=b"verdicts\0", a2=number(1), a3=number(0))
    assert blamed(ruleset((lookup,), (DROP,))) == [(1, False), (2, False)]
    assert blamed(ruleset((made("queue"),), (DROP,))) == [(1, False), (2, False)]
    (by_map,) = firewall.denials(ruleset((lookup,)), INPUT, SYN).denials
    found = Found(by_map, INPUT, "this host", rose=True)
    silent = replace(ATTEMPT, outcome="timed-out", error=errno.ETIMEDOUT)
    for attempt in (ATTEMPT, silent):
        assert judge(attempt, Evidence("this host", REMOTE, firewall=(found,))) is None


def test_virtual_services_of_ipvs_are_found() -> None:
    listing = (
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
        "TCP  0A600001:01BB rr\n"
        "  -> C0000201:192B      Masq    1      0          0\n"
        "  -> C0000202:192B      Masq    0      0          0\n"
        "TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:01BB rr\n"
        "  -> [2001:0db8:0000:0000:0000:0000:0000:0009]:0050      Masq    1      0          0\n"
    )
    lines = listing.splitlines()
    only = ipvs.service_in(lines, "10.96.0.1", 443)
    assert only == ipvs.Service((("192.0.2.1", 6443),))
    assert ipvs.service_in(lines, "2001:db8::1", 443) == ipvs.Service((("2001:db8::9", 80),))
    assert ipvs.service_in(lines, "10.96.0.1", 80) is None
    assert ipvs.service_in(lines, "192.0.2.1", 6443) is None
    assert ipvs.service_in(["FWM  00000001 rr"], "192.0.2.1", 80) == ipvs.Service()


def test_server_of_a_connection_through_ipvs_is_found() -> None:
    listing = [
        "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData",
        "TCP C0000205 9C40 0A600001 01BB C0000203 192B SYN_RECV         59",
        "TCP [2001:0db8:0000:0000:0000:0000:0000:0005] 9C40 "
        "[2001:0db8:0000:0000:0000:0000:0000:0001] 01BB "
        "[2001:0db8:0000:0000:0000:0000:0000:0009] 0050 ESTABLISHED 59",
    ]
    four = Tuple("192.0.2.5", 40000, "10.96.0.1", 443)
    assert ipvs.server_in(listing, four) == ("192.0.2.3", 6443)
    assert ipvs.server_in(listing, four._replace(source_port=40001)) is None
    six = Tuple("2001:db8::5", 40000, "2001:db8::1", 443)
    assert ipvs.server_in(listing, six) == ("2001:db8::9", 80)
