"""What /proc says of processes and sockets, read from this process's own and from text."""

from __future__ import annotations

import os
import socket

from hypothesis import given
from hypothesis import strategies as st

from ig.sockets import proc
from ig.sockets.proc import FIELDS, parse

LINE = (
    "   0: 0100007F:1F90 0200007F:0050 01 0000000A:0000000B 00:00000000 00000000  1000  0 4242 "
    "1 0000000000000000 20 4 30 10 -1"
)
LINE6 = (
    "  12: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 0A "
    "00000000:00000000 00:00000000 00000000     0        0 77 1 0000000000000000"
)


def test_line_of_ipv4_is_read() -> None:
    fields = parse("TCP", 4, [LINE])
    assert {name: values[0] for name, values in fields.items()} == {
        "proto": "TCP",
        "version": 4,
        "saddr": "127.0.0.1",
        "sport": 8080,
        "daddr": "127.0.0.2",
        "dport": 80,
        "state_raw": 1,
        "ifindex": 0,
        "recv_q": 11,
        "send_q": 10,
        "uid": 1000,
        "ino": 4242,
        "mark": 0,
        "cgroup": 0,
    }


def test_line_of_ipv6_is_read() -> None:
    fields = parse("UDP", 6, [LINE6])
    assert (fields["saddr"], fields["sport"], fields["daddr"]) == (["::1"], [53], ["::"])


def test_states_that_are_not_wanted_are_left_out() -> None:
    assert parse("TCP", 4, [LINE], states=1 << 10)["sport"] == []


@given(st.integers(0, len(LINE)))
def test_cut_off_line_is_a_whole_row_or_none(size: int) -> None:
    ports = parse("TCP", 4, [LINE, LINE[:size]])["sport"]
    assert ports in ([8080], [8080, 8080])


@given(st.lists(st.text(max_size=120)), st.sampled_from([4, 6]))
def test_table_of_any_text_is_read_without_an_error(lines: list[str], version: int) -> None:
    fields = parse("UDP", version, lines)
    assert list(fields) == list(FIELDS)
    assert len({len(values) for values in fields.values()}) == 1


def test_own_sockets_are_found_in_the_own_tables() -> None:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        for proto, sock in (("TCP", tcp), ("UDP", udp)):
            fields = proc.sockets("self", proto)
            place = fields["ino"].index(os.fstat(sock.fileno()).st_ino)
            assert (fields["saddr"][place], fields["sport"][place]) == sock.getsockname()


def test_who_holds_a_socket_is_found_by_its_inode() -> None:
    one, two = socket.socketpair()
    with one, two:
        inode = os.fstat(one.fileno()).st_ino
        holders = proc.holders([os.getpid(), 2**22 + 1], {inode})
        assert holders == {inode: ((os.getpid(), proc.comm(os.getpid())),)}


def test_process_that_is_gone_has_nothing() -> None:
    nobody = 2**22 + 1
    assert proc.cgroup_paths(nobody) == []
    assert proc.comm(nobody) == ""
    assert proc.holders([nobody], {1}) == {}
