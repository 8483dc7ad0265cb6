"""Query the kernel's route from this network namespace to an address.

Source: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

_NEWROUTE, _GETROUTE = 24, 26
_REQUEST = 1
_UNICAST = 1  # RTN_UNICAST; an own address is RTN_LOCAL
_DESTINATION, _GATEWAY, _VIA = 1, 5, 18
_PATIENCE = 1.0  # seconds; the kernel answers at once

_header = struct.Struct("=IHHII")
_route = struct.Struct("=8BI")  # rtmsg: the family first, then the prefix' length; the type is last
_attribute = struct.Struct("=HH")


def is_on_link(address: str) -> bool:
    """Return whether an address is another's on a network that this namespace is attached to.

    It is not if the way there leads over a gateway, if there is none, or if it is an own address.
    """
    packed = ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    route = _route.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    body = route + _attribute.pack(_attribute.size + len(packed), _DESTINATION) + packed
    request = _header.pack(_header.size + len(body), _GETROUTE, _REQUEST, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.settimeout(_PATIENCE)
            netlink.send(request)
            answer = netlink.recv(8192)
    except OSError:
        return False
    return _leads_there(answer)


def _leads_there(answer: bytes) -> bool:
    """Return whether the kernel's answer is a route without a gateway."""
    size, kind, *_ = _header.unpack_from(answer)
    if kind != _NEWROUTE or _route.unpack_from(answer, _header.size)[7] != _UNICAST:
        return False
    place = _header.size + _route.size
    while place + _attribute.size <= size:
        length, attribute = _attribute.unpack_from(answer, place)
        if attribute in (_GATEWAY, _VIA):
            return False
        place += max(_attribute.size, (length + 3) & ~3)
    return True
