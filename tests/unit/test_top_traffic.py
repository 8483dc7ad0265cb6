"""What is told from two snapshots of the same connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ig.container import HOST, Container
from ig.gadget import Batch
from ig.top.traffic import Meter, Traffic

WEB = Container("a" * 64, "web", "docker", started=5)
ESTABLISHED, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, LISTEN = 1, 5, 8, 9, 10
NAMES = ("cookie", "sport", "dport", "state_raw", "ino", "bytes_received", "bytes_acked")
FIRST = (1, 40000, 80, ESTABLISHED, 7, 100, 201)


def sockets(*rows: Sequence[int], owner: Container = WEB, **more: object) -> Batch:
    fields: dict[str, list[Any]] = {
        name: list(values) for name, values in zip(NAMES, zip(*rows, strict=True), strict=True)
    }
    same = {"version": 4, "saddr": "10.0.0.1", "daddr": "10.0.0.2", "netns_id": 3}
    same |= {"state": "", "retransmits": 0, "peer": HOST, **more}
    fields |= {name: [value] * len(rows) for name, value in same.items()}
    return Batch(fields, [owner] * len(rows))


def told(traffic: Traffic) -> list[tuple[int, int, int]]:
    return list(zip(traffic.bytes_in, traffic.bytes_out, traffic.retransmits, strict=True))


def test_traffic_is_what_was_added_since_the_snapshot_before() -> None:
    meter = Meter()
    assert told(meter.feed(sockets(FIRST), 10)) == [(0, 0, 0)]
    later = (*FIRST[:5], 150, 1201)
    assert told(meter.feed(sockets(later, retransmits=2), 20)) == [(50, 1000, 2)]
    assert told(meter.feed(sockets(later, retransmits=2), 30)) == [(0, 0, 0)]


def test_traffic_of_a_new_connection_is_all_of_it_without_syn_and_fin() -> None:
    meter = Meter()
    meter.feed(sockets(FIRST), 10)
    new = (2, 40001, 80, ESTABLISHED, 8, 5, 8)
    half = (3, 40002, 80, FIN_WAIT2, 9, 5, 9)
    closed = (4, 40003, 80, CLOSE_WAIT, 9, 6, 8)
    found = meter.feed(sockets(FIRST, new, half, closed), 20)
    assert told(found)[1:] == [(5, 7, 0)] * 3


def test_traffic_before_a_container_was_known_is_not_counted() -> None:
    meter = Meter()
    meter.feed(sockets(FIRST), 10)
    old = Container("b" * 64, "old", "docker", started=9)
    fresh = Container("c" * 64, "fresh", "docker", started=15)
    one, two = ((cookie, 40000, 80, ESTABLISHED, 7, 100, 201) for cookie in (2, 3))
    assert told(meter.feed(sockets(one, owner=old), 20)) == [(0, 0, 0)]
    assert told(meter.feed(sockets(two, owner=fresh), 21)) == [(0, 0, 0)]
    three = (4, *one[1:])
    assert told(meter.feed(sockets(three, owner=old), 30)) == [(0, 0, 0)]
    assert told(meter.feed(sockets((5, *one[1:]), owner=old), 40)) == [(100, 200, 0)]


def test_traffic_of_a_known_container_without_connections_is_counted_at_once() -> None:
    meter = Meter()
    meter.feed(sockets(FIRST, owner=HOST), 10, [WEB])
    new = (2, *FIRST[1:])
    assert told(meter.feed(sockets(new), 20, [WEB])) == [(100, 200, 0)]


def test_connections_that_one_snapshot_lacks_are_not_new_in_the_next() -> None:
    meter = Meter()
    other = (2, 40001, 80, ESTABLISHED, 8, 0, 1)
    meter.feed(sockets(FIRST, other), 10)
    meter.feed(sockets(other), 20)
    more = (*FIRST[:5], 107, 201)
    assert told(meter.feed(sockets(more, other), 30)) == [(7, 0, 0), (0, 0, 0)]


def test_connections_of_a_listener_are_accepted_also_when_it_is_closed() -> None:
    listener = (9, 80, 0, LISTEN, 5, 0, 0)
    came = (1, 80, 40000, ESTABLISHED, 7, 100, 200)
    meter = Meter()
    (accepted,) = [meter.feed(sockets(listener, came, FIRST), 10, accepted=True)]
    assert accepted.sockets.fields["sport"] == [80]
    assert meter.served == {3: {("10.0.0.1", 80)}}
    more = (*came[:6], 300)
    assert told(meter.feed(sockets(more), 20, accepted=True)) == [(0, 100, 0)]
    assert meter.served == {3: {("10.0.0.1", 80)}}
    other = (5, *came[1:])
    assert told(meter.feed(sockets(more, other), 30, accepted=False)) == [(100, 199, 0)]
    meter.feed(sockets((7, *FIRST[1:])), 40)
    assert meter.served == {}


def test_connections_of_a_listener_that_no_snapshot_has_are_accepted_where_that_was_counted() -> (
    None
):
    came = (2, 80, 40000, ESTABLISHED, 7, 100, 200)
    meter = Meter()
    meter.feed(sockets(FIRST), 10, accepted=True)
    meter.note_accepted([(3, "10.0.0.1", 80)])
    assert meter.served == {3: {("10.0.0.1", 80)}}
    for now in (20, 30):
        found = meter.feed(sockets(came, FIRST), now, accepted=True)
        assert found.sockets.fields["sport"] == [80]
        assert meter.served == {3: {("10.0.0.1", 80)}}
    listener = (9, 81, 0, LISTEN, 5, 0, 0)
    meter.feed(sockets(listener, saddr="0.0.0.0"), 40, accepted=True)
    meter.note_accepted([(3, "10.0.0.1", 81)])
    assert meter.served == {3: {("0.0.0.0", 81)}}


def test_connections_over_ipv6_are_not_accepted_by_a_listener_on_ipv4() -> None:
    for address, wanted in (("0.0.0.0", []), ("::", [1]), ("2001:db8::1", [1])):
        batch = sockets((9, 80, 0, LISTEN, 5, 0, 0), (1, 80, 40000, ESTABLISHED, 7, 100, 200))
        batch.fields["saddr"][:] = address, "2001:db8::1"  # type: ignore[index]
        found = Meter().feed(batch, 10, accepted=True)
        assert found.sockets.fields["cookie"] == wanted


def test_connections_of_one_ip_version_are_chosen_whatever_accepted_them() -> None:
    listener = (9, 80, 0, LISTEN, 5, 0, 0)
    came = (1, 80, 40000, ESTABLISHED, 7, 100, 200)
    batch = sockets(listener, came)
    batch.fields["version"][0], batch.fields["saddr"][0] = 6, "::"  # type: ignore[index]
    for version, wanted in ((4, [1]), (6, []), (0, [1])):
        found = Meter().feed(batch, 10, accepted=True, version=version)
        assert found.sockets.fields["cookie"] == wanted


def test_ports_choose_by_the_one_that_was_connected_to() -> None:
    listener = (9, 80, 0, LISTEN, 5, 0, 0)
    came = (1, 80, 443, ESTABLISHED, 7, 0, 0)
    went = (2, 40000, 443, ESTABLISHED, 8, 0, 1)
    batch = sockets(listener, came, went)
    for port, accepted, wanted in ((80, True, [1]), (443, True, []), (443, False, [2])):
        found = Meter().feed(batch, 10, accepted=accepted, ports={port})
        assert found.sockets.fields["cookie"] == wanted


def test_connections_that_no_process_has_are_left_out_unless_one_may_accept_them() -> None:
    waiting = (1, 40000, 80, ESTABLISHED, 0, 0, 1)
    ending = (2, 40001, 80, LAST_ACK, 0, 0, 1)
    found = Meter().feed(sockets(waiting, ending), 10)
    assert found.sockets.fields["cookie"] == [1]


def test_sockets_without_a_cookie_are_counted_without_rates() -> None:
    meter = Meter()
    meter.feed(sockets(FIRST), 10)
    none = (0, *FIRST[1:])
    assert told(meter.feed(sockets(none, none), 20)) == [(0, 0, 0)] * 2


@pytest.mark.parametrize("listening", [3, 30])
def test_traffic_is_that_of_each_connection_in_any_order(listening: int) -> None:
    listeners = [(100 + place, 9000 + place, 0, LISTEN, 5, 0, 0) for place in range(listening)]
    held = [(place, 40000 + place, 80, ESTABLISHED, 7, 10 * place, 201) for place in range(1, 6)]
    meter = Meter()
    meter.feed(sockets(*listeners, *held), 10)
    more = [(*each[:5], each[5] + each[0], each[6] + 1) for each in held]
    new = (6, 40006, 80, ESTABLISHED, 7, 3, 8)
    found = meter.feed(sockets(*more[3:], new, *listeners, *more[:3]), 20)
    assert found.sockets.fields["cookie"] == [4, 5, 6, 1, 2, 3]
    assert told(found) == [(4, 1, 0), (5, 1, 0), (3, 7, 0), *((each, 1, 0) for each in (1, 2, 3))]
