"""Random connections (see tests/bench/fuzz.py): each event is reported, rightly and once."""

import random

from tests.bench.fuzz import fuzz

SECONDS = 8


def test_random_connections_are_reported_each_once_and_as_they_were() -> None:
    seed = random.randrange(1 << 32)
    connections, wrong = fuzz(SECONDS, seed)
    assert not wrong, (f"make fuzz SECONDS={SECONDS} SEED={seed}", *wrong[:5])
    assert connections > 100
