"""Tell the runtimes that an index follows from each other, and whose each is."""

from __future__ import annotations

import os
import re
import socket as sockets
import struct
from collections.abc import Sequence
from typing import Protocol

from ig.container import Change, Container, Runtime
from ig.kernel import processes

ROOT = 0
"""The user whose runtimes are trusted."""
_CONNECT_TIMEOUT = 1.0
"""Seconds that a connection may take which is made to see who serves."""
_PEER = struct.Struct("=3i")  # struct ucred of linux/socket.h: pid, uid, gid
_OF_USER = re.compile(r"(?:/var)?/run/user/(\d{1,10})/")


class Sources(Protocol):
    """Receives what runtimes report, each by the name of its source."""

    def begin(self, source: str) -> None:
        """Note that the runtime is asked for all it has."""

    def apply(self, source: str, change: Change) -> None:
        """Apply a change that the runtime reported."""

    def lost(self, source: str) -> None:
        """Note that the runtime does not answer."""


class Source:
    """What a follower reports of one runtime, under the name of its source instead of its own."""

    def __init__(self, sources: Sources, name: str) -> None:
        self._sources = sources
        self._name = name

    def begin(self, _runtime: str) -> None:
        """Note that the runtime is asked for all it has."""
        self._sources.begin(self._name)

    def apply(self, _runtime: str, change: Change) -> None:
        """Apply a change that the runtime reported."""
        self._sources.apply(self._name, change)

    def lost(self, _runtime: str) -> None:
        """Note that the runtime does not answer."""
        self._sources.lost(self._name)


def named(runtimes: Sequence[Runtime]) -> dict[str, Runtime]:
    """Return the runtimes by source: their name; with their socket, if an earlier one has it."""
    found: dict[str, Runtime] = {}
    for runtime in runtimes:
        name = runtime.name if runtime.name not in found else f"{runtime.name} {runtime.socket}"
        found.setdefault(name, runtime)
    return found


def without_network(container: Container) -> Container:
    """Return a container of an ordinary user's runtime without what that says of networks.

    Addresses are the same in every user's networks, and free to claim.
    """
    return container.copy(addresses=(), ports=(), networks=(), netns=0, joined="", exposed=())


def owner(socket: str) -> int:
    """Return the id of the user whose runtime is at a socket.

    Root's are whatever is asked over the network, since root gave that address, and what this
    process's own user made.
    """
    of_user = _OF_USER.match(socket)
    if of_user is not None:
        return _root_if_own(int(of_user[1]))
    if not socket.startswith("/"):
        return ROOT
    try:
        return _root_if_own(os.stat(socket).st_uid)
    except OSError:
        return ROOT  # Nothing is reported there.


def network(socket: str) -> int:
    """Return the `Container.base` of the containers of the runtime at a socket.

    An engine that runs within a container has its networks there, not on the host. What is asked
    over the network, and who cannot be seen, is taken for the host's.
    """
    if not socket.startswith("/"):
        return 0
    try:
        with sockets.socket(sockets.AF_UNIX) as probe:
            probe.settimeout(_CONNECT_TIMEOUT)
            probe.connect(socket)
            peer = probe.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _PEER.size)
    except OSError:
        return 0
    return processes.other_network(_PEER.unpack(peer)[0])


def _root_if_own(uid: int) -> int:
    return ROOT if uid == os.geteuid() else uid
