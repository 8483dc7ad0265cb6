"""What this host looks like from where an attempt was made: collected once, then judged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ig.causes import firewall, hooks
from ig.causes.cause import WITHOUT_ANSWER, Attempt
from ig.causes.firewall import Denial
from ig.causes.freezer import all_frozen
from ig.causes.packet import SYN, Packet
from ig.causes.places import Listener, LocalPorts, Places, Unreachable
from ig.causes.translation import Rules, Translations
from ig.causes.way import Way, follow
from ig.container import Container
from ig.kernel import conntrack
from ig.kernel.nftables import Key
from ig.sockets import proc

Counters = Mapping[int, Mapping[Key, int]]
"""What the firewall's counters showed, by network namespace."""


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
    server: str = ""
    """The container that listens there, in words, where several share the namespace."""

    @property
    def listener(self) -> str:
        """Return who listens there, or whose the namespace is."""
        return self.server or self.owner

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
    def full(self) -> bool:
        """Whether something listens there and no further connection may wait."""
        return bool(self.taking) and all(each.full for each in self.taking)

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
    netns: int = 0
    answer: bool = False
    """Whether the segment is the answer, not the SYN."""

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
    doubt: str = ""
    """Where the destination may be translated to an unknown one, in words; "" if nowhere."""
    ports: LocalPorts | None = None
    """The local ports for the destination, where none was free."""
    published: bool = False
    """Whether the far end is the container that the port is published for."""
    full_tables: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """The namespaces whose connection tracking has no room, with its entries and their maximum."""


