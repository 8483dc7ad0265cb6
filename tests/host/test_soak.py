"""A short soak (see tests/bench/soak.py): every connection is told of, or counted as lost."""

from pathlib import Path

from tests.bench.soak import compiled, soak
from tests.host.engine import Engine


def test_soak_accounts_for_every_connect_accept_and_close(engine: Engine, tmp_path: Path) -> None:
    whole, _ = soak(engine, compiled(str(tmp_path)), 12)
    assert whole
