"""Say which container an address and a port belonged to: seen from where, and when.

An address is a container's within the network namespaces that reach it: the host's, and those of
the containers on the same network of the same engine. Elsewhere (an engine within a container, a
VPN) the same address is something else.

An address that was observed, not reported, is used only where the host is attached to its network:
less is known of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from ig.container import Container, Identity
from ig.containers.holdings import FOREVER, Holding, Holdings
from ig.kernel import routes
from ig.memo import Cache

LISTENERS = 4096
CACHED = 4096
"""How many addresses are remembered to be, or not to be, the host's own."""


class Endpoints:
    """The containers behind addresses and published ports, now and lately."""

    def __init__(self, holdings: Holdings, is_on_link: Callable[[str], bool]) -> None:
        """`is_on_link` returns whether an address is another's on a network that the host is on."""
        self.holdings = holdings
        self._listeners: OrderedDict[tuple[int, int], Identity] = OrderedDict()
        self._local: Cache[str, bool] = Cache(routes.is_local, CACHED)
        self._on_link: Cache[str, bool] = Cache(is_on_link, CACHED)
        self._asked_at = 0
        """The version at which `_on_link` was asked for."""

    def any(self) -> bool:
        """Return whether any address or port is known."""
        return bool(self.holdings.addresses or self.holdings.published)

    def listens(self, owner: Container, namespace: int, port: int) -> None:
        """Note that a container listens on a port of a network namespace."""
        with self.holdings.lock:
            self._listeners[(namespace, port)] = owner.identity
            self._listeners.move_to_end((namespace, port))
            if len(self._listeners) > LISTENERS:
                self._listeners.popitem(last=False)

    def is_known(self, namespace: int) -> bool:
        """Return whether a network namespace is the host's or a container's."""
        return namespace == self.holdings.host or namespace in self.holdings.namespaces

    def is_pods(self, namespace: int, moment: int) -> bool:
        """Return whether a network namespace is the host's, or was a pod's at a moment."""
        if namespace == self.holdings.host:
            return True
        with self.holdings.lock:
            return any(each.pod_name for each in self._containers_in(namespace, moment))

    def shared(self) -> set[int]:
        """Return the network namespaces in which several containers are now."""
        with self.holdings.lock:
            return {
                each
                for each in self.holdings.namespaces
                if each != self.holdings.host and len(self._containers_in(each, FOREVER - 1)) > 1
            }

    def ports(self) -> set[int]:
        """Return the published ports."""
        with self.holdings.lock:
            return {port for _, port in self.holdings.published}

    def depends_on_port(self, address: str, namespace: int) -> bool | None:
        """Return whether the answer differs by port, None if only by whether that is published."""
        with self.holdings.lock:
            holders = self._holders(address, namespace, FOREVER - 1)
            if holders:
                return any(len(self._sharing(each.container, FOREVER - 1)) > 1 for each in holders)
            if not self.holdings.published or not self._may_publish(
                address, namespace, FOREVER - 1
            ):
                return False
        return None

    def find(
        self, address: str, port: int, namespace: int, moment: int = FOREVER - 1
    ) -> Container | None:
        """Return whose an address and port were, or whose published port; None if not known.

        `address` is in its canonical spelling, `namespace` the inode of the network namespace in
        which it was used, `moment` in ns since the epoch: the present one if none is given.
        """
        with self.holdings.lock:
            holders = self._holders(address, namespace, moment)
            if not holders and self.holdings.published:
                if not self._may_publish(address, namespace, moment):
                    return None
                holders = self._publishers(address, port, namespace, moment)
            found = self._only_holder(holders)
            if found is None:
                return None
            return self._listening(found.container, found.port or port, moment)

    def _holders(self, address: str, namespace: int, moment: int) -> Sequence[Holding]:
        """Return who has an address, as seen from a network namespace."""
        holders = self.holdings.addresses.at(address, moment)
        if any(each.observed for each in holders):
            attached = self._is_attached(address, namespace, moment)
            holders = [
                each
                for each in holders
                if attached or not each.observed or each.container.netns == namespace
            ]
        if not holders or namespace == self.holdings.host:
            return [each for each in holders if not each.container.base]
        clients = self._containers_in(namespace, moment)
        networks = {network for each in clients for network in each.networks}
        engines = {each.engine for each in clients}
        return [
            each
            for each in holders
            if each.container.base == namespace
            or (
                each.container.engine in engines
                and (not each.network or not networks or each.network in networks)
            )
        ]

    def _is_attached(self, address: str, namespace: int, moment: int) -> bool:
        """Return whether an observed address leads to its container from a network namespace.

        It does from the host's if the host is on that network, and from that of a container which
        was seen to be on such a network itself.
        """
        if self._asked_at != self.holdings.version:
            self._on_link.clear()
            self._asked_at = self.holdings.version
        if namespace == self.holdings.host or not self._on_link[address]:
            return self._on_link[address]
        clients = (
            self.holdings.held.get(each.identity) for each in self._containers_in(namespace, moment)
        )
        return any(key[0] == "observed" for held in clients if held for key in held.holdings)

    def _may_publish(self, address: str, namespace: int, moment: int) -> bool:
        """Return whether engines publish ports on an address, as seen from a network namespace."""
        if namespace == self.holdings.host:
            return self._local[address]
        loopback = ip_address(address).is_loopback
        if loopback or namespace in self.holdings.inner.values():
            # The other addresses of an engine within a container may be the host's as well.
            return loopback and namespace in self.holdings.inner.values()
        clients = self._containers_in(namespace, moment)
        return bool(clients) and not any(each.base for each in clients) and self._local[address]

    def _publishers(
        self, address: str, port: int, namespace: int, moment: int
    ) -> Sequence[Holding]:
        """Return whose published port it is, as seen from a network namespace."""
        base = namespace if namespace in self.holdings.inner.values() else 0
        everywhere = "::" if ":" in address else "0.0.0.0"
        for bound in (address, everywhere):
            found = self.holdings.published.at((bound, port), moment)
            if found := [each for each in found if each.container.base == base]:
                return found
        return ()

    def _containers_in(self, namespace: int, moment: int) -> list[Container]:
        """Return the containers in a network namespace."""
        found = {
            each.container.identity: each for each in self.holdings.namespaces.at(namespace, moment)
        }
        for identity in list(found):
            for each in self.holdings.joined.at(identity[2], moment):
                found.setdefault(each.container.identity, each)
        return [each.container for each in found.values()]

    def _namespace(self, container: Container) -> int:
        """Return the network namespace of a container, 0 if it is not known."""
        held = self.holdings.held.get(container.identity)
        seen = [key[1] for key in held.holdings if key[0] == "namespace"] if held else []
        return container.netns or int(str(seen[0])) if seen else container.netns

    def _sharing(self, container: Container, moment: int) -> list[Container]:
        """Return the containers in a container's network namespace that open sockets there."""
        if container.pod_uid:
            return [container]
        found = {container.identity: container}
        for each in self._containers_in(self._namespace(container), moment):
            found.setdefault(each.identity, each)
        for holding in self.holdings.joined.at(container.id, moment):
            found.setdefault(holding.container.identity, holding.container)
        return [each for each in found.values() if not each.sandbox] or [container]

    def _listening(self, container: Container, port: int, moment: int) -> Container | None:
        """Return who listens on a port in the container's namespace; None if it is not known."""
        sharing = self._sharing(container, moment)
        if len(sharing) == 1:
            return sharing[0]
        seen = self._listeners.get((self._namespace(container), port))
        for each in sharing:
            if each.identity == seen:
                return each
        exposing = [each for each in sharing if port in each.exposed]
        return exposing[0] if len(exposing) == 1 else None

    def _only_holder(self, holders: Sequence[Holding]) -> Holding | None:
        """Return the only holder, or one of several in one namespace; None for others."""
        if len(holders) < 2:
            return holders[0] if holders else None
        # Podman reports the addresses of a namespace for each container in it, as a CRI does.
        first, *others = (each.container for each in holders)
        namespace = self._namespace(first)
        alike = all(
            each.identity == first.identity
            or (first.pod_uid and each.pod_uid == first.pod_uid)
            or (namespace and self._namespace(each) == namespace)
            or (first.joined or first.id) == (each.joined or each.id)
            for each in others
        )
        return holders[0] if alike else None
