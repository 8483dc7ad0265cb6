"""A TCP segment as a firewall sees it at one hook."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

SYN, SYN_ACK = 0x02, 0x12
NETWORK, TRANSPORT = 1, 2
"""The bases that nftables numbers headers with (NFT_PAYLOAD_NETWORK_HEADER, …)."""

Partial = tuple[bytes, bytes]
"""A value, and a mask of those of its bits that are known."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment at one hook."""

    source: str
    """ "" where it is not known, as after an address translation."""
    source_port: int
    """0 where it is not known."""
    destination: str
    """ "" where it is not known; then the source is."""
    port: int
    """0 where it is not known."""
    flags: int = SYN
    interfaces: tuple[str | None, str | None] = (None, None)
    """The names of the interfaces that it comes in and goes out by; "" for none, None unknown."""
    to_local: bool | None = None
    """Whether the destination is an address of the namespace that it is in; None: not known."""
    from_local: bool | None = None
    """The same of the source."""
    translated: bool | None = None
    """Whether that namespace translates the connection's destination; None: not known."""

    @property
    def version(self) -> int:
        """The version of IP, 4 or 6."""
        return 6 if ":" in (self.destination or self.source) else 4

    def headers(self) -> dict[int, Partial]:
        """Return the IP and the TCP header, by the base that nftables numbers them with."""
        ends = [self._address(self.source), self._address(self.destination)]
        addresses, known = (b"".join(each) for each in zip(*ends, strict=True))
        ports = [struct.pack("!H", each) for each in (self.source_port, self.port)]
        tcp = b"".join(ports) + bytes(9) + bytes([self.flags]) + bytes(6)
        # The bits for congestion depend on a setting; numbers, window and options are not known.
        mask = b"".join(b"\xff\xff" if any(each) else bytes(2) for each in ports)
        mask += bytes(9) + b"\x3f" + bytes(6)
        if self.version == 6:
            head = struct.pack("!IHBB", 6 << 28, 0, socket.IPPROTO_TCP, 0)
            network = head + addresses, b"\xf0" + bytes(5) + b"\xff\0" + known
        else:
            head = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 0, socket.IPPROTO_TCP, 0)
            sure = b"\xff" + bytes(5) + b"\x3f\xff\0\xff" + bytes(2)  # no fragment
            network = head + addresses, sure + known
        return {NETWORK: network, TRANSPORT: (tcp, mask)}

    def _address(self, text: str) -> Partial:
        if not text:
            zero = bytes(16 if self.version == 6 else 4)
            return zero, zero
        packed = ip_address(text).packed
        return packed, b"\xff" * len(packed)

    def answered(self) -> Packet:
        """Return a SYN of the other direction."""
        return Packet(self.destination, self.port, self.source, self.source_port)
