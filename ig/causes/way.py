"""The way of a connection's first segment through this host's network namespaces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from ig.causes.firewall import OUTPUT, PREROUTING
from ig.causes.packet import Packet
from ig.causes.places import Places, Unreachable
from ig.kernel import routes
from ig.kernel.routes import REFUSALS, UNANSWERED, Came, Neighbour, Route

_MOST_HOPS = 8
_FORWARDING = {
    4: ("ipv4/conf/{}/forwarding",),
    6: ("ipv6/conf/all/forwarding", "ipv6/conf/{}/force_forwarding"),
}
"""What lets a namespace forward what comes in by an interface: one of them is enough.

Source: IN_DEV_FORWARD() in ip_route_input_slow(), net/ipv4/route.c; ip6_forward(),
net/ipv6/ip6_output.c.
"""


@dataclass(frozen=True, slots=True)
class Hop:
    """A network namespace that routes a segment on, or has its destination."""

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
    came: Packet | None = None
    """The segment as it came in, or was sent."""
    went: Packet | None = None
    """The segment with the destination that it has after this namespace translated it."""
    by: str = ""
    """What translated the destination, in words; "" if nothing did."""


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
    end: Hop | None = None
    """The far namespace, where there is one."""

    @property
    def translations(self) -> list[Hop]:
        """The namespaces that translate the destination."""
        return [hop for hop in (*self.hops, *((self.end,) if self.end else ())) if hop.by]

    @property
    def destination(self) -> tuple[str, int] | None:
        """The destination at the end, where it is translated."""
        last = next(iter(reversed(self.translations)), None)
        return (last.went.destination, last.went.port) if last and last.went else None


class Guide(Protocol):
    """What a way needs to know of address translation and of containers."""

    def translated(self, netns: int, hook: int, packet: Packet) -> tuple[Packet, str]:
        """Return a segment after its destination was translated, and what did so, in words."""

    def masked(self, netns: int, packet: Packet) -> Packet:
        """Return a segment that is sent on as the next namespace gets it."""

    def prefer(self, address: str) -> int:
        """Return the namespace of the only container with an address, 0 if there is none."""


def follow(places: Places, start: int, packet: Packet, bound: str, guide: Guide) -> Way:
    """Follow the routes of a segment from a namespace, as far as they can be read.

    A next hop is taken to be on this host where an interface of a namespace has both its link
    address, as the neighbour table says, and its IP address. Where several do, as with engines
    that number their networks alike, it is the one that the guide prefers if that is among them.
    The socket is bound to the interface `bound`, if any.
    """
    hops: list[Hop] = []
    here, arrival, doubt = start, "", ""
    while len(hops) < _MOST_HOPS:
        try:
            hop = _translated(places, here, packet, (arrival, bound), guide)
        except (Unreachable, OSError) as error:
            return Way(tuple(hops), gap=f"the route: {error}", doubt=doubt)
        if hop.route.kind == "local":
            return Way(tuple(hops), here, arrival, doubt=doubt, end=hop)
        hops.append(hop)
        neighbour = hop.neighbour
        if not hop.forwards or (neighbour and neighbour.state in UNANSWERED):
            break
        found = places.having(neighbour.mac, hop.next, here) if neighbour else []
        if len(found) > 1:
            doubt = f"which of {len(found)} network namespaces with {hop.next} it leads to"
            prefer = guide.prefer(hop.went.destination if hop.went else "")
            found = [each for each in found if each[0] == prefer]
            if len(found) != 1:
                return Way(tuple(hops), gap=doubt, doubt=doubt)
        if not found:
            gap, tunnel = _last(places, hop, guide)
            return Way(tuple(hops), gap=gap, doubt=doubt or tunnel)
        packet = guide.masked(here, replace(hop.went or packet, interfaces=("", hop.interface)))
        here, arrival = found[0]
    else:
        return Way(tuple(hops), gap=f"more than {_MOST_HOPS} network namespaces", doubt=doubt)
    return Way(tuple(hops), doubt=doubt)


def _last(places: Places, hop: Hop, guide: Guide) -> tuple[str, str]:
    """Return why it is not known where a hop that no other follows leads, and what is in doubt."""
    if not hop.next:
        return "", ""
    to = hop.went.destination if hop.went else hop.next
    mac = hop.neighbour.mac if hop.neighbour else b""
    why = places.elsewhere(mac, to, hop.netns)
    if not why and guide.prefer(to):
        why = f"a container of this host has {to}"
    links = [each for each in places.interfaces(hop.netns) if each.name == hop.interface]
    if not any(each.tunnel for each in links):
        why = why or ("" if any(mac) else f"the link address of {hop.next} is not known")
        return (f"where {hop.next} on {hop.interface} leads: {why}" if why else ""), ""
    if why:
        return f"where {hop.interface} leads: {why}", ""
    return "", f"where {hop.interface} leads, and what takes or carries its segments"


def _translated(
    places: Places, here: int, packet: Packet, links: tuple[str, str], guide: Guide
) -> Hop:
    """Return how a namespace passes a segment on, with the destination that it gives it."""
    arrival, by = links[0], links[0] or links[1]

    def asked(segment: Packet) -> Hop:
        return places.inside(
            here, lambda: _hop(here, segment.destination, segment.source, arrival, by)
        )

    hop = asked(packet)
    local = hop.route.kind == "local"
    if local or hop.route.kind == "unicast":
        packet = replace(packet, to_local=local)
    packet = replace(packet, from_local=not arrival, translated=None)
    if not arrival and hop.route.kind in REFUSALS:
        return replace(hop, came=packet, went=packet)  # nothing is sent
    if arrival and not local and not hop.forwards and hop.route.kind != "unicast":
        return replace(hop, came=packet, went=packet)
    if arrival:
        went, how = guide.translated(here, PREROUTING, replace(packet, interfaces=(arrival, "")))
    else:
        out = "lo" if local else hop.interface
        went, how = guide.translated(here, OUTPUT, replace(packet, interfaces=("", out)))
    came = replace(packet, translated=went.translated)
    if not how:
        return replace(hop, came=came, went=came)
    hop = asked(went)
    went = replace(went, to_local=hop.route.kind == "local")
    return replace(hop, came=came, went=went, by=how)


def _hop(here: int, address: str, source: str, arrival: str, by: str) -> Hop:
    """Return how this thread's namespace, with that id, routes to an address."""
    links = routes.interfaces()
    index = next((each.index for each in links if each.name == by), 0)
    forwards = not arrival or _forwards(6 if ":" in address else 4, arrival)
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


def _forwards(version: int, arrival: str) -> bool:
    """Return whether this thread's namespace forwards what comes in by an interface.

    It is true if that cannot be read.
    """
    found = []
    for name in _FORWARDING[version]:
        try:
            with open(f"/proc/sys/net/{name.format(arrival)}", encoding="ascii") as file:
                found.append(file.read().strip() != "0")
        except OSError:
            continue  # force_forwarding is of Linux 6.17
    return any(found) or not found
