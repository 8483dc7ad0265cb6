"""Random connections (see tests/bench/fuzz.py): each event is reported, rightly and once."""

import random

from tests.bench.fuzz import fuzz


def test_random_connections_are_reported_each_once_and_as_they_were() -> None:
    seed = random.randrange(1 << 32)
    connections, wrong = fuzz(20, seed)
    assert not wrong, (f"make fuzz SECONDS=20 SEED={seed}", *wrong[:5])
    assert connections > 100
