"""Ask the kernel by netlink: requests, dumps, and the attributes in their answers.

Source: netlink(7), linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping

ROUTE, NETFILTER = 0, 12
"""Families of netlink: NETLINK_ROUTE, NETLINK_NETFILTER."""

_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_INTERRUPTED = 0x10
_KIND = 0x3FFF  # the two highest bits of an attribute's kind are flags
_NESTED = 0x8000  # NLA_F_NESTED
_BUFFER = 1 << 16
_TIMEOUT = 1.0  # seconds; the kernel answers at once
_ATTEMPTS = 5

_header = struct.Struct("=IHHII")
_attribute = struct.Struct("=HH")
_number = struct.Struct("=i")

Attributes = Mapping[int, bytes]


def ask(
    family: int, kind: int, body: bytes, dump: bool = False, most: int = 0
) -> list[tuple[int, bytes]]:
    """Return the answers, each its type and what follows its header; of `dump` all there are.

    They are those of this thread's network namespace. A dump that changed while it was read is
    asked for again, up to five times. Raises OSError where the kernel refuses, EAGAIN if it
    changed each time, and EMSGSIZE if the answers have more than `most` bytes, unless that is 0.
    """
    flags = _REQUEST | (_DUMP if dump else 0)
    request = _header.pack(_header.size + len(body), kind, flags, 1, 0) + body
    for _ in range(_ATTEMPTS):
        answers, interrupted = _ask_once(family, request, dump, most)
        if not interrupted:
            return answers
    raise OSError(errno.EAGAIN, "what was asked for changed while it was read")


def _ask_once(
    family: int, request: bytes, dump: bool, most: int
) -> tuple[list[tuple[int, bytes]], bool]:
    answers: list[tuple[int, bytes]] = []
    interrupted, read = False, 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as netlink:
        netlink.settimeout(_TIMEOUT)
        netlink.send(request)
        while True:
            data, place = netlink.recv(_BUFFER), 0
            read += len(data)
            if most and read > most:
                raise OSError(errno.EMSGSIZE, f"more than {most} bytes")
            while place + _header.size <= len(data):
                size, kind, flags, *_ = _header.unpack_from(data, place)
                body = data[place + _header.size : place + size]
                place += max(_header.size, (size + 3) & ~3)
                interrupted |= bool(flags & _INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    error = -_number.unpack_from(body)[0] if len(body) >= _number.size else 0
                    if error > 0:
                        raise OSError(error, os.strerror(error))
                    return answers, interrupted
                answers.append((kind, body))
            if not dump:
                return answers, interrupted


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute of a request, padded."""
    padding = bytes(-len(value) % 4)
    return _attribute.pack(_attribute.size + len(value), kind) + value + padding


def nested(kind: int, *values: bytes) -> bytes:
    """Return an attribute of a request that consists of others."""
    return attribute(kind | _NESTED, b"".join(values))


def each(body: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and the value of each attribute, from a place in a message on."""
    place = start
    while place + _attribute.size <= len(body):
        size, kind = _attribute.unpack_from(body, place)
        if size < _attribute.size:
            return
        yield kind & _KIND, body[place + _attribute.size : place + size]
        place += (size + 3) & ~3


def attributes(body: bytes, start: int = 0) -> Attributes:
    """Return the attributes by their kind; of one that is there twice the last."""
    return dict(each(body, start))


def text(value: bytes) -> str:
    """Return the text of an attribute: bytes up to the first zero."""
    return value.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def number(value: bytes) -> int:
    """Return the unsigned number of an attribute, in the host's byte order; 0 if there is none."""
    return int.from_bytes(value, "little" if sys.byteorder == "little" else "big")


def network_number(value: bytes) -> int:
    """Return the unsigned number of an attribute in network byte order; 0 if there is none."""
    return int.from_bytes(value, "big")
