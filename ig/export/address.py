"""The address that is listened on."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from ig.errors import IgError, UsageError
from ig.output.stream import say

_BACKLOG = 128
_REMEDY = "Use ADDRESS:PORT, such as 127.0.0.1:9435 or [::1]:9435; 0.0.0.0:9435 for all networks."


class Address(NamedTuple):
    """An IP address and a TCP port."""

    ip: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        """Return it as users type it."""
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


def parse_address(text: str) -> Address:
    """Return an address and a port. Raises UsageError, also where the address is left out."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text.strip())
    try:
        if match and int(match[3]) < 65536:
            return Address(ip_address(match[1] or match[2]), int(match[3]))
    except ValueError:
        pass
    found = "The address is missing." if text.lstrip()[:1] == ":" else ""
    raise UsageError(f"Invalid address {text[:64]!r}.", found, _REMEDY)


def listen(address: Address) -> socket.socket:
    """Return a socket that listens there; port 0 is any that is free. Raises IgError."""
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((str(address.ip), address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise IgError(
            f"Cannot listen on {address}.",
            error.strerror or str(error),
            "Use --prometheus with another address or port.",
        ) from error
    return listener


def report(listener: socket.socket) -> None:
    """Say where metrics are served; warn if other hosts can reach that."""
    host, port, *_ = listener.getsockname()
    bound = Address(ip_address(host), port)
    say(f"serving http://{bound}/metrics")
    if not bound.ip.is_loopback:
        say(f"warning: {bound} can be reached from other hosts, without encryption or password")
