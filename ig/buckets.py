"""Buckets of durations, the same as in ebpf/buckets.h: log-linear, 16 for each power of two.

Each is a sixteenth of its power of two wide: 3 to 6 % of its numbers. Summaries of live traffic
and of recordings and Prometheus' histograms count by them, so they agree.
"""

from __future__ import annotations

from collections.abc import Mapping

_PARTS = 16
_BITS = _PARTS.bit_length() - 1


def index(value: int) -> int:
    """Return the index of the bucket of a number, of ns for example, from 0 to 2^64 - 1."""
    if value < _PARTS:
        return value
    power = value.bit_length() - 1
    return (power - _BITS + 1) * _PARTS + (value >> (power - _BITS)) % _PARTS


def bounds(bucket: int) -> tuple[int, int]:
    """Return the smallest number of a bucket, and the smallest of the next bucket."""
    if bucket < _PARTS:
        return bucket, bucket + 1
    power, part = divmod(bucket, _PARTS)
    return (_PARTS + part) << (power - 1), (_PARTS + part + 1) << (power - 1)


def quantile(counts: Mapping[int, int], percent: int, largest: int) -> int:
    """Return the number below or at which so many percent of all are, the middle of its bucket.

    `counts` are the numbers in each bucket, by its index, and `largest` is the largest number,
    which is returned if it is that. Returns 0 if there are none.
    """
    total = sum(counts.values())
    left = max(-(-total * percent // 100), 1)  # the rank, from 1, by the nearest-rank method
    if left >= total:
        return largest if total else 0
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            low, high = bounds(bucket)
            return min((low + high - 1) // 2, largest)
    return largest
