"""Name the far ends of connections, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ig.columns import ADDRESSES, Cache
from ig.containers.container import HOST, Container
from ig.containers.endpoints import Endpoints
from ig.gadget import Batch
from ig.kernel import netns


class Peers:
    """The containers that addresses and published ports belong to, as the runtimes tell now."""

    def __init__(
        self, version: Callable[[], int], containers: Callable[[], Sequence[Container]]
    ) -> None:
        """Take the index's version, which grows with each change, and its containers."""
        self._version = version
        self._seen = -1
        self._endpoints = Endpoints(version, containers)
        self._host = netns.host()
        self._found: Cache[tuple[str, int, int], Container] = Cache(self._find)

    def of_records(self, fields: Mapping[str, Sequence[Any]]) -> Sequence[Container]:
        """Give whose the `daddr` and `dport` of each record are, HOST for nobody's known."""
        if not self._anybody():
            return [HOST] * len(fields["daddr"])
        keys = zip(fields["version"], fields["daddr"], strict=True)
        return self.of(list(map(ADDRESSES.__getitem__, keys)), fields["dport"], fields["netns"])

    def told(self, batch: Batch) -> Batch:
        """Give the sockets of a snapshot with a field `peer`: whose their far ends are."""
        ends = [batch.fields[name] for name in ("daddr", "dport", "netns_id")]
        return Batch({**batch.fields, "peer": self.of(*ends)}, batch.owners)

    def of(
        self, addresses: Sequence[str], ports: Sequence[int], namespaces: Sequence[int]
    ) -> Sequence[Container]:
        """Give whose each address and port is, seen from a network namespace (its inode)."""
        if not self._anybody():
            return [HOST] * len(addresses)
        return self._found.of(list(zip(addresses, ports, namespaces, strict=True)))

    def _anybody(self) -> bool:
        version = self._version()
        if version != self._seen:
            self._seen = version
            self._found.clear()
        return self._endpoints.any()

    def _find(self, key: tuple[str, int, int]) -> Container:
        address, port, namespace = key
        return self._endpoints.find(address, port, namespace == self._host) or HOST
