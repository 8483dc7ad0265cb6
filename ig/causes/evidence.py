"""What this host looks like from where an attempt was made: collected once, then judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ig.causes import firewall
from ig.causes.cause import Attempt
from ig.causes.firewall import Denial
from ig.causes.freezer import all_frozen
from ig.causes.packet import SYN, SYN_ACK, Packet
from ig.causes.places import Listener, Places, Unreachable, Way
from ig.container import Container
from ig.kernel import ipvs, nftables
from ig.kernel.nftables import Key, Ruleset
from ig.kernel.routes import REFUSALS
from ig.sockets import proc

Counters = Mapping[int, Mapping[Key, int]]
"""What the firewall's counters showed, by network namespace."""

_TRANSLATING = (firewall.PREROUTING, firewall.OUTPUT)
"""The hooks where a destination is translated."""
_BRIDGE = "/proc/sys/net/bridge/bridge-nf-call-ip{}tables"


@dataclass(frozen=True, slots=True)
class Far:
    """The far end, or a published port's container, on this host."""

    netns: int
    owner: str
    """Whose it is, in words."""
    listeners: tuple[Listener, ...]
    port: int
    addresses: tuple[str, ...]
    """Those that it may be sent to at."""
    paused: bool = False
    read: bool = True
    """Whether its listeners could be read."""

    @property
    def taking(self) -> list[Listener]:
        """The listeners that receive what is sent there."""
        exact = [
            each
            for each in self.listeners
            if any(each.takes(address, self.port) for address in self.addresses)
        ]
        return [each for each in exact if each.address in self.addresses] or exact

    @property
    def elsewhere(self) -> list[Listener]:
        """The listeners on that port at other addresses."""
        taking = self.taking
        return [each for each in self.listeners if each.port == self.port and each not in taking]


@dataclass(frozen=True, slots=True)
class Found:
    """A rule that may have dropped or rejected a segment."""

    denial: Denial
    hook: int
    owner: str
    """Whose network namespace it is in, in words."""
    rose: bool
    """Whether its counter rose while the attempt was made."""

    @property
    def where(self) -> str:
        """The rule and where it is."""
        return f"{self.denial.words}, {self.owner}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found on this host about one attempt."""

    near: str
    """Whose network namespace it was made in, in words."""
    way: Way
    far: Far | None = None
    backend: Far | None = None
    """The container that the port is published for, where it is one of this host's."""
    firewall: tuple[Found, ...] = ()
    former: Container | None = None
    """The container that had the address and has ended."""
    unread: tuple[str, ...] = ()
    """What could not be looked at."""
    owners: Mapping[int, str] = field(default_factory=dict)
    """Whose each network namespace on the way is, in words."""
    translated: str = ""
    """Where the destination may be translated, in words; "" if nowhere."""


