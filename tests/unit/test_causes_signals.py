"""Which cause follows from what the kernel did to the segments of an attempt alone."""

import errno
from dataclasses import replace

import pytest

from ig.causes.cause import ADVICE, KINDS, Attempt
from ig.causes.evidence import Evidence, Far
from ig.causes.signals import _DROPS, ANSWER, RECEIVED, SENT, SYN, Signals, find
from ig.causes.way import Hop, Way
from ig.columns import enum_names
from ig.kernel.routes import Route

NEAR, FAR = 1, 2
NAMES = {NEAR: "container a", FAR: "container b"}
BEYOND = Evidence("container a", Way((Hop(NEAR, Route("unicast"), "", forwards=True),)))
"""That the destination is not on this host."""


def attempt(outcome: str, error: int = 0, latency: int = 1, source_port: int = 40000) -> Attempt:
    return Attempt(NEAR, "192.0.2.2", 80, outcome, error, "192.0.2.1", source_port, latency=latency)


def kind_and_where(of: Attempt, signals: Signals, retransmits: int = 0) -> tuple[str, str] | None:
    found = find(of, signals, NAMES.__getitem__, None, retransmits)
    return (found.kind, found.where) if found else None


def drop(reason: str, dropped: int = SYN, leaving: bool = False, drops: int = 1) -> Signals:
    return Signals(reason, dropped, leaving, NEAR if leaving else FAR, server_port=80, drops=drops)


@pytest.mark.parametrize(
    ("of", "signals", "expected"),
    [
        (attempt("refused"), drop("NO_SOCKET"), ("no-listener", "container b")),
        (attempt("refused"), Signals(answer_netns=FAR, reset=SENT), ("no-listener", "container b")),
        (attempt("refused"), Signals(reset=RECEIVED), None),
        (attempt("unanswered"), drop("NO_SOCKET"), None),
        (attempt("timed-out"), drop("NETFILTER_DROP"), ("firewall-drop-in", "container b")),
        (attempt("abandoned"), drop("NETFILTER_DROP", ANSWER), ("firewall-drop-in", "container b")),
        (
            attempt("unanswered"),
            drop("NETFILTER_DROP", leaving=True),
            ("firewall-drop-out", "container a"),
        ),
        (attempt("refused"), drop("NETFILTER_DROP"), ("firewall-reject", "container b")),
        (attempt("unreachable"), drop("NETFILTER_DROP"), ("firewall-reject", "container b")),
        (
            attempt("refused"),
            Signals(icmp=(3, 3), answer_netns=FAR),
            ("firewall-reject", "container b"),
        ),
        (attempt("timed-out"), drop("TCP_LISTEN_OVERFLOW"), ("accept-queue-full", "container b")),
        (attempt("refused"), drop("TCP_LISTEN_OVERFLOW"), None),
        (attempt("timed-out"), drop("SOCKET_FILTER"), ("local-policy", "container b")),
        (attempt("failed", errno.EPERM), Signals(), ("local-policy", "container a")),
        (
            attempt("failed", errno.EADDRNOTAVAIL),
            Signals(),
            ("local-port-exhausted", "container a"),
        ),
        (attempt("failed", errno.EADDRNOTAVAIL, latency=0), Signals(), None),
        (attempt("failed", errno.ECONNRESET), Signals(), ("peer-reset", "192.0.2.2")),
        (attempt("abandoned"), Signals(), ("closed-by-caller", "container a")),
        (attempt("abandoned", errno.EHOSTUNREACH), Signals(), None),
        (attempt("established"), drop("NETFILTER_DROP"), None),
    ],
)
def test_signals_show_the_kind_and_the_place(
    of: Attempt, signals: Signals, expected: tuple[str, str] | None
) -> None:
    assert kind_and_where(of, signals) == expected


def test_signals_of_slow_connects_say_where_the_first_syn_was_lost() -> None:
    slow = attempt("established")
    assert kind_and_where(slow, drop("NETFILTER_DROP"), 1) == ("syn-lost-repeated", "container b")


def test_signals_have_a_kind_for_each_reason_that_is_reported() -> None:
    reasons = {name for name in enum_names("tcp_why.c", "drop") if name}
    assert reasons - {"NOT_DROPPED", "NETFILTER_DROP", "NO_SOCKET"} == _DROPS.keys()
    assert {kind for kind, _ in _DROPS.values()} <= KINDS.keys() == ADVICE.keys()


