"""Attempts that wait for their causes: what a bug of ours costs, and what is said of it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from ig.attempts import OUTCOMES, TYPES
from ig.causes.cause import Attempt
from ig.causes.evidence import Evidence, Far
from ig.causes.find import Causes, Examiner
from ig.causes.way import Way
from ig.commands.why import CauseSink
from ig.container import HOST
from ig.gadget import Batch
from ig.kernel import netns

NEAR, BROKEN, CLOSED = netns.own(), 1001, 1002


class Given(Causes):
    """Gives evidence that nothing listens; of one port, evidence that cannot be judged."""

    def __init__(self) -> None:
        super().__init__(tuple, 1)

    def examine(self, attempt: Attempt, *_: object, **__: object) -> Evidence:
        far: Any = Far(NEAR, "this host", (), attempt.port, ("127.0.0.1",))
        if attempt.port == BROKEN:
            far = object()
        return Evidence("this host", Way((), NEAR), far)


class Kept:
    """A sink that keeps what it is given."""

    interval = 0.0

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def open(self) -> None:
        pass

    def write(self, batch: Batch) -> None:
        self.batches.append(batch)

    def tick(self, now: int) -> None:
        pass

    def lost(self, counts: Mapping[str, int]) -> None:
        pass

    def close(self) -> None:
        pass


def attempts(*ports: int) -> Batch:
    """Return the events of attempts, each of which was refused."""
    address = socket.inet_aton("127.0.0.1") + bytes(12)
    fields: dict[str, Any] = {
        "type": TYPES.index("connect"),
        "outcome": OUTCOMES.index("refused"),
        "error": errno.ECONNREFUSED,
        "retransmits": 0,
        "version": 4,
        "saddr": address,
        "daddr": address,
        "sport": 40000,
        "netns": NEAR,
        "timestamp": 1,
        "waited": 1,
        "zone": bytes(16),
        "signals": bytes(16),
    }
    count = len(ports)
    columns = {name: [value] * count for name, value in fields.items()}
    return Batch({**columns, "dport": list(ports)}, [HOST] * count)


def test_bug_costs_one_cause_and_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    examiner, sink = Examiner(Given()), Kept()
    try:
        explained = CauseSink(sink, examiner, lambda: True)
        explained.write(attempts(BROKEN, CLOSED, BROKEN))
        explained.finish()
    finally:
        examiner.close()
    (batch,) = sink.batches
    assert batch.fields["dport"] == [BROKEN, CLOSED, BROKEN]
    assert batch.fields["cause_kind"] == ["", "no-listener", ""]
    explained.report_missing()
    said = capsys.readouterr().err.splitlines()
    bug = "ig: warning: --why: an attempt has no cause because of a bug in ig: AttributeError: "
    assert [line.startswith(bug) for line in said] == [True, False]
    assert "(judge.py:" in said[0]
    assert said[1] == "ig: --why: 2 attempts have no cause because of a bug in ig"
