"""The decoder of sock_diag's answers: right on whole messages, and calm on anything else."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.sockets.proc import FIELDS, INFO, TRAFFIC, V6ONLY
from ig.sockets.sock_diag import Dump, settled

ESTABLISHED, TIME_WAIT, LISTEN = 1, 6, 10
DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)
MARK, CGROUP, SHUTDOWN = 15, 21, 8


def attribute(kind: int, payload: bytes) -> bytes:
    data = struct.pack("=HH", 4 + len(payload), kind) + payload
    return data + bytes(-len(data) % 4)


def message(
    source: str = "10.0.0.1",
    sport: int = 80,
    destination: str = "10.0.0.2",
    dport: int = 40000,
    state: int = ESTABLISHED,
    *,
    inode: int = 7,
    attributes: bytes = b"",
    flags: int = 2,
) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    ends = [socket.inet_pton(family, text).ljust(16, b"\0") for text in (source, destination)]
    body = struct.pack("=BBBB", family, state, 0, 0) + struct.pack(">HH", sport, dport)
    body += b"".join(ends) + struct.pack("=III", 3, 0, 0)
    body += struct.pack("=IIIII", 0, 11, 12, 1000, inode) + attributes
    return struct.pack("=IHHII", 16 + len(body), 20, flags, 1, 0) + body


def owned(mark: int, cgroup: int) -> bytes:
    return attribute(MARK, struct.pack("=I", mark)) + attribute(CGROUP, struct.pack("=Q", cgroup))


def answer(datagrams: Sequence[bytes], more: Sequence[str] = ()) -> Dump:
    dump = Dump("TCP", more)
    for datagram in datagrams:
        dump.feed(memoryview(bytearray(datagram)))
    dump.flush()
    return dump


def rows(dump: Dump, *names: str) -> list[tuple[object, ...]]:
    return sorted(zip(*(dump.fields[name] for name in names), strict=True))


def test_every_field_of_a_message_is_read() -> None:
    dump = answer([message(attributes=owned(42, 1 << 33 | 5)), DONE])
    assert {name: values[0] for name, values in dump.fields.items()} == {
        "proto": "TCP",
        "version": 4,
        "saddr": "10.0.0.1",
        "sport": 80,
        "daddr": "10.0.0.2",
        "dport": 40000,
        "state_raw": ESTABLISHED,
        "ifindex": 3,
        "recv_q": 11,
        "send_q": 12,
        "uid": 1000,
        "ino": 7,
        "mark": 42,
        "cgroup": 1 << 33 | 5,
    }
    assert dump.finished
    assert not dump.interrupted


def test_messages_of_one_shape_are_read_side_by_side() -> None:
    datagram = b"".join(
        message(sport=port, inode=port, attributes=owned(0, port)) for port in range(1, 102)
    )
    dump = answer([datagram, datagram, DONE])
    expected = sorted((port, port, port) for port in [*range(1, 102)] * 2)
    assert rows(dump, "sport", "ino", "cgroup") == expected


def test_shapes_and_families_may_mix() -> None:
    dump = answer(
        [
            message(sport=1, attributes=owned(1, 10))
            + message(sport=2, state=TIME_WAIT)
            + message("fd00::1", 3, "fd00::2", attributes=owned(3, 30))
            + message("::", 4, "::", 0, LISTEN, attributes=attribute(11, b"\1") + owned(4, 40)),
            DONE,
        ]
    )
    assert rows(dump, "sport", "version", "saddr", "mark", "cgroup") == [
        (1, 4, "10.0.0.1", 1, 10),
        (2, 4, "10.0.0.1", 0, 0),
        (3, 6, "fd00::1", 3, 30),
        (4, 6, "::", 4, 40),
    ]


def test_attributes_in_another_order_are_not_mistaken() -> None:
    mark, group = attribute(MARK, b"\1\0\0\0"), attribute(CGROUP, struct.pack("=Q", 9))
    other = attribute(SHUTDOWN, b"\3")
    datagram = message(sport=1, attributes=mark + group) + message(sport=2, attributes=group + mark)
    datagram += message(sport=3, attributes=other + group)
    assert rows(answer([datagram, DONE]), "sport", "mark", "cgroup") == [
        (1, 1, 9),
        (2, 1, 9),
        (3, 0, 9),
    ]


def test_ipv4_connection_of_an_ipv6_socket_is_ipv4() -> None:
    dump = answer([message("::ffff:10.0.0.1", 80, "::ffff:10.0.0.2", 90), DONE])
    assert rows(dump, "version", "saddr", "daddr") == [(4, "10.0.0.1", "10.0.0.2")]


def test_socket_bound_to_a_mapped_address_has_an_ipv4_wildcard_as_peer() -> None:
    dump = answer([message("::ffff:10.0.0.1", 80, "::", 0, LISTEN), DONE])
    assert rows(dump, "version", "saddr", "daddr") == [(4, "10.0.0.1", "0.0.0.0")]


def test_dual_stack_listener_stays_ipv6() -> None:
    dump = answer([message("::", 80, "::", 0, LISTEN), DONE])
    assert rows(dump, "version", "saddr", "daddr") == [(6, "::", "::")]


def test_tcp_info_is_read_in_its_units() -> None:
    info = bytearray(232)
    struct.pack_into("=I", info, 68, 1500)
    struct.pack_into("=I", info, 80, 10)
    struct.pack_into("=I", info, 100, 3)
    struct.pack_into("=Q", info, 128, 1 << 40)
    struct.pack_into("=Q", info, 200, 77)
    dump = answer([message(attributes=attribute(2, bytes(info))), DONE], more=INFO)
    assert rows(dump, *INFO) == [(1_500_000, 3, 10, 77, 1 << 40)]


def test_listener_that_takes_no_ipv4_is_distinguished() -> None:
    for attributes, expected in (
        (attribute(11, b"\1"), True),
        (attribute(11, b"\0"), False),
        (b"", False),
    ):
        datagram = message("::", 80, "::", 0, LISTEN, attributes=attributes)
        assert rows(answer([datagram, DONE], more=(V6ONLY,)), V6ONLY) == [(expected,)]


def test_shorter_tcp_info_of_an_older_kernel_leaves_zeroes() -> None:
    dump = answer([message(attributes=attribute(2, bytes(104))), DONE], more=INFO)
    assert rows(dump, *INFO) == [(0, 0, 0, 0, 0)]


@pytest.mark.parametrize("count", [1, 3])
def test_interrupted_dump_is_noticed(count: int) -> None:
    assert answer([message(flags=2 | 0x10) * count, DONE]).interrupted
    assert answer([message() * count, struct.pack("=IHHIIi", 20, 3, 0x12, 1, 0, 0)]).interrupted
    assert not answer([message() * count, DONE]).interrupted


def test_refusal_is_an_error() -> None:
    refusal = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -2) + bytes(16)
    dump = answer([refusal])
    assert (dump.finished, dump.error) == (True, 2)


def test_interrupted_dump_is_asked_for_again() -> None:
    torn, whole = [message(flags=0x12), DONE], [message(), message(), DONE]
    answers = iter([answer(torn), answer(torn), answer(whole), answer(torn)])
    assert len(settled(lambda: next(answers)).fields["sport"]) == 2


def test_dump_that_is_always_interrupted_is_taken_as_it_is() -> None:
    asked: list[int] = []

    def torn() -> Dump:
        asked.append(1)
        return answer([message(flags=0x12), DONE])

    dump = settled(torn)
    assert (len(asked), dump.fields["sport"]) == (5, [80])


def test_refused_dump_raises_what_the_kernel_said() -> None:
    refusal = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -13)
    with pytest.raises(PermissionError):
        settled(lambda: answer([refusal]))


@given(st.integers(0, 3 * 88 + 3 * 20))
def test_cut_off_answer_has_whole_rows_only(size: int) -> None:
    whole = b"".join(message(sport=port, attributes=owned(port, port)) for port in (1, 2, 3))
    dump = answer([whole[:size]])
    count = size // (len(whole) // 3)
    assert rows(dump, "sport", "cgroup") == [(port, port) for port in range(1, count + 1)]
    assert dump.interrupted == bool(size % (len(whole) // 3))


ANY_MESSAGE = st.builds(
    lambda body, kind, flags, lie: (
        struct.pack("=IHHII", max(0, 16 + len(body) + lie), kind, flags, 1, 0) + body
    ),
    st.binary(max_size=160),
    st.sampled_from([0, 1, 2, 3, 18, 20, 99]),
    st.integers(0, 0xFFFF),
    st.sampled_from([0, 0, 0, -20, -1, 1, 7, 1 << 30]),
)


@given(
    st.lists(st.one_of(st.binary(max_size=300), ANY_MESSAGE), max_size=8),
    st.sampled_from([(), INFO, TRAFFIC]),
)
def test_no_datagram_makes_it_fail_or_tear_a_row(
    datagrams: list[bytes], more: Sequence[str]
) -> None:
    dump = answer(datagrams, more)
    assert set(dump.fields) == {*FIELDS, *more}
    assert len({len(values) for values in dump.fields.values()}) == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
        min_size=1,
        max_size=30,
    ),
    st.data(),
)
def test_garbled_attributes_do_not_hide_a_socket(
    sockets: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    datagram = bytearray()
    for port, mark, group in sockets:
        attributes = bytearray(owned(mark, group))
        place = data.draw(st.integers(0, len(attributes) - 1))
        attributes[place] = data.draw(st.integers(0, 255))
        datagram += message(sport=port, attributes=bytes(attributes))
    dump = answer([bytes(datagram), DONE])
    assert sorted(dump.fields["sport"]) == sorted(port for port, _, _ in sockets)
