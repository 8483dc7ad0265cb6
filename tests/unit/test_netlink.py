"""Dumps by netlink: what changed while it was read is not passed off as whole."""

from __future__ import annotations

import errno
import struct

import pytest

from ig.kernel import netlink

DONE, INTERRUPTED = 3, 0x10


class Interrupting:
    """A socket whose dumps are interrupted each time, as no real kernel can be made to."""

    asked = 0

    def __init__(self, *_: object) -> None:
        """Take what a socket does."""

    def __enter__(self) -> Interrupting:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing."""

    def settimeout(self, _: float) -> None:
        """Wait for nothing."""

    def send(self, _: bytes) -> None:
        """Count the requests."""
        Interrupting.asked += 1

    def recv(self, _: int) -> bytes:
        """Return the end of a dump."""
        return struct.pack("=IHHIIi", 20, DONE, 2 | INTERRUPTED, 1, 0, 0)


def test_dump_that_changes_each_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", Interrupting)
    with pytest.raises(OSError, match="changed while it was read") as caught:
        netlink.ask(netlink.ROUTE, 18, bytes(16), dump=True)
    assert caught.value.errno == errno.EAGAIN
    assert Interrupting.asked == 5
