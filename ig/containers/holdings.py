"""Keep who has something, and who had it lately, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import zip_longest
from typing import Generic, TypeVar

from ig.container import Container
from ig.containers.cgroup import ID

Key = TypeVar("Key")
Identity = tuple[str, str, str]
"""Who reported a container, what its id is unique in, and the id."""

FOREVER = 1 << 63
SLACK = 100_000_000
"""ns by which a container may have begun before its runtime says so: it says so afterwards."""
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
    learned: bool = False
    """Whether an address was seen to be used, not reported."""


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
    """How many addresses were asked for that it might have."""


class History(Generic[Key]):
    """Who has what, and who had it lately."""

    def __init__(self) -> None:
        self._holdings: dict[Key, list[Holding]] = {}
        self._former: deque[tuple[Key, Holding]] = deque()

    def __bool__(self) -> bool:
        return bool(self._holdings)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._holdings)

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


def identity_of(container: Container) -> Identity:
    """Return what identifies a container."""
    # Docker's containers are containerd's too: whoever reported one first, it is the same.
    return (container.source, "" if ID.match(container.id) else container.scope, container.id)


def engine_of(container: Container) -> str:
    """Return the source of the engine that reported a container."""
    return container.source or container.runtime


def was_restarted(before: Container, now: Container) -> bool:
    """Return whether a container was started anew, its end unheard."""
    return bool(before.started and now.started > before.started + SLACK and now.pid != before.pid)
