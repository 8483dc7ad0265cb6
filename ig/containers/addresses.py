"""Say which container an address and a port belonged to: seen from where, and when.

An address is a container's within the network namespaces that reach it: the host's, and those of
the containers on the same network of the same engine. Elsewhere (an engine within a container, a
VPN) the same address is something else.

Some runtimes report no addresses. Those of their containers are learned from the sockets that these
use, where the kernel confirms that the address is the namespace's, and believed where it says that
the host is attached to the network: less is known of them than of what is reported.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from ig.container import Change, Container
from ig.containers.holdings import (
    FOREVER,
    FORMER,
    Held,
    History,
    Holding,
    Identity,
    engine_of,
    holdings_of,
    identity_of,
    was_restarted,
)
from ig.kernel import processes

HELD = 65536
"""How many containers are remembered altogether."""
LISTENERS = 4096
LEARNED = 4096
"""How many addresses that no runtime reports are remembered, of more the latest."""
ATTEMPTS = 64
"""How many addresses of one container are asked for: it may bind sockets to any number of them."""
CACHED = 4096
"""How many addresses are remembered to be, or not to be, the host's own."""


class Endpoints:
    """The containers behind addresses and published ports, now and lately, by what runtimes report.

    One thread queries; others report changes.
    """

    def __init__(
        self,
        host: int,
        is_on_link: Callable[[str], bool],
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """`host` is the inode of the host's network namespace; `now` gives ns since the epoch.

        `is_on_link` says whether an address is another's on a network that the host is attached to.
        """
        self.version = 0
        """Grows with every change that could alter an answer."""
        self.since = 0
        """When the last such change took place, in ns since the epoch."""
        self._host = host
        self._is_on_link = is_on_link
        self._now = now
        self._lock = threading.Lock()
        self._addresses: History[str] = History()
        self._published: History[tuple[str, int]] = History()
        self._namespaces: History[int] = History()
        self._joined: History[str] = History()
        self._held: dict[Identity, Held] = {}
        self._ended: OrderedDict[Identity, None] = OrderedDict()
        self._listeners: OrderedDict[tuple[int, int], Identity] = OrderedDict()
        self._learners: dict[Identity, int] = {}
        """The network namespaces of those whose addresses are learned."""
        self._learned: OrderedDict[tuple[Identity, str], None] = OrderedDict()
        self._local: dict[str, bool] = {}
        self._on_link: dict[str, bool] = {}
        self._asked_at = 0
        """The version at which `_on_link` was asked for."""
        self._inner: dict[str, int] = {}
        """The network namespaces of the engines that are not in the host's, by engine."""

    def any(self) -> bool:
        """Return whether any address or port is known."""
        return bool(self._addresses or self._published)

    def on_change(self, change: Change) -> None:
        """Apply a change of a container."""
        if change.kind == "synced":
            return
        container = change.container
        identity = identity_of(container)
        with self._lock:
            held = self._held.get(identity)
            running = container.running and change.kind not in ("exited", "removed")
            if held is not None and held.ended == FOREVER and not running:
                self._end(identity, held, container.addressed)
            elif running:
                if (
                    held is None
                    or held.ended != FOREVER
                    or was_restarted(held.container, container)
                ):
                    if held is not None and held.ended == FOREVER:
                        self._end(identity, held)
                    self._ended.pop(identity, None)
                    began = min(container.addressed or container.started, self._now())
                    held = self._held[identity] = Held(container, began)
                if container.base:
                    self._inner[engine_of(container)] = container.base
                self._update(held, container)
                if len(self._held) > HELD:
                    oldest = next(iter(self._held))
                    self._end(oldest, self._held[oldest])
                    del self._ended[oldest], self._held[oldest]

    def assume(self, owner: Container, namespace: int) -> bool:
        """Note that a container without a known network namespace acts in this one.

        A container acts before its runtime can be asked about it. An engine within a container
        reports its containers' first processes as they are numbered there. Return whether it is
        new.
        """
        with self._lock:
            if owner.nested:
                sources = ("", *self._inner) if self._inner else ()
                inner = [self._held.get((each, "", owner.nested)) for each in sources]
                held = next((each for each in inner if each and each.container.base), None)
            else:
                held = self._held.get(identity_of(owner))
            if held is None or held.container.netns or held.container.joined or held.assumed:
                return False
            held.assumed = True
            holding = Holding(held.container, held.began)
            held.holdings[("namespace", namespace)] = holding
            self._namespaces.begin(namespace, holding)
            if held.ended != FOREVER:
                self._namespaces.end(namespace, holding, held.ended)
            self.version += 1
            return True

    def listens(self, owner: Container, namespace: int, port: int) -> None:
        """Note that a container listens on a port of a network namespace."""
        with self._lock:
            self._listeners[(namespace, port)] = identity_of(owner)
            self._listeners.move_to_end((namespace, port))
            if len(self._listeners) > LISTENERS:
                self._listeners.popitem(last=False)

    def learning(self) -> set[int]:
        """Return the network namespaces of containers whose runtimes report no addresses."""
        with self._lock:
            return set(self._learners.values())

    def learn(self, owner: Container, namespace: int, address: str) -> None:
        """Note that a socket of a container's has an address in that network namespace.

        It is the container's if the namespace is known to be, and has that address. Where somebody
        had it before, it is from then on, else since the container began.
        """
        identity, key = identity_of(owner), ("learned", address)
        with self._lock:
            held = self._held.get(identity)
            if held is None or held.ended != FOREVER or held.container.netns != namespace:
                return
            if key in held.holdings or held.attempts == ATTEMPTS or not _is_usual(address):
                return
            held.attempts += 1
            if identity in self._learners and processes.has_address(held.container.pid, address):
                begin = max(held.began, self._addresses.latest_end(address))
                holding = Holding(held.container, begin, learned=True)
                held.holdings[key] = holding
                self._addresses.begin(address, holding)
                self._learned[(identity, address)] = None
                if len(self._learned) > LEARNED:
                    self._unlearn()
                self.version += 1
                self.since = max(self.since, begin)

    def _unlearn(self) -> None:
        """Forget the address that was not seen for longest."""
        (identity, address), _ = self._learned.popitem(last=False)
        holding = self._held[identity].holdings.pop(("learned", address))
        self._addresses.end(address, holding, self._now())

    def _learns(self, container: Container) -> bool:
        """Return whether a container's addresses are to be learned: the runtime reports none.

        A pod's are reported later. A user's engine may claim none: it reports no namespace.
        """
        told = container.addresses or container.pod_uid or container.base or container.moved
        return bool(container.pid and container.netns not in (0, self._host) and not told)

    def is_known(self, namespace: int) -> bool:
        """Return whether a network namespace is the host's or a container's."""
        return namespace == self._host or namespace in self._namespaces._holdings

    def shared(self) -> set[int]:
        """Return the network namespaces in which several containers are now."""
        with self._lock:
            return {
                each
                for each in self._namespaces
                if each != self._host and len(self._tenants(each, FOREVER - 1)) > 1
            }

    def ports(self) -> set[int]:
        """Return the published ports."""
        with self._lock:
            return {port for _, port in self._published}

    def depends_on_port(self, address: str, namespace: int) -> bool | None:
        """Return whether the answer differs by port, None if only by whether that is published."""
        with self._lock:
            holders = self._holders(address, namespace, FOREVER - 1)
            if holders:
                return any(len(self._sharing(each.container, FOREVER - 1)) > 1 for each in holders)
            if not self._published or not self._may_publish(address, namespace, FOREVER - 1):
                return False
        return None

    def find(
        self, address: str, port: int, namespace: int, moment: int = FOREVER - 1
    ) -> Container | None:
        """Return whose an address and port were, or whose published port; None if not known.

        `address` is in its canonical spelling, `namespace` the inode of the network namespace in
        which it was used, `moment` in ns since the epoch: the present one if none is given.
        """
        with self._lock:
            holders = self._holders(address, namespace, moment)
            if not holders and self._published:
                if not self._may_publish(address, namespace, moment):
                    return None
                holders = self._publishers(address, port, namespace, moment)
            found = self._sole(holders)
            if found is None:
                return None
            return self._listening(found.container, found.port or port, moment)

    def _update(self, held: Held, container: Container) -> None:
        """Begin and end what the container has and has not any more."""
        now = self._now()
        changed = min(container.addressed or now, now)
        first = not any(key[0] == "address" for key in held.holdings)
        identity, wanted = identity_of(container), self._wanted(held, container)
        altered = container.name != held.container.name
        held.container = container
        for key in [key for key in held.holdings if key not in wanted]:
            self._learned.pop((identity, str(key[1])), None)
            self._history(key[0]).end(key[1], held.holdings.pop(key), changed)
            self.since = max(self.since, changed)
            altered = True
        for key, each in wanted.items():
            known = held.holdings.get(key)
            if known is not None:
                known.container, known.network = container, each.network or known.network
                continue
            # An address that came after others came when the runtime says that one did.
            later = key[0] == "address" and not first and container.addressed
            each.begin = changed if later else held.began
            held.holdings[key] = each
            self._history(key[0]).begin(key[1], each)
            self.since = max(self.since, each.begin)
            altered = True
        if altered:
            self.version += 1

    def _wanted(self, held: Held, container: Container) -> dict[tuple[str, object], Holding]:
        """Return what a running container has: what is reported of it, and what was seen."""
        wanted, kept = dict(holdings_of(container)), []
        if held.assumed and not container.netns:
            kept.append("namespace")
        self._learners.pop(identity_of(container), None)
        if self._learns(container):
            self._learners[identity_of(container)] = container.netns
            if container.netns == held.container.netns:
                kept.append("learned")
        return wanted | {key: each for key, each in held.holdings.items() if key[0] in kept}

    def _end(self, identity: Identity, held: Held, moment: int = 0) -> None:
        """Note that a container has ended, at the `moment` that its runtime reports or now."""
        now = self._now()
        held.ended = now = moment if held.began < moment < now else now
        self._learners.pop(identity, None)
        for (history, key), holding in held.holdings.items():
            self._history(history).end(key, holding, now)
            self._learned.pop((identity, str(key)), None)
        if held.holdings:
            self.version += 1
            self.since = max(self.since, now)
        self._ended[identity] = None
        if len(self._ended) > FORMER:
            del self._held[self._ended.popitem(last=False)[0]]

    def _history(self, name: str) -> History[object]:
        histories: dict[str, History[object]] = {
            "address": self._addresses,  # type: ignore[dict-item]
            "learned": self._addresses,  # type: ignore[dict-item]
            "port": self._published,  # type: ignore[dict-item]
            "namespace": self._namespaces,  # type: ignore[dict-item]
            "joined": self._joined,  # type: ignore[dict-item]
        }
        return histories[name]

    def _holders(self, address: str, namespace: int, moment: int) -> Sequence[Holding]:
        """Return who has an address, as seen from a network namespace."""
        holders = self._addresses.at(address, moment)
        if any(each.learned for each in holders):
            attached = self._is_attached(address, namespace, moment)
            holders = [
                each
                for each in holders
                if attached or not each.learned or each.container.netns == namespace
            ]
        if not holders or namespace == self._host:
            return [each for each in holders if not each.container.base]
        clients = self._tenants(namespace, moment)
        networks = {network for each in clients for network in each.networks}
        engines = {engine_of(each) for each in clients}
        return [
            each
            for each in holders
            if each.container.base == namespace
            or (
                engine_of(each.container) in engines
                and (not each.network or not networks or each.network in networks)
            )
        ]

    def _is_attached(self, address: str, namespace: int, moment: int) -> bool:
        """Return whether a learned address leads to its container from a network namespace.

        It does from the host's if the host is on that network, and from that of a container which
        was seen to be on such a network itself.
        """
        if self._asked_at != self.version or len(self._on_link) >= CACHED:
            self._on_link.clear()
            self._asked_at = self.version
        if address not in self._on_link:
            self._on_link[address] = self._is_on_link(address)
        if namespace == self._host or not self._on_link[address]:
            return self._on_link[address]
        clients = (self._held.get(identity_of(each)) for each in self._tenants(namespace, moment))
        return any(key[0] == "learned" for held in clients if held for key in held.holdings)

    def _may_publish(self, address: str, namespace: int, moment: int) -> bool:
        """Return whether engines publish ports on an address, as seen from a network namespace."""
        if namespace == self._host:
            return self._is_local(address)
        loopback = ip_address(address).is_loopback
        if loopback or namespace in self._inner.values():
            # The other addresses of an engine within a container may be the host's as well.
            return loopback and namespace in self._inner.values()
        clients = self._tenants(namespace, moment)
        return bool(clients) and not any(each.base for each in clients) and self._is_local(address)

    def _publishers(
        self, address: str, port: int, namespace: int, moment: int
    ) -> Sequence[Holding]:
        """Return whose published port it is, as seen from a network namespace."""
        base = namespace if namespace in self._inner.values() else 0
        everywhere = "::" if ":" in address else "0.0.0.0"
        for bound in (address, everywhere):
            found = self._published.at((bound, port), moment)
            if found := [each for each in found if each.container.base == base]:
                return found
        return ()

    def _tenants(self, namespace: int, moment: int) -> list[Container]:
        """Return the containers in a network namespace."""
        found = {
            identity_of(each.container): each for each in self._namespaces.at(namespace, moment)
        }
        for identity in list(found):
            for each in self._joined.at(identity[2], moment):
                found.setdefault(identity_of(each.container), each)
        return [each.container for each in found.values()]

    def _namespace(self, container: Container) -> int:
        """Return the network namespace of a container, 0 if it is not known."""
        held = self._held.get(identity_of(container))
        seen = [key[1] for key in held.holdings if key[0] == "namespace"] if held else []
        return container.netns or int(str(seen[0])) if seen else container.netns

    def _sharing(self, container: Container, moment: int) -> list[Container]:
        """Return the containers in a container's network namespace that open sockets there."""
        if container.pod_uid:
            return [container]
        found = {identity_of(container): container}
        for each in self._tenants(self._namespace(container), moment):
            found.setdefault(identity_of(each), each)
        for holding in self._joined.at(container.id, moment):
            found.setdefault(identity_of(holding.container), holding.container)
        return [each for each in found.values() if not each.sandbox] or [container]

    def _listening(self, container: Container, port: int, moment: int) -> Container | None:
        """Return who listens on a port in the container's namespace; None if it is not known."""
        sharing = self._sharing(container, moment)
        if len(sharing) == 1:
            return sharing[0]
        seen = self._listeners.get((self._namespace(container), port))
        for each in sharing:
            if identity_of(each) == seen:
                return each
        exposing = [each for each in sharing if port in each.exposed]
        return exposing[0] if len(exposing) == 1 else None

    def _sole(self, holders: Sequence[Holding]) -> Holding | None:
        """Return the only holder, or one of several in one namespace; None for others."""
        if len(holders) < 2:
            return holders[0] if holders else None
        # Podman reports the addresses of a namespace for each container in it, as a CRI does.
        first, *others = (each.container for each in holders)
        namespace = self._namespace(first)
        alike = all(
            identity_of(each) == identity_of(first)
            or (first.pod_uid and each.pod_uid == first.pod_uid)
            or (namespace and self._namespace(each) == namespace)
            or (first.joined or first.id) == (each.joined or each.id)
            for each in others
        )
        return holders[0] if alike else None

    def _is_local(self, address: str) -> bool:
        known = self._local.get(address)
        if known is None:
            if len(self._local) >= CACHED:
                self._local.clear()
            known = self._local[address] = _can_bind(address)
        return known


def _is_usual(address: str) -> bool:
    """Return whether an address can be distinguished from those of other network namespaces."""
    found = ip_address(address)
    return not (
        found.is_loopback or found.is_unspecified or found.is_link_local or found.is_multicast
    )


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
