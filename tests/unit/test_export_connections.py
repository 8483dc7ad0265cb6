"""The count of open connections: in a thread of its own, whatever becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ig.container import HOST
from ig.export.connections import OpenConnections
from ig.sockets.owner import Known
from tests.host.waiting import PATIENCE, until

NONE = Known(lambda *_: (HOST, True))
"""No container: all sockets are the host's."""


@contextmanager
def counting(connections: OpenConnections) -> Iterator[None]:
    connections.start()
    try:
        yield
    finally:
        connections.stop()


def test_count_that_fails_is_reported_once_and_tried_again() -> None:
    said: list[str] = []
    tries = 0

    def known() -> Known:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise (OSError if tries % 2 else ValueError)(f"{tries} things")
        return NONE

    connections = OpenConnections(known, bool, said.append, 10, interval=0.01)
    with counting(connections):
        until(lambda: tries > 4, "counts after those that failed")
    assert [line for line in said if "cannot be counted" in line] == [
        "warning: open connections cannot be counted: OSError('1 things')",
        "warning: open connections cannot be counted: ValueError('2 things')",
    ]


def test_metric_is_there_while_a_count_takes_long() -> None:
    counts, goes_on = threading.Event(), threading.Event()

    def known() -> Known:
        counts.set()
        assert goes_on.wait(PATIENCE)
        return NONE

    connections = OpenConnections(known, bool, print, 10)
    with counting(connections):
        assert counts.wait(PATIENCE)
        assert [len(each) for each in connections.metrics()] == [0]
        goes_on.set()
