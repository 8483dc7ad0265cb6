"""The fields of a socket in a snapshot, from any source: names, states, addresses."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

from ig.memo import Cache

Fields = dict[str, list[Any]]
"""One list a field, all of one length; the fields are those of FIELDS, and INFO's if asked for."""

FIELDS = (
    *("proto", "version", "saddr", "sport", "daddr", "dport", "state_raw", "ifindex"),
    *("recv_q", "send_q", "uid", "ino", "mark", "cgroup"),
)
"""proto is TCP or UDP, addresses are text, ports and the rest numbers in host byte order, queues
bytes (of a listener: connections waiting and their limit); 0 where the kernel has no answer."""
INFO = ("rtt", "retransmits", "cwnd", "bytes_sent", "bytes_received")
"""Of tcp_info: rtt in ns, cwnd in segments, retransmits in all."""

ESTABLISHED, SYN_RECV, TIME_WAIT, CLOSE, LISTEN = 1, 3, 6, 7, 10
STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
}
"""The states of net/tcp_states.h, as TCP sockets have them."""
UDP_STATES = {ESTABLISHED: "ACTIVE", CLOSE: "INACTIVE"}
"""A UDP socket is active where it is connected."""
ALL_STATES = sum(1 << number for number in STATES)


def empty(info: bool = False) -> Fields:
    """Return the fields of no sockets."""
    return {name: [] for name in FIELDS + (INFO if info else ())}


def extend(fields: Fields, more: Fields) -> None:
    """Append the sockets of `more`, which is emptied."""
    for name in fields:
        added = more.pop(name)
        if fields[name]:
            fields[name] += added
        else:
            fields[name] = added


def _address4(word: int) -> str:
    return socket.inet_ntop(socket.AF_INET, word.to_bytes(4, sys.byteorder))


def _address6(words: tuple[int, ...]) -> str:
    return socket.inet_ntop(socket.AF_INET6, struct.pack("=4I", *words))


ADDRESSES4: Cache[int, str] = Cache(_address4)
"""The 32 bits of an IPv4 address, as they lie in memory, to text."""
ADDRESSES6: Cache[tuple[int, ...], str] = Cache(_address6)
"""The four 32-bit words of an IPv6 address, as they lie in memory, to text."""


def show_mapped_as_ipv4(fields: Fields, start: int = 0) -> None:
    """Make IPv4 of the sockets, from place `start` on, whose addresses are `::ffff:a.b.c.d`.

    Such a socket is IPv4's on the wire and everywhere else. A listener on `::` stays as it is.
    """
    ends = [fields["saddr"], fields["daddr"]]
    mapped = {text for end in ends for text in set(end[start:]) if text.startswith("::ffff:")}
    plain = {text: text[7:] for text in mapped if "." in text}
    if not plain:
        return
    wildcard = {"::": "0.0.0.0"}
    for place in range(start, len(ends[0])):
        if ends[0][place] in plain or ends[1][place] in plain:
            fields["version"][place] = 4
            for end in ends:
                end[place] = plain.get(end[place]) or wildcard.get(end[place], end[place])
