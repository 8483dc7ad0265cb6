"""Where network namespaces of this host translate a connection's addresses to.

Connection tracking is asked first, for this one connection. It has no entry of a connection that
was refused or dropped: then the rules say where they would translate it to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ig.causes import firewall
from ig.causes.expressions import Budget
from ig.causes.firewall import PREROUTING, Translation, Verdicts
from ig.causes.packet import Packet
from ig.causes.places import Places, Unreachable
from ig.causes.xtables import To
from ig.kernel import conntrack, ipvs
from ig.kernel.nftables import Ruleset

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_NAMED = 3  # destinations that a doubt names


@dataclass
class Rules:
    """The nftables rules of network namespaces, read once each."""

    places: Places
    owner: Callable[[int], str]
    unread: dict[str, None] = field(default_factory=dict)
    """What could not be read, in words."""
    budget: Budget = field(default_factory=Budget)
    """How many rules are still looked at."""
    _read: dict[int, Ruleset] = field(default_factory=dict)

    def of(self, netns: int) -> Ruleset:
        """Return the rules of a namespace, with their sets."""
        if netns not in self._read:
            try:
                found = self.places.ruleset(netns)
            except (Unreachable, OSError) as error:
                found = Ruleset({}, str(error), "nftables")
            links = {each.name: each.index for each in self.places.interfaces(netns)}
            self._read[netns] = replace(found, interfaces=links)
            if found.unread:
                self.note(netns, found.unread)
        return self._read[netns]

    def note(self, netns: int, what: str) -> None:
        """Note what is not known of the rules of a namespace."""
        self.unread[f"the firewall of {self.owner(netns)}: {what}"] = None


class Translations:
    """Follows one connection through address translations: the guide of its way."""

    def __init__(self, rules: Rules, prefer: Callable[[str], int]) -> None:
        self.doubt = ""
        """Where the destination may be translated to an unknown one, in words; "" if nowhere."""
        self.prefer = prefer
        """Returns the namespace of the only container with an address, 0 if there is none."""
        self._rules = rules

    def translated(self, netns: int, hook: int, packet: Packet) -> tuple[Packet, str]:
        """Return a segment after its destination was translated, and what did so, in words."""
        ruleset = self._rules.of(netns)
        found = firewall.translations(ruleset, hook, packet, self._rules.budget)
        for line in found.unread:
            self._rules.note(netns, line)
        service = self._service(netns, packet)
        if not (found.translations or service or ruleset.unread):
            return replace(packet, translated=False), ""
        entry = self._entry(netns, packet)
        to: To | None
        if entry and (entry.source, entry.source_port) != (packet.destination, packet.port):
            to, how = To(entry.source, entry.source_port), "connection tracking"
        elif entry and not service:
            return replace(packet, translated=False), ""
        elif service:
            to, how = To(*service.server) if service.server else None, "IPVS"
        else:
            to, how = _only(found, bool(ruleset.unread)), ""
        where = self._rules.owner(netns)
        if to is not None and (changed := self._changed(netns, hook, packet, to)):
            how = how or found.translations[-1].words
            return replace(changed, translated=True), f"{where}, by {how}"
        if found.translations or service or ruleset.hides:
            self._doubts(where, found, service, ruleset.hides)
        return packet, ""

    def _doubts(
        self, where: str, found: Verdicts, service: ipvs.Service | None, hides: str
    ) -> None:
        known = [each.to for each in found.translations if each.to and each.to.address]
        known += [To(*each) for each in service.servers] if service else []
        places = list(dict.fromkeys(f"{_bracketed(to.address)}:{to.port}" for to in sorted(known)))
        more = ", …" if len(places) > _NAMED else ""
        named = f", to one of {', '.join(places[:_NAMED])}{more}" if len(places) > 1 else ""
        how = "IPVS" if service else "nftables" if found.translations else hides
        self.doubt = self.doubt or f"by {how}, {where}{named}"

    def _changed(self, netns: int, hook: int, packet: Packet, to: To) -> Packet | None:
        """Return a segment with another destination, None if its address is not known."""
        address = to.address or packet.destination
        if to.redirect:
            address = self._own(netns, packet) if hook == PREROUTING else _LOOPBACK[packet.version]
        if not address:
            return None
        return replace(packet, destination=address, port=to.port or packet.port)

    def _own(self, netns: int, packet: Packet) -> str:
        """Return the address of the interface that a segment came in by, "" if not known.

        Source: nf_nat_redirect_ipv4(), nf_nat_redirect_ipv6(), net/netfilter/nf_nat_redirect.c.
        """
        for each in self._rules.places.interfaces(netns):
            if each.name == packet.interfaces[0]:
                own = [a for a in each.addresses if (":" in a) == (packet.version == 6)]
                if packet.destination in own:
                    return packet.destination
                near = [a for a in own if not a.startswith("fe80:")] or own
                return near[0] if near else ""
        return ""

    def masked(self, netns: int, packet: Packet) -> Packet:
        """Return a segment that is sent on as the next namespace gets it.

        Its source is not known where a rule may have translated it.
        """
        ruleset = self._rules.of(netns)
        found = firewall.translations(ruleset, firewall.POSTROUTING, packet, self._rules.budget)
        if found.masks or ruleset.unread:
            packet = replace(packet, source="", source_port=0)
        return replace(packet, interfaces=(None, None), to_local=None)

    def _entry(self, netns: int, packet: Packet) -> conntrack.Tuple | None:
        """Return the answers' direction of an entry for the connection, None without one."""
        if not (packet.source and packet.source_port):
            return None
        with suppress(Unreachable, OSError):
            return self._rules.places.inside(netns, lambda: (conntrack.reply(_tuple(packet)),))[0]
        return None

    def _service(self, netns: int, packet: Packet) -> ipvs.Service | None:
        with suppress(Unreachable, OSError):
            return self._rules.places.inside(netns, lambda: (ipvs.service(_tuple(packet)),))[0]
        return None


def _tuple(packet: Packet) -> conntrack.Tuple:
    return conntrack.Tuple(packet.source, packet.source_port, packet.destination, packet.port)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _only(found: Verdicts, partly: bool) -> To | None:
    """Return the only destination that rules surely translate to, None if there is none."""
    certain: list[Translation] = [each for each in found.translations if each.certain]
    if partly or len(found.translations) != 1 or not certain:
        return None
    return certain[0].to
