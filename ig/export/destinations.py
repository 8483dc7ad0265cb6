"""The far ends of connections as label values: few, whatever is connected to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ig.container import Container
from ig.ends import shown_end
from ig.errors import UsageError
from ig.export.series import OTHER
from ig.memo import Cache

EXTERNAL, LOOPBACK, EPHEMERAL = "external", "loopback", "ephemeral"
_RESERVED = (EXTERNAL, LOOPBACK, OTHER)
_MOST = 256  # networks
_LARGEST_PORT = 32767  # ip_local_port_range begins with the next one

Network = IPv4Network | IPv6Network


class Destinations:
    """Names of far ends: a container or pod, a listed network, `loopback` or `external`."""

    def __init__(self, networks: Sequence[tuple[str, Network]] = ()) -> None:
        # The most specific one first.
        self._networks = sorted(networks, key=lambda each: -each[1].prefixlen)
        self._addresses: Cache[str, str] = Cache(self._of_address)

    def name(self, whose: Container, address: str) -> str:
        """Return the name of a far end: `whose` is the container that has it, HOST if unknown."""
        return shown_end(whose) or self._addresses[address]

    def _of_address(self, text: str) -> str:
        try:
            address: IPv4Address | IPv6Address = ip_address(text)
        except ValueError:
            return EXTERNAL
        address = getattr(address, "ipv4_mapped", None) or address
        for name, network in self._networks:
            if address.version == network.version and address in network:
                return name
        return LOOPBACK if address.is_loopback else EXTERNAL


def port_name(port: int) -> str:
    """Return a port as a label value: `ephemeral` if it is one that kernels choose."""
    return str(port) if port <= _LARGEST_PORT else EPHEMERAL


def parse_networks(texts: Sequence[str]) -> list[tuple[str, Network]]:
    """Return the names and networks of `NAME=10.0.0.0/8`. Raises UsageError."""
    if len(texts) > _MOST:
        raise UsageError(f"Too many networks: {len(texts)}.", f"The maximum is {_MOST}.")
    return list(map(_network, texts))


def _network(text: str) -> tuple[str, Network]:
    name, named, network = text.partition("=")
    if not named:
        raise UsageError(
            f"Invalid network {text[:64]!r}.",
            "It has no name.",
            "Use NAME=NETWORK, such as office=10.0.0.0/8 or lab=2001:db8::/32.",
        )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", name) or name in _RESERVED:
        raise UsageError(
            f"Invalid name {name[:64]!r} of a network.",
            f"Reserved names: {', '.join(_RESERVED)}" if name in _RESERVED else "",
            "Use NAME=NETWORK, such as office=10.0.0.0/8; a name has letters, digits, `_.-`.",
        )
    try:
        return name, ip_network(network.strip())
    except ValueError as error:
        raise UsageError(
            f"Invalid network {network[:64]!r}.",
            str(error)[:200],
            "Use an address and a prefix length, such as office=10.0.0.0/8 or lab=2001:db8::/32.",
        ) from None
