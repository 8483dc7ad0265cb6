"""Buckets hold every number once, are narrow, and give quantiles within one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ig import buckets

EDGES = sorted({max(1 << power, 16) + step for power in range(64) for step in (-1, 0, 1)})


@pytest.mark.parametrize("value", [*range(16), *EDGES, 2**64 - 1])
def test_bucket_of_a_number_has_it_within_its_bounds_and_is_narrow(value: int) -> None:
    low, high = buckets.bounds(buckets.index(value))
    assert low <= value < high
    assert high - low <= max(low / 16, 1)


def test_buckets_follow_each_other_without_a_gap() -> None:
    bounds = [buckets.bounds(bucket) for bucket in range(buckets.index(2**64 - 1) + 1)]
    assert [high for _, high in bounds[:-1]] == [low for low, _ in bounds[1:]]
    assert [buckets.index(low) for low, _ in bounds] == list(range(len(bounds)))


def test_quantile_is_in_the_bucket_of_the_number_of_that_rank() -> None:
    numbers = sorted(int(random.Random(19).lognormvariate(12, 3)) + 1 for _ in range(1009))
    counts = Counter(map(buckets.index, numbers))
    for percent in (1, 50, 90, 99):
        rank = -(-len(numbers) * percent // 100)
        found = buckets.quantile(counts, percent, numbers[-1])
        assert buckets.index(found) == buckets.index(numbers[rank - 1])
    assert buckets.quantile(counts, 100, numbers[-1]) == numbers[-1]


def test_quantile_of_one_number_is_that_and_of_none_is_0() -> None:
    assert buckets.quantile({buckets.index(81_234): 1}, 50, 81_234) == 81_234
    assert buckets.quantile({}, 99, 0) == 0
