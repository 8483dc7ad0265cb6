"""The filters of connections: what the kernel makes of them, and where there are none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ig.sockets.proc import ESTABLISHED
from ig.sockets.sides import Side
from ig.sockets.sock_diag import ask

NAMESPACE = 7
Ends = set[tuple[str, int]]


def side(accepted: bool, former: dict[int, Ends] | None = None, whole: bool = False) -> Side:
    return Side(accepted, former or {}, lambda _: whole)


@pytest.fixture
def opened() -> Iterator[tuple[Ends, Ends, Ends]]:
    """Listeners on IPv4, IPv6 and both; where their connections begin, and those of the clients."""
    with ExitStack() as stack:
        listeners, accepted, connected = set(), set(), set()
        for address, family, ends in (
            ("127.0.0.1", socket.AF_INET, ["127.0.0.1"]),
            ("::1", socket.AF_INET6, ["::1"]),
            ("::", socket.AF_INET6, ["127.0.0.1", "::1"]),
        ):
            both = address == "::"
            listener = socket.create_server((address, 0), family=family, dualstack_ipv6=both)
            stack.enter_context(listener)
            port = listener.getsockname()[1]
            listeners.add((address, port))
            for end in ends:
                client = stack.enter_context(socket.create_connection((end, port)))
                stack.enter_context(listener.accept()[0])
                accepted.add((end, port))
                connected.add(client.getsockname()[:2])
        yield listeners, accepted, connected


@pytest.mark.parametrize("come", [True, False])
def test_filter_lets_pass_the_connections_of_one_side(
    opened: tuple[Ends, Ends, Ends], come: bool
) -> None:
    listeners, accepted, connected = opened
    chosen = side(come).chosen(NAMESPACE, listeners)
    assert chosen
    fields = ask("TCP", 1 << ESTABLISHED, chosen=chosen)
    found = set(zip(fields["saddr"], fields["sport"], strict=True))
    assert found & (accepted | connected) == (accepted if come else connected)


def test_filter_has_listeners_that_are_gone_where_accepted_connections_are_asked_for() -> None:
    former = {NAMESPACE: {("10.0.0.1", 80)}, 8: {("10.0.0.1", 81)}}
    assert side(True, former).chosen(NAMESPACE, []) == side(True).chosen(
        NAMESPACE, [("10.0.0.1", 80)]
    )
    assert side(False, former).chosen(NAMESPACE, []) == b""


def test_filter_is_none_where_all_is_read_or_nothing_can_be_there() -> None:
    many = [("0.0.0.0", port) for port in range(1, 100)]
    for come in (True, False):
        assert side(come).chosen(NAMESPACE, many) == b""
        assert side(come, whole=True).chosen(NAMESPACE, many[:1]) == b""
    assert side(True).chosen(NAMESPACE, []) is None


def test_filter_takes_no_ipv6_connection_for_one_that_a_listener_on_ipv4_accepted() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0)))
        six = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        port = listener.getsockname()[1]
        client = stack.enter_context(socket.socket(socket.AF_INET6))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("::1", port))
        client.connect(six.getsockname())
        for come in (True, False):
            chosen = side(come).chosen(NAMESPACE, [("0.0.0.0", port)])
            assert chosen
            fields = ask("TCP", 1 << ESTABLISHED, chosen=chosen)
            found = set(zip(fields["saddr"], fields["sport"], strict=True))
            assert (("::1", port) in found) is not come