class Collector:
    """Collects evidence about attempts."""

    def __init__(
        self,
        places: Places,
        containers: Iterable[Container],
        host: int,
        former: Callable[[str], Container | None],
    ) -> None:
        self._places = places
        self._containers = [each for each in containers if each.running]
        self._host = host
        self._former = former
        self._unread: list[str] = []
        self._translated = ""

    def collect(self, attempt: Attempt, before: Counters | None = None) -> Evidence:
        """Return the evidence about an attempt; `before` is from before it was made."""
        near = self.owner(attempt.netns)
        prefer = self._holder(attempt.address)
        way = self._places.way(
            attempt.netns, attempt.address, prefer, attempt.source, attempt.interface
        )
        self._unread += dict.fromkeys(each for each in (way.gap, way.doubt) if each)
        if not self._places.complete:
            self._unread.append("network namespaces that this process may not see")
        far = self._far(way.far, (attempt.address,), attempt.port) if way.far else None
        backend = self._backend(way, attempt)
        rules = tuple(self._firewall(attempt, way, before, bool(backend)))
        former = None if far else self._former(attempt.address)
        owners = {hop.netns: self.owner(hop.netns) for hop in way.hops}
        unread = tuple(dict.fromkeys(self._unread))
        return Evidence(near, way, far, backend, rules, former, unread, owners, self._translated)

    def owner(self, netns: int) -> str:
        """Return whose a network namespace is, in words."""
        names = [each.name for each in self._containers if each.netns == netns and each.name]
        if netns == self._host:
            return "this host"
        if names:
            shared = sorted(set(names))
            return (
                f"container {shared[0]}" if len(shared) == 1 else f"containers {', '.join(shared)}"
            )
        space = self._places.namespaces.get(netns)
        comm = proc.comm(space.pids[0]) if space and space.pids else ""
        return f"network namespace {netns}" + (f" (of {comm})" if comm else "")

    def _holder(self, address: str) -> int:
        """Return the namespace of the only container with an address, 0 if there is none."""
        found = {each.netns for each in self._containers if address in each.addresses}
        return found.pop() if len(found) == 1 else 0

    def _far(self, netns: int, addresses: tuple[str, ...], port: int) -> Far:
        owner = self.owner(netns)
        try:
            far = Far(netns, owner, self._places.listeners(netns), port, addresses)
        except (Unreachable, OSError) as error:
            self._unread.append(f"the listeners of {owner}: {error}")
            return Far(netns, owner, (), port, addresses, read=False)
        return replace(far, paused=self._paused(far))

    def _paused(self, far: Far) -> bool:
        """Return whether those who hold the listener, or all processes there, are frozen."""
        if far.netns == self._host:
            return False
        held = self._places.holders(far.netns, {each.inode for each in far.taking})
        return all_frozen(held or self._places.namespaces[far.netns].pids)

    def _backend(self, way: Way, attempt: Attempt) -> Far | None:
        """Return the far end behind a published port of the host."""
        if way.far != self._host:
            return None
        every = "::" if attempt.version == 6 else "0.0.0.0"
        for each in self._containers:
            for address, port, inside in each.ports:
                at = address in (attempt.address, every, "")
                if at and port == attempt.port and each.netns and not each.base:
                    return self._far(each.netns, each.addresses or ("",), inside)
        return None

    def _firewall(
        self, attempt: Attempt, way: Way, before: Counters | None, published: bool
    ) -> Iterator[Found]:
        rulesets: dict[int, Ruleset] = {}
        for netns, hook, packet in self._hooks(attempt, way, published):
            if netns not in rulesets:
                rulesets[netns] = self._ruleset(netns)
                self._virtual(netns, attempt)
            if packet.flags == SYN and hook in _TRANSLATING:
                self._translate(rulesets[netns], netns, hook, packet)
            denials = firewall.denials(rulesets[netns], hook, packet)
            counted = rulesets[netns].counters()
            earlier = (before or {}).get(netns, {})
            for denial, rose in firewall.rising(denials, earlier, counted):
                certain = denial.certain and not self._translated
                yield Found(replace(denial, certain=certain), hook, self.owner(netns), rose)

    def _translate(self, ruleset: Ruleset, netns: int, hook: int, packet: Packet) -> None:
        if firewall.translates(ruleset, hook, packet):
            self._translates(f"by nftables, {self.owner(netns)}")

    def _virtual(self, netns: int, attempt: Attempt) -> None:
        """Note where the destination is a virtual service of IPVS."""
        with suppress(Unreachable, OSError):
            if self._places.inside(netns, lambda: ipvs.serves(attempt.address, attempt.port)):
                self._translates(f"by IPVS, {self.owner(netns)}")

    def _translates(self, where: str) -> None:
        self._translated = self._translated or where
        self._unread.append(f"address translation of the destination ({where}) and what follows it")

    def _ruleset(self, netns: int) -> Ruleset:
        try:
            ruleset = self._places.inside(netns, nftables.read)
        except (Unreachable, OSError) as error:
            ruleset = Ruleset({}, str(error))
        if ruleset.unread:
            self._unread.append(f"the firewall of {self.owner(netns)}: {ruleset.unread}")
        return ruleset

    def _hooks(
        self, attempt: Attempt, way: Way, published: bool
    ) -> Iterator[tuple[int, int, Packet]]:
        """Yield each hook that the SYN, then its answer, comes by: namespace, hook, segment.

        What is sent to a published port is mostly forwarded: then only the hooks before are known.
        """
        syn = Packet(attempt.source, attempt.source_port, attempt.address, attempt.port)
        answer = Packet(
            attempt.address,
            attempt.port,
            attempt.source or ("::" if attempt.version == 6 else "0.0.0.0"),
            attempt.source_port,
            SYN_ACK,
        )
        if way.far == attempt.netns and published:
            yield from _leaving(attempt.netns, syn, None)
            return
        if way.far == attempt.netns:
            for packet in (syn, answer):
                yield from _leaving(attempt.netns, packet, "lo")
                yield from _arriving(way.far, packet, "lo")
            return
        for place, hop in enumerate(way.hops):
            # Routes are looked up first: what they refuse is neither sent nor forwarded.
            leads = hop.forwards and hop.route.kind not in REFUSALS
            if place:
                came = replace(syn, interfaces=(hop.arrival, ""))
                yield hop.netns, firewall.PREROUTING, came
            if leads and place:
                yield from _passing(hop.netns, syn, (hop.arrival, hop.interface))
            elif leads:
                yield from _leaving(hop.netns, syn, hop.interface)
        if published:
            yield way.far, firewall.PREROUTING, replace(syn, interfaces=(way.arrival, ""))
            return
        if way.far:
            yield from _arriving(way.far, syn, way.arrival)
        if self._bridged(way, attempt):
            yield self._host, firewall.FORWARD, syn
        if way.far and attempt.source:
            yield from _leaving(way.far, answer, way.arrival)
            for hop in reversed(way.hops[1:]):
                came = replace(answer, interfaces=(hop.interface, ""))
                yield hop.netns, firewall.PREROUTING, came
                yield from _passing(hop.netns, answer, (hop.interface, hop.arrival))
        if attempt.source and way.hops:
            yield from _arriving(attempt.netns, answer, way.hops[0].interface)

    def _bridged(self, way: Way, attempt: Attempt) -> bool:
        """Return whether the host's rules may see what its bridge passes on (br_netfilter)."""
        if self._host in (attempt.netns, way.far, *(hop.netns for hop in way.hops)):
            return False
        try:
            with open(_BRIDGE.format("6" if attempt.version == 6 else ""), "rb") as file:
                return file.read(1) == b"1"
        except OSError:
            return False


def _leaving(netns: int, packet: Packet, out: str | None) -> Iterator[tuple[int, int, Packet]]:
    sent = replace(packet, interfaces=("", out))
    yield netns, firewall.OUTPUT, sent
    yield netns, firewall.POSTROUTING, sent


def _arriving(netns: int, packet: Packet, by: str) -> Iterator[tuple[int, int, Packet]]:
    received = replace(packet, interfaces=(by, ""))
    yield netns, firewall.PREROUTING, received
    yield netns, firewall.INPUT, received


def _passing(
    netns: int, packet: Packet, interfaces: tuple[str, str]
) -> Iterator[tuple[int, int, Packet]]:
    yield netns, firewall.FORWARD, replace(packet, interfaces=interfaces)
    yield netns, firewall.POSTROUTING, replace(packet, interfaces=("", interfaces[1]))