def cause(of: Attempt, signals: Signals, retransmits: int, evidence: Evidence | None = None) -> str:
    """Return the kind of the cause, and how sure it is."""
    found = find(of, signals, NAMES.__getitem__, evidence, retransmits)
    return f"{found.kind} {found.confidence}" if found else ""


def test_signals_of_one_drop_among_several_syns_are_not_all_of_the_cause() -> None:
    for reason, kind in (("NETFILTER_DROP", "firewall-drop-in"), ("QDISC_DROP", "dropped")):
        assert cause(attempt("timed-out"), drop(reason), 0) == f"{kind} seen"
        assert cause(attempt("timed-out"), drop(reason), 2) == f"{kind} likely"
        assert cause(attempt("timed-out"), drop(reason, drops=3), 2) == f"{kind} seen"
        # It is reported before its second SYN is sent.
        assert cause(attempt("unanswered"), drop(reason), 1) == f"{kind} seen"
    slow = attempt("established")
    assert cause(slow, drop("NETFILTER_DROP"), 2) == "syn-lost-repeated likely"
    assert cause(slow, drop("NETFILTER_DROP", drops=2), 2) == "syn-lost-repeated seen"


def test_signals_of_a_drop_do_not_explain_who_refused_a_later_syn() -> None:
    refused = attempt("refused", errno.ECONNREFUSED)
    dropped = drop("NETFILTER_DROP")
    elsewhere = Evidence("container a", Way((Hop(NEAR, Route("unicast"), ""),)))
    assert cause(refused, dropped._replace(reset=RECEIVED), 0) == "firewall-reject seen"
    assert cause(refused, dropped._replace(reset=RECEIVED), 1) == "firewall-reject likely"
    assert cause(refused, dropped._replace(reset=RECEIVED), 1, elsewhere).startswith("peer-refused")
    assert cause(refused, dropped._replace(reset=RECEIVED | SENT), 1) == "no-listener seen"


def test_signals_of_netfilter_name_a_rule_only_where_one_is_known() -> None:
    found = find(attempt("timed-out"), drop("NETFILTER_DROP"), NAMES.__getitem__, None)
    assert found
    assert "connection tracking or IPVS" in found.detail


@pytest.mark.parametrize("dropped", ["", "NETFILTER_DROP"])
def test_signals_of_an_icmp_error_may_be_those_of_ipvs(dropped: str) -> None:
    signals = Signals(dropped, SYN, False, FAR, FAR, 80, (3, 3), drops=1)
    assert cause(attempt("refused"), signals, 0) == "firewall-reject likely"
    ipvs = Evidence("container a", Way(()), doubt="by IPVS, container b")
    assert cause(attempt("refused"), signals, 0, ipvs) == ""


def test_signals_without_a_known_namespace_are_in_none() -> None:
    nowhere = drop("NETFILTER_DROP")._replace(drop_netns=0)
    assert kind_and_where(attempt("timed-out"), nowhere) == ("firewall-drop-in", "")


@pytest.mark.parametrize(
    ("evidence", "complete", "expected"),
    [
        (BEYOND, True, ("192.0.2.2", "seen")),
        (BEYOND, False, ("", "likely")),
        (None, True, ("", "likely")),
        (replace(BEYOND, way=Way((), gap="no link address")), True, ("", "likely")),
        (
            replace(BEYOND, far=Far(FAR, "container b", (), 80, ("192.0.2.2",))),
            True,
            ("", "likely"),
        ),
    ],
)
def test_signals_leave_the_place_of_a_loss_open_unless_it_is_surely_beyond_this_host(
    evidence: Evidence | None, complete: bool, expected: tuple[str, str]
) -> None:
    slow = attempt("established")
    found = find(slow, Signals(), NAMES.__getitem__, evidence, 1, complete=complete)
    assert found
    assert (found.where, found.confidence) == expected


def test_signals_of_no_drop_exclude_that_a_full_table_dropped_a_segment() -> None:
    full = replace(BEYOND, full_tables={NEAR: (9, 9)}, owners=NAMES)
    for signals, complete, kind in (
        (Signals(), True, "no-answer"),
        (Signals(), False, "firewall-drop-out"),
        (drop("NETFILTER_DROP", leaving=True), True, "firewall-drop-out"),
    ):
        found = find(attempt("timed-out"), signals, NAMES.__getitem__, full, complete=complete)
        assert found
        assert (found.kind, found.confidence) == (kind, "likely")
