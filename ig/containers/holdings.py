"""What containers have, and lately had: addresses, published ports, network namespaces.

Some runtimes report no addresses. Those of their containers are observed on the sockets that these
use, where the kernel confirms that the address is the namespace's.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import zip_longest
from typing import Any, Generic, TypeVar

from ig.container import Change, Container, Identity
from ig.kernel import processes

Key = TypeVar("Key")

HELD = 65536
"""How many containers are remembered altogether."""
OBSERVED = 4096
"""How many addresses that no runtime reports are remembered, of more the latest."""
ATTEMPTS = 64
"""How many addresses of one container are looked up: it may bind sockets to any number of them."""
FOREVER = 1 << 63
SLACK = 100_000_000
"""ns by which a container may have begun before the time of its start that a runtime reports."""
FORMER = 4096
"""How many former holders of each kind of key are remembered, and how many ended containers."""
EACH = 16
"""How many former holders of one key are remembered."""


@dataclass(slots=True)
class Holding:
    """A container that has, or had, something from `begin` until `end`, in ns since the epoch."""

    container: Container
    begin: int
    end: int = FOREVER
    network: str = ""
    """The network that an address is of; empty where it is not known."""
    port: int = 0
    """The port of the container's that a published port leads to."""
    observed: bool = False
    """Whether an address was observed on a socket, not reported."""


@dataclass(slots=True)
class Held:
    """What one container holds: by history and key."""

    container: Container
    began: int = 0
    ended: int = FOREVER
    holdings: dict[tuple[str, object], Holding] = field(default_factory=dict)
    assumed: bool = False
    """Whether its network namespace was seen, not reported."""
    attempts: int = 0
    """How many addresses were looked up that it might have."""


class History(Generic[Key]):
    """Who has what, and who had it lately."""

    def __init__(self) -> None:
        self._holdings: dict[Key, list[Holding]] = {}
        self._former: deque[tuple[Key, Holding]] = deque()

    def __bool__(self) -> bool:
        return bool(self._holdings)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._holdings)

    def __contains__(self, key: Key) -> bool:
        return key in self._holdings

    def begin(self, key: Key, holding: Holding) -> None:
        """Remember the holding of a key."""
        self._holdings.setdefault(key, []).append(holding)

    def end(self, key: Key, holding: Holding, moment: int) -> None:
        """Note that a holding has ended; the oldest of too many that have is forgotten."""
        holding.end = max(moment, holding.begin)
        self._former.append((key, holding))
        ended = [each for each in self._holdings[key] if each.end != FOREVER]
        if len(ended) > EACH:
            self._forget(key, ended[0])
        if len(self._former) > FORMER:
            self._forget(*self._former.popleft())

    def latest_end(self, key: Key) -> int:
        """Return when the last of a key's holdings that have ended did, 0 if none has."""
        ends = (each.end for each in self._holdings.get(key, ()))
        return max((end for end in ends if end != FOREVER), default=0)

    def _forget(self, key: Key, holding: Holding) -> None:
        left = [each for each in self._holdings.get(key, ()) if each is not holding]
        if left:
            self._holdings[key] = left
        else:
            self._holdings.pop(key, None)

    def at(self, key: Key, moment: int) -> list[Holding]:
        """Return the holdings of a key at a moment; if there was none, those that just began."""
        holdings = self._holdings.get(key)
        if not holdings:
            return []
        there = [each for each in holdings if each.begin <= moment < each.end]
        return there or [each for each in holdings if each.begin - SLACK <= moment < each.end]


def holdings_of(container: Container) -> Iterator[tuple[tuple[str, object], Holding]]:
    """Yield what is reported of a running container: the history and the key, and the holding."""
    for address, network in zip_longest(container.addresses, container.networks, fillvalue=""):
        if address and not (ip_address(address).is_loopback or ip_address(address).is_unspecified):
            yield ("address", address), Holding(container, 0, network=network)
    for address, port, inside in container.ports:
        key = (address or "0.0.0.0", port)
        yield ("port", key), Holding(container, 0, port=inside)
    if container.netns:
        yield ("namespace", container.netns), Holding(container, 0)
    if container.joined:
        yield ("joined", container.joined), Holding(container, 0)


