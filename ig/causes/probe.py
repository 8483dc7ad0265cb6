"""Make one attempt to connect, from within a network namespace.

Source: tcp(7) (TCP_SYNCNT), socket(7) (SO_ERROR).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from ig.causes.cause import Attempt
from ig.causes.places import Places

_SYN_REPEATS = 1  # the least that the kernel takes: the second SYN follows after a second
_OUTCOMES = {
    0: "established",
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timed-out",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to connect to."""

    address: str
    port: int
    zone: str = ""
    """The interface of a link-local address."""


def connect(places: Places, netns: int, to: Destination, seconds: float) -> Attempt:
    """Connect once from a namespace, waiting so long, and close. Raises Unreachable, OSError."""
    return places.inside(netns, lambda: _connect(netns, to, seconds))


def _connect(netns: int, to: Destination, seconds: float) -> Attempt:
    six = ":" in to.address
    place = (to.address, to.port, 0, _index(to.zone)) if six else (to.address, to.port)
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET) as client:
        client.setblocking(False)
        with suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, _SYN_REPEATS)
        began, moment = time.monotonic_ns(), time.time_ns()
        error: int | None = client.connect_ex(place)
        sent = error in (0, errno.EINPROGRESS)
        if error == errno.EINPROGRESS:
            error = _awaited(client, seconds)
        latency = time.monotonic_ns() - began
        source, source_port, *_ = client.getsockname()
    outcome = "unanswered" if error is None else _OUTCOMES.get(error, "failed")
    if not sent:
        outcome = "failed" if error != errno.ECONNREFUSED else "refused"
    unbound = source in ("0.0.0.0", "::")
    return Attempt(
        netns,
        to.address,
        to.port,
        outcome,
        error or 0,
        "" if unbound else source.partition("%")[0],
        source_port,
        moment,
        latency,
        to.zone,
    )


def _awaited(client: socket.socket, seconds: float) -> int | None:
    """Return the error that an attempt ends with, 0 for none, None if it has not ended."""
    poll = select.poll()
    poll.register(client, select.POLLOUT)
    ended = poll.poll(seconds * 1000)
    # An ICMP error that came while connect() ran is kept there too (sk_err_soft).
    error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return error if ended or error else None


def _index(zone: str) -> int:
    if not zone:
        return 0
    try:
        return socket.if_nametoindex(zone)
    except OSError as error:
        raise OSError(errno.ENODEV, f"{os.strerror(errno.ENODEV)}: {zone}") from error
