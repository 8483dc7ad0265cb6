"""Far ends that records name, without a kernel or a runtime."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from ig.container import Change, Container
from ig.containers.peers import Peers

WEB = Container("a" * 64, "web", "docker", running=True)
DB = Container("b" * 64, "db", "docker", running=True, addresses=("10.9.0.2",), netns=9)
HOST_NAMESPACE, NAMESPACE = 1, 7


class Runtimes:
    """Two containers; the network namespace of one is not reported."""

    def subscribe(self, on_change: Callable[[Change], None]) -> Callable[[], None]:
        for container in (WEB, DB):
            on_change(Change("exists", container))
        return lambda: None


def test_namespace_of_a_container_is_not_that_of_counts_without_room_for_their_keys() -> None:
    peers = Peers(Runtimes(), HOST_NAMESPACE)

    def far_end(netns: int) -> Container:
        fields: dict[str, Sequence[Any]] = {
            "timestamp": [time.time_ns()],
            "version": [4],
            "daddr": [socket.inet_aton("10.9.0.2") + bytes(12)],
            "dport": [80],
            "netns": [netns],
        }
        return peers.of_records(fields, [WEB])[0]

    far_end(0)
    assert far_end(NAMESPACE) is DB
