"""Tell the runtimes that an index follows from each other, and whose each is."""

from __future__ import annotations

import os
import re
import socket as sockets
import struct
from collections.abc import Sequence

from ig.container import Container, Runtime
from ig.kernel import processes

ROOT = 0
"""The user whose runtimes are trusted."""
_CONNECT_TIMEOUT = 1.0
"""Seconds that a connection may take which is made to see who serves."""
_PEER = struct.Struct("=3i")  # struct ucred of linux/socket.h: pid, uid, gid
_OF_USER = r"(?:/var)?/run/user/(\d{1,10})/"


def named(runtimes: Sequence[Runtime]) -> dict[str, Runtime]:
    """Return the runtimes by source: their name; with their socket, if an earlier one has it."""
    found: dict[str, Runtime] = {}
    for runtime in runtimes:
        name = runtime.name if runtime.name not in found else f"{runtime.name} {runtime.socket}"
        found.setdefault(name, runtime)
    return found


def attributed(container: Container, source: str, base: int, user: int) -> Container:
    """Return a container that a source reported with that, and without what it may not claim.

    `base` is as in Container. Of an ordinary user's runtime nothing that concerns networks is
    taken: addresses are the same in every user's networks, and free to claim.
    """
    if container.runtime != source:
        container = container.copy(source=source)
    if base:
        container = container.copy(base=base)
    if user != ROOT:
        return container.copy(addresses=(), ports=(), networks=(), netns=0, joined="", exposed=())
    return container


def owner(socket: str) -> int:
    """Return the id of the user whose runtime is at a socket.

    Root's are whatever is asked over the network, since root gave that address, and what this
    process's own user made.
    """
    of_user = re.match(_OF_USER, socket)
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
