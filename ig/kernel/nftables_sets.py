"""Read the sets and maps of nftables of this thread's network namespace, with their elements.

Source: linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c, nft_set_rbtree.c,
nft_set_pipapo.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ig.kernel import netlink
from ig.kernel.netlink import Attributes

_SUBSYSTEM = 10 << 8
_NEWSET, _GETSET, _GETELEMENTS = (_SUBSYSTEM | number for number in (9, 10, 13))
_NEWELEMENTS = _SUBSYSTEM | 12
_OFFSET = 4  # the attributes come after struct nfgenmsg
_TABLE, _NAME, _FLAGS, _KEY_LENGTH, _DESCRIPTION, _EXPRESSION, _EXPRESSIONS = 1, 2, 3, 5, 9, 17, 18
_FIELDS, _ITEM = 2, 1  # NFTA_SET_DESC_CONCAT, NFTA_LIST_ELEM
_ELEMENTS = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
_KEY, _DATA, _ELEMENT_FLAGS, _KEY_END = 1, 2, 3, 10
_ELEMENT_EXPRESSIONS = (7, 11)
_VALUE, _VERDICT = 1, 2  # NFTA_DATA_VALUE, NFTA_DATA_VERDICT
_INTERVAL, _EVALUATED = 0x4, 0x20  # NFT_SET_INTERVAL; NFT_SET_EVAL: rules add to it
_END, _CATCH_ALL = 1, 2  # NFT_SET_ELEM_INTERVAL_END, NFT_SET_ELEM_CATCHALL
_MOST, _MOST_OF_ALL = 1 << 19, 4 << 20
"""The bytes that are read of one set, and of all: some 10,000 ranges, and 80,000."""

Name = tuple[str, str, str]
"""Family, table, and the name of a set in it."""


@dataclass(frozen=True, slots=True)
class Element:
    """A key of a set, or a range of them, with what a map has for it."""

    low: bytes
    high: bytes
    """The last key of the range, in each field."""
    data: bytes = b""
    verdict: bytes = b""
    """The attributes of a verdict, of a verdict map."""


@dataclass(frozen=True, slots=True)
class Set:
    """A set, a map or a verdict map."""

    length: int
    """The bytes of a key."""
    fields: tuple[int, ...] = ()
    """The bytes of each field of a concatenation, where that is told; each begins at a word."""
    elements: tuple[Element, ...] = ()
    other: Element | None = None
    """The element for all other keys (`*`)."""
    unread: str = ""
    """Why its elements are not known, "" where they are."""


def read(families: Mapping[int, str], wanted: Collection[Name]) -> dict[Name, Set]:
    """Return the sets with these names, as far as they exist. Raises OSError.

    Elements of large sets are not read: they have `unread`.
    """
    if not wanted:
        return {}
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    found: dict[Name, Set] = {}
    left = _MOST_OF_ALL
    for kind, answer in netlink.ask(netlink.NETFILTER, _GETSET, body, True, _MOST_OF_ALL):
        parts = netlink.attributes(answer, _OFFSET)
        family = families.get(answer[0], "")
        name = family, netlink.text(parts.get(_TABLE, b"")), netlink.text(parts.get(_NAME, b""))
        if kind == _NEWSET and name in wanted:
            found[name], size = _read_one(answer[0], parts, min(left, _MOST))
            left -= size
    return found


def _read_one(family: int, parts: Attributes, most: int) -> tuple[Set, int]:
    """Return a set, and the bytes that its elements took."""
    length = netlink.network_number(parts.get(_KEY_LENGTH, b""))
    description = netlink.attributes(parts.get(_DESCRIPTION, b""))
    fields = tuple(
        netlink.network_number(netlink.attributes(each).get(1, b""))
        for kind, each in netlink.each(description.get(_FIELDS, b""))
        if kind == _ITEM
    )
    flags = netlink.network_number(parts.get(_FLAGS, b""))
    if flags & _EVALUATED or _EXPRESSION in parts or _EXPRESSIONS in parts:
        return Set(length, fields, unread="is changed by rules"), 0
    body = struct.pack("=BBH", family, 0, 0)
    body += netlink.attribute(1, parts[_TABLE]) + netlink.attribute(2, parts[_NAME])
    try:
        if most <= 0:
            raise OSError(errno.EMSGSIZE, "nothing more is read")
        answers = netlink.ask(netlink.NETFILTER, _GETELEMENTS, body, dump=True, most=most)
    except OSError as error:
        large = error.errno == errno.EMSGSIZE
        why = "is too large to be read" if large else f"cannot be read: {error.strerror or error}"
        return Set(length, fields, unread=why), most if large else 0
    raw = [
        netlink.attributes(each)
        for kind, answer in answers
        if kind == _NEWELEMENTS
        for _, each in netlink.each(netlink.attributes(answer, _OFFSET).get(_ELEMENTS, b""))
    ]
    size = sum(len(answer) for _, answer in answers)
    return _set(length, fields, raw, intervals=bool(flags & _INTERVAL)), size


def _set(length: int, fields: tuple[int, ...], raw: Sequence[Attributes], intervals: bool) -> Set:
    if any(kind in each for each in raw for kind in _ELEMENT_EXPRESSIONS):
        return Set(length, fields, unread="has elements with conditions")
    others = [each for each in raw if _flags(each) & _CATCH_ALL]
    keyed = [each for each in raw if not _flags(each) & _CATCH_ALL]
    ends = any(_KEY_END in each for each in keyed)
    elements = _ranges(keyed) if intervals and not fields and not ends else map(_single, keyed)
    other = _made(others[0], b"", b"") if others else None
    return Set(length, fields, tuple(elements), other)


def _flags(element: Attributes) -> int:
    return netlink.network_number(element.get(_ELEMENT_FLAGS, b""))


def _key(element: Attributes, kind: int = _KEY) -> bytes:
    return netlink.attributes(element.get(kind, b"")).get(_VALUE, b"")


def _single(element: Attributes) -> Element:
    return _made(element, _key(element), _key(element, _KEY_END) or _key(element))


def _made(element: Attributes, low: bytes, high: bytes) -> Element:
    data = netlink.attributes(element.get(_DATA, b""))
    return Element(low, high, data.get(_VALUE, b""), data.get(_VERDICT, b""))


def _ranges(keyed: Sequence[Attributes]) -> Iterator[Element]:
    """Yield the ranges of a set that has the first key of each, and the first that follows it."""
    ordered = sorted(keyed, key=lambda each: (_key(each), not _flags(each) & _END))
    for each, following in zip_longest(ordered, ordered[1:]):
        if _flags(each) & _END:
            continue
        low = _key(each)
        after = int.from_bytes(_key(following), "big") if following else 1 << 8 * len(low)
        yield _made(each, low, (after - 1).to_bytes(len(low), "big"))
