"""Routes, neighbours and interfaces of this thread's network namespace.

Source: rtnetlink(7), linux/rtnetlink.h, linux/neighbour.h, linux/if_link.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from ig.kernel import netlink

_GETLINK, _GETADDR, _GETROUTE, _GETNEIGH = 18, 22, 26, 30
_NEWLINK, _NEWADDR, _NEWROUTE, _NEWNEIGH = 16, 20, 24, 28
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the route as it was configured
_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
}
_OF_ERRORS = {
    errno.EHOSTUNREACH: "unreachable",
    errno.EACCES: "prohibit",
    errno.EINVAL: "blackhole",
    errno.ENETUNREACH: "none",
}
"""What kind of route the kernel refuses with each error (fib_props, net/ipv4/fib_semantics.c)."""
REFUSALS = frozenset(_OF_ERRORS.values())
"""The kinds of routes that lead nowhere."""
_RTA_DESTINATION, _RTA_SOURCE, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 1, 2, 3, 4, 5, 18
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_STATES = {
    0x01: "INCOMPLETE",
    0x02: "REACHABLE",
    0x04: "STALE",
    0x08: "DELAY",
    0x10: "PROBE",
    0x20: "FAILED",
    0x40: "NOARP",
    0x80: "PERMANENT",
}
UNANSWERED = frozenset({"INCOMPLETE", "FAILED"})
"""The states of a neighbour that has not answered ARP or neighbour discovery."""

_route = struct.Struct("=8BI")  # rtmsg: the family first, then the prefix' length; the type is last
_neighbour = struct.Struct("=BxxxiHBB")
_address = struct.Struct("=BBBBI")
_link = struct.Struct("=BxHiII")
_index = struct.Struct("=I")
_UP, _POINT_TO_POINT, _NO_ARP = 1, 0x10, 0x80  # IFF_UP, …
_MOST = 16 << 20
"""The bytes that are read of interfaces, of addresses, and of routes."""
_TUNNELS = frozenset(
    {"tun", "vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "bareudp", "l2tpeth"}
)
"""Kinds of interfaces that ask for link addresses, and whose segments go to a process, or within
other packets."""


@dataclass(frozen=True, slots=True)
class Route:
    """The route to an address."""

    kind: str
    """As `ip route` calls it: unicast, local, unreachable, …; `none` where there is no route."""
    interface: int = 0
    """The index of the interface that it leads through, 0 if none."""
    gateway: str = ""
    """The address of the router, "" where the destination is on the link."""
    prefix: str = ""
    """The configured route, as ADDRESS/LENGTH, "" if unknown."""


@dataclass(frozen=True, slots=True)
class Came:
    """What else decides the route of a segment, as far as it is known."""

    source: str = ""
    arrival: int = 0
    """The index of the interface that it came in by; 0 if it is sent from here."""
    leaving: int = 0
    """The index of the interface that it is bound to, 0 if none."""


@dataclass(slots=True)
class Interface:
    """A network interface."""

    index: int
    name: str
    mac: bytes
    up: bool
    tunnel: bool = False
    """Whether what is sent goes to a process or within other packets, or needs no link address."""
    addresses: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What is known of a neighbour on the link."""

    state: str
    """As `ip neighbour` calls it."""
    mac: bytes


def is_on_link(address: str) -> bool:
    """Return whether an address is another's on a network that this namespace is attached to.

    It is not if the way there leads over a gateway, if there is none, or if it is an own address.
    """
    try:
        found = _ask_route(address, 0)
    except OSError:
        return False
    return found.kind == "unicast" and not found.gateway


