"""A TCP segment as a firewall sees it at one hook."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

SYN, SYN_ACK = 0x02, 0x12
NETWORK, TRANSPORT = 1, 2
"""The bases that nftables numbers headers with (NFT_PAYLOAD_NETWORK_HEADER, …)."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment at one hook."""

    source: str
    """ "" where it is not known, as after an address translation."""
    source_port: int
    """0 where it is not known."""
    destination: str
    port: int
    flags: int = SYN
    interfaces: tuple[str | None, str | None] = (None, None)
    """The names of the interfaces that it comes in and goes out by; "" for none, None unknown."""

    @property
    def version(self) -> int:
        """The version of IP, 4 or 6."""
        return 6 if ":" in self.destination else 4

    def headers(self) -> dict[int, bytes]:
        """Return the IP and the TCP header, by the base that nftables numbers them with."""
        source = self.source or ("::" if self.version == 6 else "0.0.0.0")
        ends = b"".join(ip_address(each).packed for each in (source, self.destination))
        tcp = struct.pack(
            "!HHIIBBHHH", self.source_port, self.port, 0, 0, 5 << 4, self.flags, 64240, 0, 0
        )
        if self.version == 6:
            ip = struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64) + ends
        else:
            head = (0x45, 0, 20 + len(tcp), 0, 0x4000, 64, socket.IPPROTO_TCP, 0)
            ip = struct.pack("!BBHHHBBH", *head) + ends
        return {NETWORK: ip, TRANSPORT: tcp}

    def answered(self) -> Packet:
        """Return a SYN of the other direction; where the source is not known the same."""
        ends = self.destination, self.port, self.source, self.source_port
        return Packet(*ends) if self.source else self