class Holdings:
    """What containers have, and lately had, by what runtimes report and by what was seen.

    One thread queries, and holds the `lock`; others report changes.
    """

    def __init__(self, host: int, now: Callable[[], int] = time.time_ns) -> None:
        """`host` is the inode of the host's network namespace; `now` returns ns since the epoch."""
        self.host = host
        self.lock = threading.Lock()
        self.version = 0
        """Grows with every change that could alter an answer."""
        self.since = 0
        """When the last such change took place, in ns since the epoch."""
        self.addresses: History[str] = History()
        self.published: History[tuple[str, int]] = History()
        self.namespaces: History[int] = History()
        self.joined: History[str] = History()
        self._histories: Mapping[str, History[Any]] = {
            "address": self.addresses,
            "observed": self.addresses,
            "port": self.published,
            "namespace": self.namespaces,
            "joined": self.joined,
        }
        self.held: dict[Identity, Held] = {}
        self.inner: dict[str, int] = {}
        """The network namespaces of the engines that are not in the host's, by engine."""
        self._now = now
        self._ended: OrderedDict[Identity, None] = OrderedDict()
        self._unreported: dict[Identity, int] = {}
        """The network namespaces of those whose addresses are not reported."""
        self._observed: OrderedDict[tuple[Identity, str], None] = OrderedDict()

    def on_change(self, change: Change) -> None:
        """Apply a change of a container."""
        if change.kind == "synced":
            return
        container = change.container
        identity = container.identity
        running = container.running and change.kind not in ("exited", "removed")
        with self.lock:
            held = self.held.get(identity)
            if held is not None and held.ended == FOREVER:
                if not running:
                    self._end(identity, held, container.addressed)
                elif _was_restarted(held.container, container):
                    self._end(identity, held)
            if not running:
                return
            if held is None or held.ended != FOREVER:
                self._ended.pop(identity, None)
                began = min(container.addressed or container.started, self._now())
                held = self.held[identity] = Held(container, began)
            if container.base:
                self.inner[container.engine] = container.base
            self._update(held, container)
            if len(self.held) > HELD:
                oldest = next(iter(self.held))
                self._end(oldest, self.held[oldest])
                del self._ended[oldest], self.held[oldest]

    def assume(self, owner: Container, namespace: int) -> bool:
        """Note that a container without a known network namespace acts in this one.

        A container acts before its runtime can be asked about it. An engine within a container
        reports its containers' first processes as they are numbered there. Return whether it is
        new.
        """
        with self.lock:
            if owner.nested:
                sources = ("", *self.inner) if self.inner else ()
                inner = [self.held.get((each, "", owner.nested)) for each in sources]
                held = next((each for each in inner if each and each.container.base), None)
            else:
                held = self.held.get(owner.identity)
            if held is None or held.container.netns or held.container.joined or held.assumed:
                return False
            held.assumed = True
            holding = Holding(held.container, held.began)
            held.holdings[("namespace", namespace)] = holding
            self.namespaces.begin(namespace, holding)
            if held.ended != FOREVER:
                self.namespaces.end(namespace, holding, held.ended)
            self.version += 1
            return True

    def unreported(self) -> set[int]:
        """Return the network namespaces of containers whose runtimes report no addresses."""
        with self.lock:
            return set(self._unreported.values())

    def observe(self, owner: Container, namespace: int, address: str) -> None:
        """Note that a socket of a container's has an address in that network namespace.

        It is the container's if the namespace is known to be, and has that address. Where somebody
        had it before, it is from then on, else since the container began.
        """
        identity, key = owner.identity, ("observed", address)
        with self.lock:
            held = self.held.get(identity)
            if held is None or held.ended != FOREVER or held.container.netns != namespace:
                return
            if key in held.holdings or held.attempts == ATTEMPTS or not is_usual(address):
                return
            held.attempts += 1
            if identity in self._unreported and processes.has_address(held.container.pid, address):
                begin = max(held.began, self.addresses.latest_end(address))
                holding = Holding(held.container, begin, observed=True)
                held.holdings[key] = holding
                self.addresses.begin(address, holding)
                self._observed[(identity, address)] = None
                if len(self._observed) > OBSERVED:
                    (of, oldest), _ = self._observed.popitem(last=False)
                    forgotten = self.held[of].holdings.pop(("observed", oldest))
                    self.addresses.end(oldest, forgotten, self._now())
                self.version += 1
                self.since = max(self.since, begin)

    def _is_unreported(self, container: Container) -> bool:
        """Return whether a container's addresses are to be observed: no runtime reports them.

        A pod's are reported later. A user's engine may claim none: it reports no namespace.
        """
        reported = container.addresses or container.pod_uid or container.base or container.moved
        return bool(container.pid and container.netns not in (0, self.host) and not reported)

    def _update(self, held: Held, container: Container) -> None:
        """Begin and end what the container has and has not any more."""
        now = self._now()
        changed = min(container.addressed or now, now)
        first = not any(key[0] == "address" for key in held.holdings)
        identity, wanted = container.identity, self._wanted(held, container)
        altered = container.name != held.container.name
        held.container = container
        for key in [key for key in held.holdings if key not in wanted]:
            self._observed.pop((identity, str(key[1])), None)
            self._histories[key[0]].end(key[1], held.holdings.pop(key), changed)
            self.since = max(self.since, changed)
            altered = True
        for key, each in wanted.items():
            known = held.holdings.get(key)
            if known is not None:
                known.container, known.network = container, each.network or known.network
                continue
            # An address that follows others begins when the runtime reports the change.
            later = key[0] == "address" and not first and container.addressed
            each.begin = changed if later else held.began
            held.holdings[key] = each
            self._histories[key[0]].begin(key[1], each)
            self.since = max(self.since, each.begin)
            altered = True
        if altered:
            self.version += 1

    def _wanted(self, held: Held, container: Container) -> dict[tuple[str, object], Holding]:
        """Return what a running container has: what is reported of it, and what was seen."""
        wanted, kept = dict(holdings_of(container)), []
        if held.assumed and not container.netns:
            kept.append("namespace")
        self._unreported.pop(container.identity, None)
        if self._is_unreported(container):
            self._unreported[container.identity] = container.netns
            if container.netns == held.container.netns:
                kept.append("observed")
        return wanted | {key: each for key, each in held.holdings.items() if key[0] in kept}

    def _end(self, identity: Identity, held: Held, moment: int = 0) -> None:
        """Note that a container has ended, at the `moment` that its runtime reports or now."""
        now = self._now()
        held.ended = now = moment if held.began < moment < now else now
        self._unreported.pop(identity, None)
        for (history, key), holding in held.holdings.items():
            self._histories[history].end(key, holding, now)
            self._observed.pop((identity, str(key)), None)
        if held.holdings:
            self.version += 1
            self.since = max(self.since, now)
        self._ended[identity] = None
        if len(self._ended) > FORMER:
            del self.held[self._ended.popitem(last=False)[0]]


def _was_restarted(before: Container, now: Container) -> bool:
    """Return whether a container was started anew, its end not reported."""
    return bool(before.started and now.started > before.started + SLACK and now.pid != before.pid)


def is_usual(address: str) -> bool:
    """Return whether an address can be distinguished from those of other network namespaces."""
    found = ip_address(address)
    return not (
        found.is_loopback or found.is_unspecified or found.is_link_local or found.is_multicast
    )
