"""A TCP segment at one hook of netfilter, and what rules load of it, as far as it is known.

Source: linux/netfilter/nf_tables.h (enum nft_meta_keys, nft_ct_keys, …), net/netfilter/nft_*.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

SYN, SYN_ACK = 0x02, 0x12
NETWORK, TRANSPORT = 1, 2
"""The bases that nftables numbers headers with (NFT_PAYLOAD_NETWORK_HEADER, …)."""

_NEW, _ESTABLISHED = 8, 2  # NF_CT_STATE_BIT of IP_CT_NEW and IP_CT_ESTABLISHED
_LOCAL, _UNICAST = 2, 1  # RTN_LOCAL, RTN_UNICAST

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


class Fields:
    """What expressions of nftables' rules load: headers, the connection, the interfaces."""

    def __init__(
        self, packet: Packet, interfaces: Mapping[str, int], tracked: Callable[[], bool]
    ) -> None:
        """`interfaces` are the numbers of the namespace's; `tracked` is as in `Evaluation`."""
        self._packet = packet
        self._headers = packet.headers()
        self._interfaces = interfaces
        self._tracked = tracked

    def load(self, name: str, number: Mapping[int, int]) -> Partial | None:
        """Return what an expression loads by its attributes, None where it is not known."""
        if name == "payload":
            start, length = number.get(3, 0), number.get(4, 0)
            header, known = self._headers.get(number.get(2, 0), (b"", b""))
            part = slice(start, start + length)
            return (header[part], known[part]) if len(header[part]) == length else None
        if name == "ct":
            return self._connection(number.get(2, -1))
        if name == "numgen":
            return _counted(number)
        if name == "fib":
            return self._kind_of_address(number)
        return self._meta(number.get(2, -1))

    def write(self, number: Mapping[int, int]) -> None:
        """Note that a part of a header is changed, and is not known from there on."""
        base, start = number.get(2, 0), number.get(3, 0)
        header, known = self._headers.get(base, (b"", b""))
        size = min(number.get(4, 0), max(len(known) - start, 0))
        self._headers[base] = header, known[:start] + bytes(size) + known[start + size :]

    @property
    def state(self) -> int | None:
        """The bit of the state in connection tracking, None where a rule may turn that off."""
        if not self._tracked():
            return None
        return _NEW if self._packet.flags == SYN else _ESTABLISHED

    def _connection(self, key: int) -> Partial | None:
        answer = self._packet.flags != SYN
        if key == 0 and self.state is not None:
            return struct.pack("=I", self.state), b"\xff" * 4
        if key == 1 and self.state is not None:
            return bytes([answer]), b"\xff"
        if key == 2 and self.state is not None:  # IPS_SEEN_REPLY, IPS_ASSURED, IPS_DST_NAT
            status = (2 if answer else 0) | (0x20 if self._packet.translated else 0)
            known = 0x06 | (0x20 if self._packet.translated is not None else 0)
            return struct.pack("=I", status), struct.pack("=I", known)
        return None

    def _kind_of_address(self, number: Mapping[int, int]) -> Partial | None:
        """Return what `fib` finds of an address, where it asks for no more than its kind."""
        asked = {1: self._packet.from_local, 2: self._packet.to_local}
        local = asked.get(number.get(3, 0))
        if number.get(2) != 3 or local is None:  # NFT_FIB_RESULT_ADDRTYPE
            return None
        return struct.pack("=I", _LOCAL if local else _UNICAST), b"\xff" * 4

    def _meta(self, key: int) -> Partial | None:
        six = self._packet.version == 6
        value = {
            1: struct.pack("!H", 0x86DD if six else 0x0800),
            15: bytes([socket.AF_INET6 if six else socket.AF_INET]),
            16: bytes([socket.IPPROTO_TCP]),
        }.get(key)
        if key in (4, 5, 6, 7):
            name = self._packet.interfaces[key & 1]
            if name is not None:
                numbers = self._interfaces
                index = 0 if not name else 1 if name == "lo" else numbers.get(name, 0)
                if key > 5:
                    value = name.encode().ljust(16, b"\0")
                elif index or not name:
                    value = struct.pack("=I", index)
        return None if value is None else (value, b"\xff" * len(value))


def _counted(number: Mapping[int, int]) -> Partial | None:
    """Return a number below a modulus, of which the higher bits are known."""
    modulus, offset = number.get(2, 0), number.get(4, 0)
    if modulus == 1:
        return struct.pack("=I", offset), b"\xff" * 4
    if offset or not modulus:
        return None
    unknown = (1 << (modulus - 1).bit_length()) - 1
    return bytes(4), struct.pack("=I", ~unknown & 0xFFFFFFFF)
