"""Read the sockets of a network namespace by sock_diag, decoded column by column.

A dump has a hundred thousand messages, of few shapes. Messages of one shape are put side by side,
and then each field is one strided slice: no Python code runs for a single socket.
Source: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Collection, Sequence
from functools import partial

from ig.sockets.proc import (
    ADDRESSES4,
    ADDRESSES6,
    ALL_STATES,
    V6ONLY,
    Fields,
    empty,
    extend,
    show_mapped_as_ipv4,
)

_TCPDIAG_GETSOCK, _SOCK_DIAG_BY_FAMILY = 18, 20
_NETLINK_SOCK_DIAG = 4
_ERROR, _DONE = 2, 3
_REQUEST_DUMP = 0x1 | 0x300
_DUMP_INTERRUPTED = 0x10
_HEADER, _MESSAGE = 16, 16 + 72
_ATTRIBUTE_INFO, _ATTRIBUTE_V6ONLY, _ATTRIBUTE_MARK, _ATTRIBUTE_CGROUP = 2, 11, 15, 21

_REQUEST_BYTECODE = 1

_header = struct.Struct("=IHHII")
_request = struct.Struct("=BBBBI48s")  # inet_diag_req_v2
_compatible = struct.Struct("=BBBB48sII")  # inet_diag_req
_shape = struct.Struct("=IHH8xB")  # the header's length, type and flags; inet_diag_msg.family
_attribute = struct.Struct("=HH")
_number = struct.Struct("=i")

_BUFFER = 1 << 16  # the kernel sends at most 32 KB at once, netlink_dump() since Linux 3.18
_PENDING = 1 << 20
_ATTEMPTS = 5

_PLACES = {"ifindex": 14, "recv_q": 18, "send_q": 19, "uid": 20, "ino": 21}
"""Where fields of 4 bytes are, in numbers of 4 bytes."""
# tcp_info: the field's offset in bytes, its size, and what makes it our unit.
_INFO_FIELDS = {
    "rtt": (68, 4, 1000),
    "retransmits": (100, 4, 1),
    "cwnd": (80, 4, 1),
    "bytes_sent": (200, 8, 1),  # since Linux 4.19 (ba113c3aa79a "tcp: add data bytes sent stats")
    "bytes_acked": (120, 8, 1),
    "bytes_received": (128, 8, 1),
}


class Dump:
    """The answer to one request: feed it the datagrams as they come, then read `fields`."""

    def __init__(self, proto: str, more: Sequence[str] = (), without: Collection[str] = ()) -> None:
        """`more` are the fields besides FIELDS; of `without`, some of `_PLACES`, all are 0."""
        self.fields = empty(more)
        self._without = without
        self.finished = False
        self.interrupted = False
        """Whether to repeat: the table changed during the read, or a message was truncated."""
        self.error = 0
        """The errno of a refusal."""
        self._proto = proto
        self._more = more
        self._pending: dict[tuple[int, int], bytearray] = {}
        self._size = 0

    def feed(self, datagram: memoryview) -> None:
        """Parse one datagram; anything but a complete message of a socket is ignored."""
        if not self._feed_uniform(datagram):
            self._feed_each(datagram)
        self._size += len(datagram)
        if self._size > _PENDING or self.finished:
            self.flush()

    def flush(self) -> None:
        """Decode what was fed until now."""
        pending, self._pending, self._size = self._pending, {}, 0
        for (length, family), messages in pending.items():
            _Shape(bytes(messages[:length]), family).decode_checked(messages, self)

    def _feed_uniform(self, datagram: memoryview) -> bool:
        size = len(datagram)
        if size < _MESSAGE:
            return False
        length, kind, flags, family = _shape.unpack_from(datagram)
        if length < _MESSAGE or length % 4 or size % length or not _is_socket(kind, family):
            return False
        heads = _long_numbers(datagram, 0, length)  # length, type and flags
        families = datagram[_HEADER::length].tolist()
        if heads.count(heads[0]) < len(heads) or families.count(family) < len(families):
            return False
        self.interrupted |= bool(flags & _DUMP_INTERRUPTED)
        self._group(length, family).extend(datagram)
        return True

    def _feed_each(self, datagram: memoryview) -> None:
        offset, size = 0, len(datagram)
        padded = bytes(datagram) + bytes(_MESSAGE)
        while offset + _HEADER <= size:
            length, kind, flags, family = _shape.unpack_from(padded, offset)
            if length < _HEADER or offset + length > size:
                self.interrupted = True
                return
            self.interrupted |= bool(flags & _DUMP_INTERRUPTED)
            if kind in (_DONE, _ERROR):
                self._end(padded[offset + _HEADER : offset + length])
                return
            aligned = (length + 3) & ~3
            if length >= _MESSAGE and _is_socket(kind, family):
                message = padded[offset : offset + length].ljust(aligned, b"\0")
                self._group(aligned, family).extend(message)
            offset += aligned
        self.interrupted |= offset < size

    def _end(self, payload: bytes) -> None:
        self.finished = True
        if len(payload) >= _number.size:
            self.error = max(0, -_number.unpack_from(payload)[0])

    def _group(self, length: int, family: int) -> bytearray:
        return self._pending.setdefault((length, family), bytearray())

    def add(self, shape: _Shape, messages: bytes | bytearray) -> None:
        """Append the sockets of messages that all have the same shape."""
        length, ipv6, fields = shape.length, shape.family == socket.AF_INET6, self.fields
        octets = memoryview(messages)
        words, step = octets.cast("I"), length // 4
        count, start = len(messages) // length, len(fields["proto"])
        fields["proto"] += [self._proto] * count
        fields["version"] += [6 if ipv6 else 4] * count
        fields["saddr"] += _addresses(words[6:], step, ipv6)
        fields["daddr"] += _addresses(words[10:], step, ipv6)
        fields["sport"] += _big_endian(octets.cast("H")[10 :: length // 2])
        fields["dport"] += _big_endian(octets.cast("H")[11 :: length // 2])
        fields["state_raw"] += octets[_HEADER + 1 :: length].tolist()
        for name, place in _PLACES.items():
            needed = name not in self._without
            fields[name] += words[place::step].tolist() if needed else [0] * count
        fields["mark"] += shape.numbers(octets, _ATTRIBUTE_MARK, 0, 4, count)
        fields["cgroup"] += shape.numbers(octets, _ATTRIBUTE_CGROUP, 0, 8, count)
        for name in self._more:
            if name == "cookie":
                fields[name] += _long_numbers(octets, 60, length)
                continue
            if name == V6ONLY:
                fields[name] += shape.flags(octets, _ATTRIBUTE_V6ONLY, count)
                continue
            offset, size, unit = _INFO_FIELDS[name]
            values = shape.numbers(octets, _ATTRIBUTE_INFO, offset, size, count)
            fields[name] += [value * unit for value in values] if unit != 1 else values
        if ipv6:
            show_mapped_as_ipv4(fields, start)


class _Shape:
    """Where the attributes are in messages of one length and family."""

    def __init__(self, message: bytes, family: int) -> None:
        self.length = len(message)
        self.family = family
        self.attributes: dict[int, tuple[int, int]] = {}
        offset = _MESSAGE
        while offset + _attribute.size <= self.length:
            size, kind = _attribute.unpack_from(message, offset)
            if size < _attribute.size or offset + size > self.length:
                break
            self.attributes[kind] = (offset, size)
            offset += (size + 3) & ~3

    def decode_checked(self, messages: bytearray, dump: Dump) -> None:
        """Add the messages, apart where their attributes are not all in the same places."""
        words, step = memoryview(messages).cast("I"), self.length // 4
        heads = [words[offset // 4 :: step].tolist() for offset, _ in self.attributes.values()]
        if all(head.count(head[0]) == len(head) for head in heads):
            dump.add(self, messages)
            return
        groups: dict[tuple[tuple[int, tuple[int, int]], ...], tuple[_Shape, bytearray]] = {}
        for start in range(0, len(messages), self.length):
            message = bytes(messages[start : start + self.length])
            shape = _Shape(message, self.family)
            groups.setdefault(tuple(shape.attributes.items()), (shape, bytearray()))[1].extend(
                message
            )
        for shape, same in groups.values():
            dump.add(shape, same)

    def flags(self, octets: memoryview, attribute: int, count: int) -> list[bool]:
        """Return an attribute of one byte as true or false; false if missing."""
        start, room = self.attributes.get(attribute, (0, 0))
        if room <= _attribute.size:
            return [False] * count
        return [value != 0 for value in octets[start + _attribute.size :: self.length].tolist()]

    def numbers(
        self, octets: memoryview, attribute: int, offset: int, size: int, count: int
    ) -> list[int]:
        """Return a number of 4 or 8 bytes at an offset in an attribute; zeroes if missing."""
        start, room = self.attributes.get(attribute, (0, 0))
        if room < _attribute.size + offset + size:
            return [0] * count
        place = start + _attribute.size + offset
        if size == 8:
            return _long_numbers(octets, place, self.length)
        numbers: list[int] = octets.cast("I")[place // 4 :: self.length // 4].tolist()
        return numbers


def _long_numbers(octets: memoryview, place: int, length: int) -> list[int]:
    """Return the numbers of 64 bits at a place, a multiple of 4, in messages of one length."""
    if length % 8 == 0:
        shift = place % 8
        longs = octets[shift : len(octets) - (8 - shift) % 8].cast("Q")
        numbers: list[int] = longs[place // 8 :: length // 8].tolist()
        return numbers
    words, step = octets.cast("I"), length // 4
    low, high = (words[each::step].tolist() for each in (place // 4, place // 4 + 1))
    if sys.byteorder == "big":
        low, high = high, low
    return [h << 32 | n for h, n in zip(high, low, strict=True)] if any(high) else low


def _is_socket(kind: int, family: int) -> bool:
    known = kind in (_SOCK_DIAG_BY_FAMILY, _TCPDIAG_GETSOCK)
    return known and family in (socket.AF_INET, socket.AF_INET6)


def _addresses(words: memoryview, step: int, ipv6: bool) -> list[str]:
    if not ipv6:
        return ADDRESSES4.of(words[::step].tolist())
    parts = [words[place::step].tolist() for place in range(4)]
    return list(map(ADDRESSES6.__getitem__, zip(*parts, strict=False)))


def _big_endian(numbers: memoryview) -> list[int]:
    ports = array("H", numbers.tobytes())
    if sys.byteorder == "little":
        ports.byteswap()
    return ports.tolist()


def _requests(proto: str, states: int, more: Sequence[str], chosen: bytes = b"") -> Sequence[bytes]:
    extension = 1 << (_ATTRIBUTE_INFO - 1) if more else 0
    if proto == "TCP":
        # The older request walks the table of connections once for both families.
        body = _compatible.pack(socket.AF_INET, 0, 0, extension, bytes(48), states, 0)
        if chosen:
            body += _attribute.pack(_attribute.size + len(chosen), _REQUEST_BYTECODE) + chosen
        return [_framed(_TCPDIAG_GETSOCK, body)]
    families = (socket.AF_INET, socket.AF_INET6)
    bodies = [
        _request.pack(family, socket.IPPROTO_UDP, extension, 0, states, bytes(48))
        for family in families
    ]
    return [_framed(_SOCK_DIAG_BY_FAMILY, body) for body in bodies]


def _framed(kind: int, body: bytes) -> bytes:
    return _header.pack(_header.size + len(body), kind, _REQUEST_DUMP, 1, 0) + body


def settled(attempt: Callable[[], Dump]) -> Dump:
    """Ask until the table did not change meanwhile, up to five times; give the last answer.

    Raises OSError if the answer is a refusal.
    """
    for _ in range(_ATTEMPTS):
        dump = attempt()
        if dump.error:
            raise OSError(dump.error, os.strerror(dump.error))
        if not dump.interrupted:
            break
    return dump


def _ask_once(request: bytes, make: Callable[[], Dump], buffer: bytearray) -> Dump:
    dump = make()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(request)
        while not dump.finished:
            # With MSG_TRUNC the answer is the datagram's own length, even if the buffer is less.
            size = netlink.recv_into(buffer, 0, socket.MSG_TRUNC)
            if size > len(buffer):
                # What was cut off may have been the end, so none may come any more.
                buffer.extend(bytes(size - len(buffer)))
                dump.interrupted = True
                break
            dump.feed(memoryview(buffer)[:size])
    dump.flush()
    return dump


def ask(
    proto: str,
    states: int = ALL_STATES,
    more: Sequence[str] = (),
    chosen: bytes = b"",
    without: Collection[str] = (),
) -> Fields:
    """Return the sockets of this thread's network namespace; `proto` is TCP or UDP.

    `states` has the bit 1 << state for each wanted, `more` the fields besides FIELDS; those of
    `without` are 0. `chosen` is a filter of TCP sockets (ig.sockets.sides). A table that changed
    while it was read is asked again, up to five times; what the fifth answer has is given, whole
    rows only.
    Raises OSError where the kernel refuses, or has no such module.
    """
    fields, buffer = empty(more), bytearray(_BUFFER)
    for request in _requests(proto, states, more, chosen):
        dump = settled(partial(_ask_once, request, partial(Dump, proto, more, without), buffer))
        extend(fields, dump.fields)
    return fields
