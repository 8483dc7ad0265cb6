"""The hooks of netfilter that a connection's first segment, then its answer, comes by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from ig.causes import firewall
from ig.causes.cause import Attempt
from ig.causes.packet import SYN_ACK, Packet
from ig.causes.way import Hop, Way
from ig.kernel.routes import REFUSALS

_BRIDGE = "/proc/sys/net/bridge/bridge-nf-call-ip{}tables"


@dataclass(frozen=True, slots=True)
class At:
    """A segment at a hook."""

    netns: int
    hook: int
    packet: Packet
    before: Packet | None = None
    """The segment before its addresses were translated at this hook, where they were."""


def of(attempt: Attempt, way: Way, host: int, published: bool) -> Iterator[At]:
    """Yield each hook, as far as the way is known.

    What is sent to a port of the far end that is `published` may be forwarded to what is not
    known: then only the hooks before are. `host` is the network namespace of the host.
    """
    if way.end and not way.hops:
        yield from _looped(way.end, published)
        return
    yield from _sent(way)
    if way.end and published:
        yield _incoming(way.end, way.arrival)
        return
    if way.end:
        yield from _arriving(way.end, way.arrival)
    if _is_bridged(way, attempt, host):
        yield from _bridged(way, attempt, host)
    if way.end and attempt.source:
        yield from _answered(way, way.end)
    if attempt.source and way.hops:
        yield from _returned(way.hops[0])


def _looped(end: Hop, published: bool) -> Iterator[At]:
    """Yield the hooks of what is sent to the namespace's own address."""
    yield from _leaving(end, "lo")
    if published:
        return
    yield from _arriving(end, "lo", loop=True)
    answer = _answer(end)
    for at in (firewall.OUTPUT, firewall.POSTROUTING):
        yield At(end.netns, at, replace(answer, interfaces=("", "lo")))
    for at in (firewall.PREROUTING, firewall.INPUT):
        yield At(end.netns, at, replace(answer, interfaces=("lo", "")))


def _sent(way: Way) -> Iterator[At]:
    for place, hop in enumerate(way.hops):
        # Routes are looked up first: what they refuse is neither sent nor forwarded.
        leads = hop.forwards and hop.route.kind not in REFUSALS
        if place:
            yield _incoming(hop, hop.arrival)
        if leads and place:
            yield from _passing(hop)
        elif leads:
            yield from _leaving(hop, hop.interface)


def _answered(way: Way, end: Hop) -> Iterator[At]:
    sent = replace(_answer(end), interfaces=("", way.arrival))
    yield At(end.netns, firewall.OUTPUT, sent)
    yield At(end.netns, firewall.POSTROUTING, _answer_sent(end, way.arrival), sent)
    for hop, following in reversed(list(pairwise((*way.hops[1:], end)))):
        yield from _returning(hop, following)


def _leaving(hop: Hop, out: str) -> Iterator[At]:
    came, went = _segments(hop, ("", out))
    yield At(hop.netns, firewall.OUTPUT, went, came)
    yield At(hop.netns, firewall.POSTROUTING, went)


def _segments(hop: Hop, interfaces: tuple[str | None, str | None]) -> tuple[Packet, Packet]:
    assert hop.came
    came = replace(hop.came, interfaces=interfaces)
    return came, replace(hop.went, interfaces=interfaces) if hop.went else came


def _incoming(hop: Hop, by: str) -> At:
    came, went = _segments(hop, (by, ""))
    return At(hop.netns, firewall.PREROUTING, went, came)


def _arriving(hop: Hop, by: str, loop: bool = False) -> Iterator[At]:
    _, went = _segments(hop, (by, ""))
    yield At(hop.netns, firewall.PREROUTING, went) if loop else _incoming(hop, by)
    yield At(hop.netns, firewall.INPUT, went)


def _passing(hop: Hop) -> Iterator[At]:
    _, went = _segments(hop, (hop.arrival, hop.interface))
    yield At(hop.netns, firewall.FORWARD, went)
    yield At(hop.netns, firewall.POSTROUTING, replace(went, interfaces=("", hop.interface)))


def _answer(hop: Hop, after: bool = True) -> Packet:
    """Return the answer, from the destination after or before it was translated."""
    packet = hop.went if after else hop.came
    assert packet
    turned = replace(packet.answered(), flags=SYN_ACK, translated=packet.translated)
    return replace(turned, from_local=packet.to_local, to_local=packet.from_local)


def _answer_sent(hop: Hop, out: str) -> Packet:
    return replace(_answer(hop, after=False), interfaces=("", out))


def _returning(hop: Hop, following: Hop) -> Iterator[At]:
    """Yield the hooks of the answer in a namespace that passes it on."""
    answer = _answer(hop)
    # It comes to where its source was translated to, if it was.
    to = _answer(following, after=False)
    came = replace(answer, destination=to.destination, port=to.port)
    yield At(hop.netns, firewall.PREROUTING, replace(came, interfaces=(hop.interface, "")))
    passed = replace(answer, interfaces=(hop.interface, hop.arrival))
    yield At(hop.netns, firewall.FORWARD, passed)
    sent = replace(passed, interfaces=("", hop.arrival))
    yield At(hop.netns, firewall.POSTROUTING, _answer_sent(hop, hop.arrival), sent)


def _returned(hop: Hop) -> Iterator[At]:
    """Yield the hooks of the answer where the attempt was made."""
    before = replace(_answer(hop), interfaces=(hop.interface, ""))
    yield At(hop.netns, firewall.PREROUTING, before)
    after = replace(_answer(hop, after=False), interfaces=(hop.interface, ""))
    yield At(hop.netns, firewall.INPUT, after, before)


def _is_bridged(way: Way, attempt: Attempt, host: int) -> bool:
    """Return whether the host's rules may see what its bridge passes on (br_netfilter)."""
    if host in (attempt.netns, way.far, *(hop.netns for hop in way.hops)):
        return False
    try:
        with open(_BRIDGE.format("6" if attempt.version == 6 else ""), "rb") as file:
            return file.read(1) == b"1"
    except OSError:
        return False


def _bridged(way: Way, attempt: Attempt, host: int) -> Iterator[At]:
    source, port = attempt.source, attempt.source_port
    address, to = way.destination or (attempt.address, attempt.port)
    yield At(host, firewall.FORWARD, Packet(source, port, address, to))
