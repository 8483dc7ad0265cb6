"""Name the far ends of connections, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from ig.attempts import TYPES
from ig.container import HOST, Change, Cluster, Container
from ig.containers.addresses import Endpoints
from ig.containers.holdings import FOREVER, OBSERVED, Holdings
from ig.ends import ADDRESSES
from ig.gadget import Batch
from ig.kernel import netns, routes
from ig.memo import Cache
from ig.summary import DIRECTIONS

Key = TypeVar("Key")

_ACCEPT = TYPES.index("accept")
_OUTGOING = DIRECTIONS.index("outgoing")
_LISTEN = 10  # TCP_LISTEN, enum in include/net/tcp_states.h
_ENDS = 4096
"""How many ends of a batch are remembered while it is named."""
_BY_PORT = Container("", "", "", image="by port")
_IF_PUBLISHED = Container("", "", "", image="if published")
"""Cache entries for addresses whose owner depends on the port."""


class Containers(Protocol):
    """What is asked of the runtimes' containers: ig.containers.index.Index."""

    @property
    def cluster(self) -> Cluster | None:
        """The Kubernetes cluster that is followed with them, if any."""

    def subscribe(self, on_change: Callable[[Change], None]) -> Callable[[], None]:
        """Call `on_change` for each change from now on."""


