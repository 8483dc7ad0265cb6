"""What the expressions of nftables' rules load of a segment at one hook, as far as it is known.

Source: linux/netfilter/nf_tables.h (enum nft_meta_keys, nft_ct_keys, …), net/netfilter/nft_*.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping

from ig.causes.packet import SYN, Packet, Partial

_NEW, _ESTABLISHED = 8, 2  # NF_CT_STATE_BIT of IP_CT_NEW and IP_CT_ESTABLISHED
_LOCAL, _UNICAST = 2, 1  # RTN_LOCAL, RTN_UNICAST


class Fields:
    """The headers of a segment, its connection and its interfaces."""

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
