"""The network namespaces of this host: what is in each, and the way of a segment through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ig.kernel import netns, routes
from ig.kernel.netns import Namespace
from ig.kernel.routes import REFUSALS, UNANSWERED, Came, Interface, Neighbour, Route
from ig.memo import Cache
from ig.sockets import proc, sock_diag
from ig.sockets.proc import LISTEN

Result = TypeVar("Result")

_MOST_HOPS = 8
_FRESH = 1.0  # seconds for which the host's namespaces are not looked for again
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


class Unreachable(Exception):
    """A network namespace cannot be entered, or does not exist any more."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A network namespace that routes a segment on."""

    netns: int
    route: Route
    arrival: str
    """The interface that the segment comes in by, "" in the first."""
    interface: str = ""
    """The interface that it goes out by, "" if none."""
    next: str = ""
    """The address of the next hop."""
    neighbour: Neighbour | None = None
    forwards: bool = True
    """Whether the namespace forwards what comes from others."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way of a segment through this host's network namespaces."""

    hops: tuple[Hop, ...]
    far: int = 0
    """The namespace that has the destination; 0 if it is not on this host, or not known."""
    arrival: str = ""
    """The interface that the segment comes in there by."""
    gap: str = ""
    """Why it is not known any further, "" where it is, as far as it is on this host."""
    doubt: str = ""
    """What made it ambiguous, "" if nothing."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket."""

    address: str
    port: int
    waiting: int
    """Connections that wait to be accepted."""
    backlog: int
    """How many may wait."""
    inode: int

    def takes(self, address: str, port: int) -> bool:
        """Return whether it receives what is sent there; one on `::` may be of IPv6 only."""
        every = ("::",) if ":" in address else ("0.0.0.0", "::")
        return self.port == port and self.address in (address, *every)

    @property
    def full(self) -> bool:
        """Whether no further connection may wait: sk_acceptq_is_full() of include/net/sock.h."""
        return self.waiting > self.backlog


class Places:
    """The network namespaces that exist now; one thread at a time may ask."""

    def __init__(self) -> None:
        self._found = netns.find()
        self._until = time.monotonic() + _FRESH
        self._interfaces: Cache[int, tuple[Interface, ...]] = Cache(self._asked_interfaces)

    @property
    def stale(self) -> bool:
        """Whether the host's namespaces should be looked for again."""
        return time.monotonic() > self._until

    @property
    def namespaces(self) -> dict[int, Namespace]:
        """Return the namespaces by id."""
        return self._found.namespaces

    @property
    def complete(self) -> bool:
        """Whether all namespaces of this host are among them."""
        return self._found.complete and self._found.all_processes

    def inside(self, identifier: int, act: Callable[[], Result]) -> Result:
        """Return what `act` returns in a namespace. Raises Unreachable, OSError."""
        namespace = self.namespaces.get(identifier)
        if namespace is not None:
            for entered, result in netns.visit(
                [namespace], lambda _, entered: (entered, act() if entered else None)
            ):
                if entered and result is not None:
                    return result
        raise Unreachable(f"network namespace {identifier} cannot be entered")

    def each(self, act: Callable[[], Result]) -> Iterator[tuple[int, Result]]:
        """Yield what `act` returns in each namespace that can be entered."""

        def one(space: Namespace, entered: bool) -> tuple[int, Result | None]:
            try:
                return space.id, act() if entered else None
            except OSError:
                return space.id, None

        for identifier, result in netns.visit(list(self.namespaces.values()), one):
            if result is not None:
                yield identifier, result

    def way(
        self, start: int, address: str, prefer: int = 0, source: str = "", bound: str = ""
    ) -> Way:
        """Follow the routes from a namespace to an address, as far as they can be read.

        A next hop is taken to be on this host where an interface of a namespace has both its link
        address, as the neighbour table says, and its IP address. Where several do, as with engines
        that number their networks alike, it is `prefer` if that is among them. The segment comes
        from `source`, and its socket is bound to the interface `bound`, if any.
        """
        hops: list[Hop] = []
        here, arrival, doubt = start, "", ""
        while len(hops) < _MOST_HOPS:
            by = arrival or bound
            try:
                hop = self.inside(here, lambda: self._hop(here, address, source, arrival, by))  # noqa: B023 - it is called at once
            except (Unreachable, OSError) as error:
                return Way(tuple(hops), gap=f"the route: {error}", doubt=doubt)
            if hop.route.kind == "local":
                return Way(tuple(hops), here, arrival, doubt=doubt)
            hops.append(hop)
            neighbour = hop.neighbour
            if not hop.forwards or not neighbour or neighbour.state in UNANSWERED:
                break
            found = self._holders(neighbour.mac, hop.next, here)
            if len(found) > 1:
                doubt = f"which of {len(found)} network namespaces with {hop.next} it leads to"
                found = [each for each in found if each[0] == prefer]
                if len(found) != 1:
                    return Way(tuple(hops), gap=doubt, doubt=doubt)
            if not found:
                break
            here, arrival = found[0]
        else:
            return Way(tuple(hops), gap=f"more than {_MOST_HOPS} network namespaces", doubt=doubt)
        return Way(tuple(hops), doubt=doubt)

    def _hop(self, here: int, address: str, source: str, arrival: str, by: str) -> Hop:
        """Return how this thread's namespace, with that id, routes to an address."""
        links = routes.interfaces()
        index = next((each.index for each in links if each.name == by), 0)
        forwards = not arrival or _forwards(6 if ":" in address else 4)
        came = Came(source, 0, 0 if arrival else index)
        if arrival and forwards and source:
            came = Came(source, index)
        elif arrival:
            came = Came()  # the kernel looks up no route for what it does not forward
        found = routes.route(address, came)
        if found.kind == "local" or found.kind in REFUSALS:
            return Hop(here, found, arrival, forwards=forwards)
        name = next((each.name for each in links if each.index == found.interface), "")
        next_hop = found.gateway or address
        known = routes.neighbour(next_hop, found.interface)
        return Hop(here, found, arrival, name, next_hop, known, forwards)

    def _holders(self, mac: bytes, address: str, other: int) -> list[tuple[int, str]]:
        """Return the namespaces and interfaces that have a link address and an IP address."""
        if not any(mac):
            return []
        return [
            (identifier, interface.name)
            for identifier in self.namespaces
            if identifier != other
            for interface in self._interfaces[identifier]
            if interface.mac == mac and interface.up and address in interface.addresses
        ]

    def _asked_interfaces(self, identifier: int) -> tuple[Interface, ...]:
        try:
            return tuple(self.inside(identifier, routes.interfaces))
        except (Unreachable, OSError):
            return ()

    def listeners(self, identifier: int) -> tuple[Listener, ...]:
        """Return the listening TCP sockets of a namespace. Raises Unreachable, OSError."""
        fields = self.inside(identifier, lambda: sock_diag.ask("TCP", 1 << LISTEN))
        names = ("saddr", "sport", "recv_q", "send_q", "ino")
        rows = zip(*(fields[name] for name in names), strict=True)
        return tuple(Listener(*row) for row in rows)

    def holders(self, identifier: int, inodes: set[int]) -> list[int]:
        """Return the processes in a namespace that hold one of the sockets."""
        held = proc.holders(self.namespaces[identifier].pids, inodes)
        return sorted({pid for each in held.values() for pid, _ in each})


def _forwards(version: int) -> bool:
    """Return whether this thread's namespace forwards; true if that cannot be read."""
    try:
        with open(f"/proc/sys/{_FORWARDING[version]}", encoding="ascii") as file:
            return file.read().strip() != "0"
    except OSError:
        return True
