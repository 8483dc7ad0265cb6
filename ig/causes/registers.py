"""The registers that the expressions of an nftables rule compute with, where bits may be unknown.

Source: linux/netfilter/nf_tables.h (enum nft_registers), net/netfilter/nft_cmp.c, nft_bitwise.c.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping

from ig.causes.packet import Partial
from ig.kernel.nftables_sets import Element, Set

_BYTES = 80
_WORD, _LONG = 4, 16
_OPERATORS: Mapping[int, Callable[[bytes, bytes], bool]] = dict(
    enumerate((operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge))
)
"""By the numbers of enum nft_cmp_ops."""


def place(register: int) -> int:
    """Return the offset of a register: of 16 bytes (1 to 4), or of 4 (8 and up)."""
    return (register - 8) * _WORD + _LONG if register >= 8 else register * _LONG


def _clipped(register: int) -> int:
    return min(max(place(register), 0), _BYTES)


class Registers:
    """The registers while one rule is evaluated; what was not stored is unknown."""

    def __init__(self) -> None:
        self._values = bytearray(_BYTES)
        self._known = bytearray(_BYTES)

    def store(self, register: int, value: bytes, known: bytes | None = None) -> None:
        """Store a value; of whole words, what is beyond it is zero."""
        start = _clipped(register)
        whole = min((len(value) + _WORD - 1) // _WORD * _WORD, _BYTES - start)
        known = b"\xff" * len(value) if known is None else known
        self._values[start : start + whole] = value[:whole].ljust(whole, b"\0")
        self._known[start : start + whole] = known[:whole].ljust(whole, b"\xff")

    def forget(self, register: int, length: int = _LONG) -> None:
        """Note that something unknown was stored."""
        start = _clipped(register)
        self.store(register, bytes(min(length, _BYTES - start)), bytes(length))

    def load(self, register: int, length: int) -> Partial:
        """Return a value of that many bytes."""
        start = _clipped(register)
        value, known = (
            bytes(each[start : start + length]).ljust(length, b"\0")
            for each in (self._values, self._known)
        )
        return value, known

    def certain(self, register: int, length: int) -> bytes | None:
        """Return a value, None unless all of it is known."""
        value, known = self.load(register, length)
        return value if set(known) <= {0xFF} and len(known) == length else None

    def compare(self, register: int, how: int, with_value: bytes) -> bool | None:
        """Return whether a value is equal, less, …, None where that depends on what is unknown."""
        if how > 1:
            value = self.certain(register, len(with_value))
            if value is None or how not in _OPERATORS:
                return None
            return _OPERATORS[how](value, with_value)
        equal = within(self.load(register, len(with_value)), with_value, with_value)
        return None if equal is None else equal != bool(how)

    def mask(self, source: int, target: int, mask: bytes, other: bytes) -> None:
        """Store `value & mask ^ other` of a register's value in another."""
        value, known = self.load(source, len(mask))
        result = bytes(v & m ^ x for v, m, x in zip(value, mask, other, strict=True))
        self.store(target, result, bytes(k | ~m & 0xFF for k, m in zip(known, mask, strict=True)))


def within(value: Partial, low: bytes, high: bytes) -> bool | None:
    """Return whether a value is in a range, None where that depends on what is unknown."""
    bits, known, first, last = (int.from_bytes(each, "big") for each in (*value, low, high))
    if first == last:
        if (bits ^ first) & known:
            return False
        return True if known == (1 << 8 * len(low)) - 1 else None
    least, most = bits & known, bits & known | ~known & ((1 << 8 * len(low)) - 1)
    if most < first or least > last:
        return False
    return True if first <= least and most <= last else None


def find(within_set: Set, key: Partial) -> tuple[list[Element], bool]:
    """Return the elements that a key may have, and whether it may have none.

    There is one at most if the key is known as far as that matters.
    """
    possible = []
    for element in within_set.elements:
        matches = _has(within_set, element, key)
        if matches:
            return [element], False
        if matches is None:
            possible.append(element)
    if within_set.other:
        return [*possible, within_set.other], False
    return possible, True


def _has(within_set: Set, element: Element, key: Partial) -> bool | None:
    sure = True
    for start, length in _fields(within_set):
        part = slice(start, start + length)
        found = within((key[0][part], key[1][part]), element.low[part], element.high[part])
        if found is False:
            return False
        sure &= found is True
    return True if sure else None


def _fields(within_set: Set) -> Iterator[tuple[int, int]]:
    if not within_set.fields:
        yield 0, within_set.length
    start = 0
    for length in within_set.fields:
        yield start, length
        start += (length + _WORD - 1) // _WORD * _WORD
