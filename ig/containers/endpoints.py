"""Say which container is behind an address and port, for the far end of a connection."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import TypeVar

from ig.containers.container import Container

Key = TypeVar("Key")

CACHED = 4096
"""How many addresses are remembered to be, or not to be, the host's own."""


class Endpoints:
    """Names the far ends of connections, by what the runtimes tell now.

    `version` and `containers` are the index's: the tables are made anew when the version grows.
    """

    def __init__(
        self, version: Callable[[], int], containers: Callable[[], Iterable[Container]]
    ) -> None:
        self._version = version
        self._containers = containers
        self._made = -1
        self._addresses: dict[str, Container] = {}
        self._published: dict[tuple[str, int], Container] = {}
        self._local: dict[str, bool] = {}

    def any(self) -> bool:
        """Say whether any address or port is known."""
        self._refresh()
        return bool(self._addresses or self._published)

    def find(self, address: str, port: int, host_network: bool) -> Container | None:
        """Give the container that an address belongs to, or whose published port it is; else None.

        `address` is in its canonical spelling. `host_network` is whether it was used in the host's
        network namespace: elsewhere a loopback address is not the host's.
        """
        self._refresh()
        found = self._addresses.get(address)
        if found is not None or not self._published:
            return found
        everywhere = "::" if ":" in address else "0.0.0.0"
        published = self._published.get((address, port)) or self._published.get((everywhere, port))
        if published is None or not self._is_hosts(address, host_network):
            return None
        return published

    def _refresh(self) -> None:
        version = self._version()
        if version == self._made:
            return
        addresses: dict[str, list[Container]] = {}
        published: dict[tuple[str, int], list[Container]] = {}
        for container in self._containers():
            for address in container.addresses:
                addresses.setdefault(address, []).append(container)
            for address, port, _ in container.ports:
                published.setdefault((address or "0.0.0.0", port), []).append(container)
        self._addresses, self._published, self._made = _sole(addresses), _sole(published), version

    def _is_hosts(self, address: str, host_network: bool) -> bool:
        if ip_address(address).is_loopback:
            return host_network
        known = self._local.get(address)
        if known is None:
            if len(self._local) >= CACHED:
                self._local.clear()
            known = self._local[address] = _can_bind(address)
        return known


def _sole(claims: Mapping[Key, Sequence[Container]]) -> dict[Key, Container]:
    """Give those that one container has, or one pod's containers, which are then all the same."""
    return {
        key: first
        for key, (first, *others) in claims.items()
        if all(first.pod_uid and other.pod_uid == first.pod_uid for other in others)
    }


def _can_bind(address: str) -> bool:
    """Ask the kernel whether an address is this host's: only those can be bound to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        # A link-local address needs its interface, which is not known here.
        return error.errno == errno.EADDRINUSE
    return True
