"""Ask connection tracking of this thread's network namespace about one connection.

Source: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address
from typing import NamedTuple

from ig.kernel import netlink

_NEW, _GET = 1 << 8, 1 << 8 | 1  # of NFNL_SUBSYS_CTNETLINK
_OFFSET = 4  # the attributes come after struct nfgenmsg
_ORIGINAL, _REPLY = 1, 2  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY
_ADDRESSES, _PROTOCOL = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_SOURCE_PORT, _PORT = 2, 3
_NO_ENTRY = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.ECONNREFUSED)
"""Errors where there is no entry, or no connection tracking that can be asked."""


_USAGE = "/proc/sys/net/netfilter/nf_conntrack_{}"


class Tuple(NamedTuple):
    """One direction of a TCP connection."""

    source: str
    source_port: int
    address: str
    port: int


def usage() -> tuple[int, int]:
    """Return the entries of this namespace's table, and how many there may be; 0 for any number.

    Raises OSError where there is no connection tracking.
    """
    found = []
    for name in ("count", "max"):
        with open(_USAGE.format(name), encoding="ascii") as file:
            found.append(int(file.read()))
    return found[0], found[1]


def reply(of: Tuple) -> Tuple | None:
    """Return the direction of the answers to what is sent so, None where there is no entry.

    Its source is where the destination was translated to, its destination what the source was
    translated to. Asks for one entry, in the default zone. Raises OSError where it is refused.
    """
    source, address = ip_address(of.source), ip_address(of.address)
    six = address.version == 6
    place = 3 if six else 1  # CTA_IP_V6_SRC, CTA_IP_V4_SRC
    body = struct.pack("=BBH", socket.AF_INET6 if six else socket.AF_INET, 0, 0) + netlink.nested(
        _ORIGINAL,
        netlink.nested(
            _ADDRESSES,
            netlink.attribute(place, source.packed),
            netlink.attribute(place + 1, address.packed),
        ),
        netlink.nested(
            _PROTOCOL,
            netlink.attribute(1, bytes([socket.IPPROTO_TCP])),
            netlink.attribute(_SOURCE_PORT, struct.pack("!H", of.source_port)),
            netlink.attribute(_PORT, struct.pack("!H", of.port)),
        ),
    )
    try:
        answers = netlink.ask(netlink.NETFILTER, _GET, body)
    except OSError as error:
        if error.errno in _NO_ENTRY:
            return None
        raise
    for kind, answer in answers:
        found = netlink.attributes(answer, _OFFSET).get(_REPLY)
        if kind == _NEW and found:
            return _parsed(found, place)
    return None


def _parsed(reply: bytes, place: int) -> Tuple:
    parts = netlink.attributes(reply)
    addresses = netlink.attributes(parts.get(_ADDRESSES, b""))
    protocol = netlink.attributes(parts.get(_PROTOCOL, b""))
    return Tuple(
        str(ip_address(addresses[place])),
        netlink.network_number(protocol.get(_SOURCE_PORT, b"")),
        str(ip_address(addresses[place + 1])),
        netlink.network_number(protocol.get(_PORT, b"")),
    )
