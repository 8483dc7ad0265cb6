"""The network namespaces of this host, and what is in each."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ig.kernel import netns, netns_finder, nftables, routes
from ig.kernel.netns import Namespace
from ig.kernel.nftables import Ruleset
from ig.kernel.routes import Interface
from ig.memo import Cache
from ig.sockets import proc, sock_diag
from ig.sockets.proc import ALL_STATES, LISTEN, V6ONLY

Result = TypeVar("Result")

_FRESH = 1.0  # seconds for which the host's namespaces are not looked for again
_MOST_RULES = 50_000  # rules, and elements of their sets, that are kept


class Unreachable(Exception):
    """A network namespace cannot be entered, or does not exist any more."""


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
    v6only: bool = False
    """Whether it takes no IPv4 where its address is `::`."""

    @property
    def place(self) -> str:
        """Its address, in words."""
        return f"{self.address} (IPv6 only)" if self.v6only else self.address

    def takes(self, address: str, port: int) -> bool:
        """Return whether it receives what is sent there."""
        both = () if self.v6only else ("::",)
        every = ("::",) if ":" in address else ("0.0.0.0", *both)
        return self.port == port and self.address in (address, *every)

    @property
    def full(self) -> bool:
        """Whether no further connection may wait: sk_acceptq_is_full() of include/net/sock.h."""
        return self.waiting > self.backlog


@dataclass(frozen=True, slots=True)
class LocalPorts:
    """The local ports that the kernel chooses from for connections to one destination."""

    first: int
    last: int
    usable: int
    """How many of them are not reserved."""
    used: int
    """How many connections to the destination have."""

    @property
    def exhausted(self) -> bool:
        """Whether none may be left: of an odd number, the kernel looks for all but one.

        Source: __inet_hash_connect(), net/ipv4/inet_hashtables.c.
        """
        return self.used >= self.usable - (self.last - self.first + 1) % 2


class Places:
    """The network namespaces that exist now; one thread at a time may ask."""

    def __init__(self) -> None:
        self.moment = time.time_ns()
        """When it was looked for them, in ns since the epoch."""
        self._found = netns_finder.find()
        self._until = time.monotonic() + _FRESH
        self._partly = False
        """Whether a namespace has more interfaces, or addresses, than are read."""
        self._interfaces: Cache[int, tuple[Interface, ...]] = Cache(self._asked_interfaces)
        self._holders: Cache[tuple[int, frozenset[int]], list[int]] = Cache(self._found_holders)
        self._rulesets: dict[int, tuple[int, Ruleset]] = {}
        """The rules that were read last, with the number of their generation."""

    @property
    def stale(self) -> bool:
        """Whether the host's namespaces should be looked for again."""
        return time.monotonic() > self._until

    @property
    def age(self) -> float:
        """Return the seconds since it was looked for them."""
        return time.monotonic() - self._until + _FRESH

    @property
    def namespaces(self) -> dict[int, Namespace]:
        """Return the namespaces by id."""
        return self._found.namespaces

    @property
    def complete(self) -> bool:
        """Whether all namespaces of this host, and their interfaces, are among them."""
        return self._found.complete and self._found.all_processes and not self._partly

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

    def having(self, mac: bytes, address: str, other: int) -> list[tuple[int, str]]:
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

    def elsewhere(self, mac: bytes, address: str, other: int) -> str:
        """Return why a segment may lead to another namespace than this one, "" if nothing says so.

        One has that address, or an interface with the link address `mac` of the next hop.
        """
        for identifier in self.namespaces:
            for interface in self._interfaces[identifier] if identifier != other else ():
                if address in interface.addresses:
                    return f"network namespace {identifier} has {address}"
                if any(mac) and interface.mac == mac:
                    return f"network namespace {identifier} has the next hop's link address"
        return ""

    def interfaces(self, identifier: int) -> tuple[Interface, ...]:
        """Return the interfaces of a namespace, none where it cannot be entered."""
        return self._interfaces[identifier]

    def _asked_interfaces(self, identifier: int) -> tuple[Interface, ...]:
        try:
            return tuple(self.inside(identifier, routes.interfaces))
        except OSError as error:
            self._partly |= error.errno == errno.EMSGSIZE
            return ()
        except Unreachable:
            return ()

    def listeners(self, identifier: int) -> tuple[Listener, ...]:
        """Return the listening TCP sockets of a namespace. Raises Unreachable, OSError."""
        fields = self.inside(identifier, lambda: sock_diag.ask("TCP", 1 << LISTEN, more=(V6ONLY,)))
        names = ("saddr", "sport", "recv_q", "send_q", "ino", "v6only")
        rows = zip(*(fields[name] for name in names), strict=True)
        return tuple(Listener(*row) for row in rows)

    def local_ports(self, identifier: int, address: str, port: int) -> LocalPorts:
        """Return the local ports of a namespace for a destination. Raises Unreachable, OSError."""
        return self.inside(identifier, lambda: _local_ports(address, port))

    def ruleset(self, identifier: int) -> Ruleset:
        """Return the nftables rules of a namespace, with their sets; counters may be older.

        They are read again if a rule has changed. Raises Unreachable, OSError.
        """

        def read() -> tuple[int, Ruleset]:
            now = nftables.generation()
            known = self._rulesets.get(identifier)
            if known and known[0] == now >= 0:
                return known
            return now, nftables.read(with_sets=True)

        found = self.inside(identifier, read)
        self._rulesets.pop(identifier, None)
        left = _MOST_RULES - found[1].size
        if left >= 0:
            while self._rulesets and sum(each.size for _, each in self._rulesets.values()) > left:
                del self._rulesets[next(iter(self._rulesets))]
            self._rulesets[identifier] = found
        return found[1]

    def holders(self, identifier: int, inodes: set[int]) -> list[int]:
        """Return the processes in a namespace that hold one of the sockets."""
        return self._holders[identifier, frozenset(inodes)]

    def _found_holders(self, key: tuple[int, frozenset[int]]) -> list[int]:
        held = proc.holders(self.namespaces[key[0]].pids, key[1]) if key[1] else {}
        return sorted({pid for each in held.values() for pid, _ in each})


def _local_ports(address: str, port: int) -> LocalPorts:
    first, last = (int(each) for each in _setting("ip_local_port_range").split())
    reserved: set[int] = set()
    for part in _setting("ip_local_reserved_ports").strip().split(","):
        low, _, high = part.partition("-")
        if low:
            reserved |= set(range(max(int(low), first), min(int(high or low), last) + 1))
    fields = sock_diag.ask("TCP", ALL_STATES & ~(1 << LISTEN))
    rows = zip(*(fields[name] for name in ("daddr", "dport", "sport")), strict=True)
    used = {own for to, at, own in rows if (to, at) == (address, port) and first <= own <= last}
    usable = last - first + 1 - len(reserved)
    return LocalPorts(first, last, usable, len(used - reserved))


def _setting(name: str) -> str:
    """Return a setting of this thread's namespace, for both versions of IP. Raises OSError."""
    with open(f"/proc/sys/net/ipv4/{name}", encoding="ascii") as file:
        return file.read()