class Collector:
    """Collects evidence about attempts."""

    def __init__(
        self,
        places: Places,
        containers: Iterable[Container],
        host: int,
        former: Callable[[str], Container | None],
        whose: Callable[[Iterable[int]], Container],
    ) -> None:
        self._places = places
        self._containers = [each for each in containers if each.running]
        self._host = host
        self._former = former
        self._whose = whose
        self._unread: list[str] = []
        self._rules = Rules(places, self.owner)
        self._doubt = ""
        self._owners: dict[int, str] = {}

    def collect(
        self, attempt: Attempt, before: Counters | None = None, places: Iterable[int] = ()
    ) -> Evidence:
        """Return the evidence about an attempt; `before` is from before it was made."""
        near = self.owner(attempt.netns)
        guide = Translations(self._rules, self._holder)
        sent = Packet(attempt.source, attempt.source_port, attempt.address, attempt.port)
        way = follow(self._places, attempt.netns, sent, attempt.interface, guide)
        self._unread += [each for each in (way.gap, way.doubt) if each]
        if not self._places.complete:
            self._unread.append("network namespaces that this process may not see")
        if guide.doubt:
            self._doubt = guide.doubt
            self._unread.append(
                f"address translation of the destination ({guide.doubt}) and what follows it"
            )
        address, port = way.destination or (attempt.address, attempt.port)
        far = self._far(way.far, (address,), port, attempt) if way.far else None
        backend = self._backend(way, attempt)
        unsure = bool(backend and (guide.doubt or self._rules.of(way.far).unread))
        rules = tuple(self._firewall(attempt, way, before, unsure))
        former = None if far else self._former(address)
        stages = (*way.hops, *((way.end,) if way.end else ()))
        named = {attempt.netns, *(hop.netns for hop in stages), *places}
        owners = {each: self.owner(each) for each in named}
        ports = self._ports(attempt)
        unread = tuple(dict.fromkeys((*self._unread, *self._rules.unread)))
        published = self._is_published(attempt, way)
        return Evidence(
            near,
            way,
            far,
            backend,
            rules,
            former,
            unread,
            owners,
            guide.doubt,
            ports,
            published,
            self._full_tables(owners, attempt),
        )

    def _full_tables(
        self, namespaces: Iterable[int], attempt: Attempt
    ) -> dict[int, tuple[int, int]]:
        found = {}
        for each in namespaces if attempt.outcome in WITHOUT_ANSWER else ():
            with suppress(Unreachable, OSError):
                used, most = self._places.inside(each, conntrack.usage)
                if 0 < most <= used:
                    found[each] = used, most
        return found

    def _ports(self, attempt: Attempt) -> LocalPorts | None:
        if attempt.error != errno.EADDRNOTAVAIL:
            return None
        try:
            return self._places.local_ports(attempt.netns, attempt.address, attempt.port)
        except (Unreachable, OSError) as error:
            self._unread.append(f"the local ports of {self.owner(attempt.netns)}: {error}")
            return None

    def owner(self, netns: int) -> str:
        """Return whose a network namespace is, in words: the same ones each time."""
        if netns not in self._owners:
            self._owners[netns] = self._owner(netns)
        return self._owners[netns]

    def _owner(self, netns: int) -> str:
        if netns == self._host:
            return "this host"
        if names := self._names(netns):
            return f"container{'s' * (len(names) > 1)} {', '.join(names)}"
        space = self._places.namespaces.get(netns)
        others = [pid for pid in space.pids if pid != os.getpid()] if space else []
        comm = proc.comm(others[0]) if others else ""
        return f"network namespace {netns}" + (f" (of {comm})" if comm else "")

    def _names(self, netns: int) -> list[str]:
        return sorted({each.name for each in self._containers if each.netns == netns} - {""})

    def _holder(self, address: str) -> int:
        """Return the namespace of the only container with an address, 0 if there is none."""
        found = {each.netns for each in self._containers if address in each.addresses}
        return found.pop() if len(found) == 1 else 0

    def _far(self, netns: int, addresses: tuple[str, ...], port: int, attempt: Attempt) -> Far:
        owner = self.owner(netns)
        try:
            far = Far(netns, owner, self._places.listeners(netns), port, addresses)
        except (Unreachable, OSError) as error:
            self._unread.append(f"the listeners of {owner}: {error}")
            return Far(netns, owner, (), port, addresses, read=False)
        is_host, taking = netns == self._host, far.taking
        if is_host and taking and attempt.outcome != "established" and not far.full:
            return far  # who of many processes holds it explains nothing
        listening = {each.inode for each in taking or far.elsewhere}
        held = self._places.holders(netns, listening)
        frozen = held if taking else []
        paused = all_frozen(frozen or ([] if is_host else self._places.namespaces[netns].pids))
        shared = is_host or len(self._names(netns)) > 1
        server = self._whose(held).name if shared and held else ""
        return replace(far, paused=paused, server=f"container {server}" if server else "")

    def _backend(self, way: Way, attempt: Attempt) -> Far | None:
        """Return the far end behind a published port of the host."""
        if way.translations:
            return None
        every = "::" if attempt.version == 6 else "0.0.0.0"
        for each in self._containers:
            for address, port, inside in each.ports:
                at = address in (attempt.address, every, "") and port == attempt.port
                if at and each.netns and (each.base or self._host) == way.far:
                    return self._far(each.netns, each.addresses or ("",), inside, attempt)
        return None

    def _is_published(self, attempt: Attempt, way: Way) -> bool:
        ports = {(attempt.port, way.destination[1])} if way.destination else set()
        return any(
            (port, inside) in ports
            for each in self._containers
            if each.netns == way.far
            for _, port, inside in each.ports
        )

    def _firewall(
        self, attempt: Attempt, way: Way, before: Counters | None, published: bool
    ) -> Iterator[Found]:
        rules = self._rules
        for at in hooks.of(attempt, way, self._host, published):
            ruleset = rules.of(at.netns)
            verdicts = firewall.denials(ruleset, at.hook, at.packet, at.before, rules.budget)
            for line in verdicts.unread:
                rules.note(at.netns, line)
            earlier, now = (before or {}).get(at.netns, {}), ruleset.counters()
            for denial, rose in firewall.rising(verdicts.denials, earlier, now):
                told = replace(denial, certain=denial.certain and not self._doubt)
                answer = at.packet.flags != SYN
                yield Found(told, at.hook, self.owner(at.netns), rose, at.netns, answer)
