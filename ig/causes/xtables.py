"""Matches and targets of xtables in nftables' rules, as iptables-nft makes them.

Source: linux/netfilter/xt_conntrack.h, xt_addrtype.h, xt_multiport.h, xt_tcpudp.h, nf_nat.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from ig.causes.packet import Packet
from ig.kernel import netlink

_REVISION, _INFO = 2, 3  # NFTA_MATCH_REV, NFTA_MATCH_INFO, and those of targets
_OTHER_PROTOCOLS = frozenset({"udp", "udplite", "icmp", "icmp6", "sctp", "dccp", "esp", "ah"})

_CONNTRACK = struct.Struct("=146xHHH")  # match_flags, invert_flags, state
_STATE = 1  # XT_CONNTRACK_STATE
_STATES = 0x0F  # INVALID, ESTABLISHED, RELATED, NEW
_TRANSLATED = 0x80  # DNAT
_ADDRESS_TYPE = struct.Struct("=HHI")
_LOCAL = 1 << 2  # XT_ADDRTYPE_LOCAL
_TCP = struct.Struct("=4H4B")
_MULTIPORT = struct.Struct("=BB15H15BB")
_RANGE = struct.Struct("!I16s16sHH")  # struct nf_nat_range, but for the order of its first bytes
_OLD_RANGE = struct.Struct("!II4s4sHH")  # struct nf_nat_ipv4_multi_range_compat, alike
_ADDRESSES, _PORTS = 1, 2  # NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
_PLAIN = _ADDRESSES | _PORTS | 4 | 8 | 16  # these choose within a range, or for a client


class To(NamedTuple):
    """Where a destination is translated to."""

    address: str
    """ "" for the same address, or for an own one (`redirect`)."""
    port: int
    """0 for the same port."""
    redirect: bool = False
    """Whether the address is one of the namespace's own."""


def holds(name: str, data: Mapping[int, bytes], packet: Packet, state: int | None) -> bool | None:
    """Return whether a match holds for a segment, None where that is not understood.

    `state` is the bit of its state in connection tracking, None where that is not known.
    """
    info, revision = data.get(_INFO, b""), netlink.network_number(data.get(_REVISION, b""))
    if name == "comment":
        return True
    if name in _OTHER_PROTOCOLS:
        return False
    match = _MATCHES.get((name, revision))
    return match(info, packet, state) if match else None


def _conntrack(info: bytes, packet: Packet, state: int | None) -> bool | None:
    if len(info) < _CONNTRACK.size or state is None:
        return None
    asked, inverted, states = _CONNTRACK.unpack_from(info)
    if asked != _STATE or states & ~(_STATES | _TRANSLATED):
        return None
    found = bool(states & state)
    if states & _TRANSLATED and not found:
        if packet.translated is None:
            return None
        found = packet.translated
    return found != bool(inverted & _STATE)


def _address_type(info: bytes, packet: Packet, _: int | None) -> bool | None:
    if len(info) < _ADDRESS_TYPE.size:
        return None
    source, destination, flags = _ADDRESS_TYPE.unpack_from(info)
    results = []
    for wanted, local, inverted in (
        (source, packet.from_local, flags & 1),
        (destination, packet.to_local, flags & 2),
    ):
        if wanted:
            known = wanted == _LOCAL and local is not None and not flags & ~3
            results.append((local != bool(inverted)) if known else None)
    return False if False in results else None if None in results else True


def _tcp(info: bytes, packet: Packet, _: int | None) -> bool | None:
    if len(info) < _TCP.size:
        return None
    *ports, option, mask, wanted, inverted = _TCP.unpack_from(info)
    results: list[bool | None] = []
    for first, last, port, bit in (
        (*ports[:2], packet.source_port, 1),
        (*ports[2:], packet.port, 2),
    ):
        if (first, last) != (0, 0xFFFF) or inverted & bit:
            results.append((first <= port <= last) != bool(inverted & bit) if port else None)
    results.append((packet.flags & mask == wanted) != bool(inverted & 4))
    if option:
        results.append(None)
    return False if False in results else None if None in results else True


def _multiport(info: bytes, packet: Packet, _: int | None) -> bool | None:
    if len(info) < _MULTIPORT.size:
        return None
    which, count, *rest = _MULTIPORT.unpack_from(info)
    ports, ranges, inverted = rest[:15], rest[15:30], bool(rest[30])
    own = {0: (packet.source_port,), 1: (packet.port,), 2: (packet.source_port, packet.port)}
    place, found = 0, False
    while place < min(count, 15):
        last = ports[place + 1] if ranges[place] and place < 14 else ports[place]
        found |= any(ports[place] <= port <= last for port in own.get(which, ()) if port)
        place += 2 if ranges[place] else 1
    if not found and not all(own.get(which, (0,))):
        return None
    return found != inverted


_MATCHES: Mapping[tuple[str, int], Callable[[bytes, Packet, int | None], bool | None]] = {
    ("conntrack", 3): _conntrack,
    ("addrtype", 1): _address_type,
    ("tcp", 0): _tcp,
    ("multiport", 1): _multiport,
}


def destination(name: str, data: Mapping[int, bytes], version: int) -> To | None:
    """Return where DNAT or REDIRECT translates to, None where that is not one destination."""
    info, revision = data.get(_INFO, b""), netlink.network_number(data.get(_REVISION, b""))
    if name == "NETMAP" or len(info) < _OLD_RANGE.size:
        return None
    # REDIRECT of IPv4 has but the old form; DNAT has it in its first revision.
    if version == 4 and (name == "REDIRECT" or revision == 0):
        _, _, low, high, first, last = _OLD_RANGE.unpack_from(info)
        flags = netlink.number(info[4:8])
        if netlink.number(info[:4]) != 1:
            return None
    elif len(info) >= _RANGE.size:
        _, low, high, first, last = _RANGE.unpack_from(info)
        flags = netlink.number(info[:4])
    else:
        return None
    size = 16 if version == 6 else 4
    several = flags & _ADDRESSES and low[:size] != high[:size]
    if several or flags & ~_PLAIN or (flags & _PORTS and first != last):
        return None
    address = str(ip_address(low[:size])) if flags & _ADDRESSES else ""
    return To(address, first if flags & _PORTS else 0, name == "REDIRECT")