class Peers:
    """The containers that addresses and published ports belonged to when events happened.

    What no runtime of this host knows may be a pod or a Service of its Kubernetes cluster.
    """

    def __init__(self, containers: Containers, host: int = 0) -> None:
        """Follow changes of containers from now on: it must precede the first one.

        `host` is the inode of the host's network namespace.
        """
        self._holdings = Holdings(host or netns.host())
        self._endpoints = Endpoints(self._holdings, routes.is_on_link)
        self._cluster = containers.cluster
        containers.subscribe(self._holdings.on_change)
        self._seen = -1
        self._depends = False
        """Whether any answer that is remembered depends on the port."""
        self._shared: set[int] = set()
        self._ports: set[int] = set()
        self._foreign: set[tuple[int, str]] = set()
        self._unreported: set[int] = set()
        self._tried: set[tuple[str, int, str]] = set()
        """The addresses that were looked up since the last change."""
        self._owners: Cache[tuple[str, int], Container] = Cache(self._owner_of)
        self._raw: Cache[tuple[int, bytes, int], Container] = Cache(
            lambda key: self._owners[(ADDRESSES[key[:2]], key[2])]
        )

    def of_records(
        self, fields: Mapping[str, Sequence[Any]], owners: Sequence[Container]
    ) -> Sequence[Container]:
        """Return the owner of `daddr` and `dport` of each record, HOST if unknown.

        `timestamp` is in ns since the epoch; `owners` are those of the near ends. Of a record that
        counts, it is the owner at its first time, `min_time`, if that is so at its last, too.
        """
        found = self._of_runtimes(fields, owners)
        if self._cluster is None:
            return found
        last = fields.get("max_time", fields["timestamp"])
        versions, ends = fields["version"], fields["daddr"]

        def outgoing(place: int) -> bool:
            return "direction" in fields and fields["direction"][place] == _OUTGOING

        return self._of_cluster(
            found,
            lambda place: ADDRESSES[versions[place], ends[place]],
            fields["dport"],
            fields["netns"],
            times=(fields.get("min_time", last), last),
            outgoing=outgoing,
        )

    def _of_cluster(
        self,
        found: Sequence[Container],
        address: Callable[[int], str],
        ports: Sequence[int],
        namespaces: Sequence[int],
        *,
        times: tuple[Sequence[int], Sequence[int]],
        outgoing: Callable[[int], bool],
    ) -> Sequence[Container]:
        """Fill in the pods and Services, as seen from the host and from pods.

        `times` are the first and the last of each end, in ns since the epoch.
        """
        named = list(found)
        if self._cluster is None:
            return named
        find = lru_cache(_ENDS)(self._cluster.find)  # many sockets of a snapshot have the same end
        for place, (whose, first, last) in enumerate(zip(found, *times, strict=True)):
            if whose is not HOST:
                continue
            end = address(place), ports[place]
            far = find(*end, first, outgoing(place))
            if far is None or (first != last and find(*end, last, outgoing(place)) != far):
                continue
            if self._endpoints.is_pods(namespaces[place], last):
                named[place] = far
        return named

    def _of_runtimes(
        self, fields: Mapping[str, Sequence[Any]], owners: Sequence[Container]
    ) -> Sequence[Container]:
        """Return the containers of runtimes that `of_records` returns."""
        if not self._knows_any():
            return [HOST] * len(owners)
        namespaces, ports = fields["netns"], fields["dport"]
        self._assume_namespaces(namespaces, owners)
        if not self._unreported.isdisjoint(namespaces):
            near = zip(fields["version"], fields["saddr"], strict=True)
            self._observe_addresses(near, namespaces, owners, ADDRESSES.__getitem__)
        if self._shared and "type" in fields:
            kinds = [kind == _ACCEPT for kind in fields["type"]]
            self._listen(kinds, owners, namespaces, fields["sport"])
        versions, ends = fields["version"], fields["daddr"]

        def address(place: int) -> str:
            return ADDRESSES[versions[place], ends[place]]

        keys = zip(versions, ends, namespaces, strict=True)
        found = self._by_port(list(map(self._raw.__getitem__, keys)), address, ports, namespaces)
        last = fields.get("max_time", fields["timestamp"])
        first = fields.get("min_time", last)
        since = self._holdings.since
        if min(first, default=since) >= since:
            return found

        def at(place: int, moment: int) -> Container:
            # What has changed since an event is looked up by the event's time.
            if moment >= since:
                return found[place]
            end = (address(place), ports[place], namespaces[place], moment)
            return self._endpoints.find(*end) or HOST

        for place, (begin, end) in enumerate(zip(first, last, strict=True)):
            owner = at(place, begin)
            found[place] = owner if begin == end or owner == at(place, end) else HOST
        return found

    def with_peers(self, batch: Batch) -> Batch:
        """Return the sockets of a snapshot with a field `peer`: the owners of their far ends."""
        peer = self._of_sockets(batch)
        if self._cluster is not None:
            fields, now = batch.fields, [FOREVER - 1] * len(batch)
            namespaces = fields["netns_id"]
            sockets = list(zip(namespaces, fields["sport"], strict=True))
            states = zip(sockets, fields["state_raw"], strict=True)
            listened = {each for each, state in states if state == _LISTEN}
            protocols = fields["proto"]
            peer = self._of_cluster(
                peer,
                fields["daddr"].__getitem__,
                fields["dport"],
                namespaces,
                times=(now, now),
                # Without any listener it is not known who was connected to. An external address and
                # port may be one Service's for TCP and another's for UDP: TCP's are known.
                outgoing=lambda place: (
                    bool(listened) and sockets[place] not in listened and protocols[place] == "TCP"
                ),
            )
        return Batch({**batch.fields, "peer": peer}, batch.owners)

    def _of_sockets(self, batch: Batch) -> Sequence[Container]:
        """Return the containers of runtimes that have the far ends of a snapshot's sockets."""
        fields = batch.fields
        addresses, ports, namespaces = (fields[name] for name in ("daddr", "dport", "netns_id"))
        if not self._knows_any():
            return [HOST] * len(batch)
        self._assume_namespaces(namespaces, batch.owners)
        if self._unreported:
            self._observe_addresses(fields["saddr"], namespaces, batch.owners, str)
        if self._shared:
            listening = [
                state == _LISTEN and not shared
                for state, shared in zip(fields["state_raw"], fields["shared"], strict=True)
            ]
            self._listen(listening, batch.owners, namespaces, fields["sport"])
        found = self._owners.of(list(zip(addresses, namespaces, strict=True)))
        return self._by_port(found, addresses.__getitem__, ports, namespaces)

    def observes(self, namespace: int) -> bool:
        """Return whether addresses are learned from the sockets of a network namespace."""
        return namespace in self._unreported

    def _knows_any(self) -> bool:
        """Return whether any far end could be named."""
        self._refresh()
        return bool(self._unreported or self._cluster) or self._endpoints.any()

    def _observe_addresses(
        self,
        near: Iterable[Key],
        namespaces: Sequence[int],
        owners: Sequence[Container],
        spelled: Callable[[Key], str],
    ) -> None:
        """Record addresses of near ends; `spelled` returns the canonical form of one of `near`."""
        # A container's own hash is that of all its fields.
        distinct = zip(near, namespaces, map(id, owners), strict=True)
        for (address, namespace, _), owner in dict(zip(distinct, owners, strict=True)).items():
            if namespace not in self._unreported or not owner.id or owner.nested:
                continue
            key = (owner.id, namespace, spelled(address))
            if key not in self._tried:
                self._tried.add(key)
                self._holdings.observe(owner, *key[1:])
        if len(self._tried) > OBSERVED:
            self._tried.clear()
        self._refresh()

    def _assume_namespaces(self, namespaces: Sequence[int], owners: Sequence[Container]) -> None:
        """Update from runtime changes and from namespaces of containers without addresses."""
        self._refresh()
        # 0 is none: that of counts without room for their keys.
        distinct = set(namespaces) - {0}
        unknown = {each for each in distinct if not self._endpoints.is_known(each)}
        if not unknown:
            return
        for namespace, owner in zip(namespaces, owners, strict=True):
            if namespace not in unknown or not owner.id:
                continue
            identifier = owner.nested or owner.id
            if (namespace, identifier) not in self._foreign:
                self._foreign.add((namespace, identifier))
                if self._holdings.assume(owner, namespace):
                    unknown.discard(namespace)
        self._refresh()

    def _refresh(self) -> None:
        version = self._holdings.version
        if version != self._seen:
            self._seen = version
            self._owners.clear()
            self._raw.clear()
            self._foreign.clear()
            self._tried.clear()
            self._unreported = self._holdings.unreported()
            self._depends = False
            self._shared = self._endpoints.shared()
            self._ports = self._endpoints.ports()

    def _listen(
        self,
        listening: Sequence[bool],
        owners: Sequence[Container],
        namespaces: Sequence[int],
        ports: Sequence[int],
    ) -> None:
        """Note who listens where several containers could."""
        for listens, owner, namespace, port in zip(
            listening, owners, namespaces, ports, strict=True
        ):
            if listens and owner.id and namespace in self._shared:
                self._endpoints.listens(owner, namespace, port)

    def _owner_of(self, key: tuple[str, int]) -> Container:
        """Return whose an address is now, as seen from a network namespace."""
        by_port = self._endpoints.depends_on_port(*key)
        if by_port or by_port is None:
            self._depends = True
            return _BY_PORT if by_port else _IF_PUBLISHED
        return self._endpoints.find(key[0], 0, key[1]) or HOST

    def _by_port(
        self,
        found: list[Container],
        address: Callable[[int], str],
        ports: Sequence[int],
        namespaces: Sequence[int],
    ) -> list[Container]:
        """Fill in the answers that depend on the port; `address` is that of a place."""
        if not self._depends:
            return found
        for place, answer in enumerate(found):
            if answer is _IF_PUBLISHED and ports[place] not in self._ports:
                found[place] = HOST
            elif answer is _IF_PUBLISHED or answer is _BY_PORT:
                whose = self._endpoints.find(address(place), ports[place], namespaces[place])
                found[place] = whose or HOST
        return found