def is_local(address: str) -> bool:
    """Return whether an address is this namespace's own: only those can be bound to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        # A link-local address needs its interface, which is not known here.
        return error.errno == errno.EADDRINUSE
    return True


def route(address: str, came: Came = Came()) -> Route:
    """Return the route to an address. Raises OSError where that is unknown.

    The kernel also refuses `came` itself: a source that is no local address any more, or an
    interface that does not forward. It does so with errors that are those of routes, too: then the
    route is unknown unless the destination alone is refused alike.
    """
    try:
        found = _ask_route(address, 0, came)
    except OSError as error:
        kind = _OF_ERRORS.get(error.errno or 0)
        ambiguous = kind == "blackhole" or (kind == "unreachable" and came.arrival)
        if kind is None or (ambiguous and came != Came() and route(address).kind != kind):
            raise
        return Route(kind, prefix=_refusing(address) if kind != "none" else "")
    try:
        prefix = _ask_route(address, _FIB_MATCH, came).prefix
    except OSError:
        prefix = ""
    return Route(found.kind, found.interface, found.gateway, prefix)


def _ask_route(address: str, flags: int, came: Came = Came()) -> Route:
    packed = ip_address(address.partition("%")[0]).packed
    source = ip_address(came.source.partition("%")[0]).packed if came.source else b""
    lengths = (8 * len(packed), 8 * len(source))
    head = _route.pack(_family(packed), *lengths, 0, 0, 0, 0, 0, flags)
    body = head + netlink.attribute(_RTA_DESTINATION, packed)
    if source:
        body += netlink.attribute(_RTA_SOURCE, source)
    for kind, index in ((_RTA_IIF, came.arrival), (_RTA_OIF, came.leaving)):
        if index:
            body += netlink.attribute(kind, _index.pack(index))
    for kind, answer in netlink.ask(netlink.ROUTE, _GETROUTE, body):
        if kind == _NEWROUTE:
            return _parsed(answer)
    raise OSError(errno.ENODATA, "no route in the answer")


def _parsed(answer: bytes) -> Route:
    fields = _route.unpack_from(answer)
    found = netlink.attributes(answer, _route.size)
    gateway = found.get(_RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:]
    zero = bytes(4 if fields[0] == socket.AF_INET else 16)
    return Route(
        _TYPES.get(fields[7], str(fields[7])),
        netlink.number(found.get(_RTA_OIF, b"")),
        _text(gateway),
        f"{_text(found.get(_RTA_DESTINATION, zero))}/{fields[1]}",
    )


def _refusing(address: str) -> str:
    """Return the longest prefix of a route that refuses an address, "" if that is not found."""
    wanted = ip_address(address.partition("%")[0])
    body = _route.pack(_family(wanted.packed), 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        answers = netlink.ask(netlink.ROUTE, _GETROUTE, body, dump=True, most=_MOST)
    except OSError:
        return ""
    best = (-1, "")
    for kind, answer in answers:
        if kind == _NEWROUTE and (found := _parsed(answer)).kind in REFUSALS:
            length = int(found.prefix.rpartition("/")[2])
            base = int(ip_address(found.prefix.rpartition("/")[0]))
            shift = 8 * len(wanted.packed) - length
            if base >> shift == int(wanted) >> shift:
                best = max(best, (length, found.prefix))
    return best[1]


def neighbour(address: str, interface: int) -> Neighbour | None:
    """Return what is known of a neighbour on an interface, None if nothing. Raises OSError."""
    packed = ip_address(address.partition("%")[0]).packed
    body = _neighbour.pack(_family(packed), interface, 0, 0, 0)
    body += netlink.attribute(_NDA_DST, packed)
    try:
        answers = netlink.ask(netlink.ROUTE, _GETNEIGH, body)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    for kind, answer in answers:
        _, _, state, _, _ = _neighbour.unpack_from(answer)
        found = netlink.attributes(answer, _neighbour.size)
        if kind == _NEWNEIGH:
            return Neighbour(_STATES.get(state, f"{state:#x}"), found.get(_NDA_LLADDR, b""))
    return None


def interfaces() -> Sequence[Interface]:
    """Return the interfaces of this namespace with their addresses. Raises OSError."""
    found: dict[int, Interface] = {}
    for kind, answer in netlink.ask(netlink.ROUTE, _GETLINK, bytes(_link.size), True, _MOST):
        if kind == _NEWLINK:
            _, _, index, flags, _ = _link.unpack_from(answer)
            attributes = netlink.attributes(answer, _link.size)
            name = netlink.text(attributes.get(_IFLA_IFNAME, b""))
            mac = attributes.get(_IFLA_ADDRESS, b"")
            info = netlink.attributes(attributes.get(_IFLA_LINKINFO, b""))
            tunnel = netlink.text(info.get(_IFLA_INFO_KIND, b"")) in _TUNNELS
            tunnel |= bool(flags & (_POINT_TO_POINT | _NO_ARP))
            found[index] = Interface(index, name, mac, bool(flags & _UP), tunnel)
    for kind, answer in netlink.ask(netlink.ROUTE, _GETADDR, bytes(_address.size), True, _MOST):
        if kind == _NEWADDR:
            *_, index = _address.unpack_from(answer)
            attributes = netlink.attributes(answer, _address.size)
            packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
            if index in found and packed:
                found[index].addresses.append(_text(packed))
    return list(found.values())


def _family(packed: bytes) -> int:
    return socket.AF_INET if len(packed) == 4 else socket.AF_INET6


def _text(packed: bytes) -> str:
    return str(ip_address(packed)) if len(packed) in (4, 16) else ""
