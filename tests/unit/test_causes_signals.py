"""Which cause follows from what the kernel did to the segments of an attempt alone."""

import errno

import pytest

from ig.causes.cause import ADVICE, KINDS, Attempt
from ig.causes.signals import _DROPS, ANSWER, RECEIVED, SENT, SYN, Signals, find
from ig.columns import enum_names

NEAR, FAR = 1, 2
NAMES = {NEAR: "container a", FAR: "container b"}


def attempt(outcome: str, error: int = 0, latency: int = 1, source_port: int = 40000) -> Attempt:
    return Attempt(NEAR, "192.0.2.2", 80, outcome, error, "192.0.2.1", source_port, latency=latency)


def kind_and_where(of: Attempt, signals: Signals, retransmits: int = 0) -> tuple[str, str] | None:
    found = find(of, signals, NAMES.__getitem__, None, retransmits)
    return (found.kind, found.where) if found else None


def drop(reason: str, dropped: int = SYN, leaving: bool = False) -> Signals:
    return Signals(reason, dropped, leaving, NEAR if leaving else FAR, server_port=80)


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
    assert kind_and_where(slow, Signals(), 2) == ("syn-lost-repeated", "192.0.2.2")


def test_signals_have_a_kind_for_each_reason_that_is_reported() -> None:
    reasons = {name for name in enum_names("tcp_why.c", "drop") if name}
    assert reasons - {"NOT_DROPPED", "NETFILTER_DROP", "NO_SOCKET"} == _DROPS.keys()
    assert {kind for kind, _ in _DROPS.values()} <= KINDS.keys() == ADVICE.keys()
