"""Which nftables rules would drop or reject a TCP segment, as far as their matches are understood.

A match that is not understood (a set, a limit, an extension of xtables) may hold or not: what
follows from it is uncertain. Source: linux/netfilter/nf_tables.h, net/netfilter/nft_*.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ig.causes import conntrack, expressions
from ig.causes.packet import SYN, TRANSPORT, Packet
from ig.kernel import netlink
from ig.kernel.nftables import Chain, Expression, Key, Rule, Ruleset

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_NEW, _ESTABLISHED = 8, 2  # NF_CT_STATE_BIT of IP_CT_NEW and IP_CT_ESTABLISHED
_MOST_JUMPS = 16  # NFT_JUMP_STACK_SIZE
_NEUTRAL = frozenset(
    {"counter", "log", "notrack", "masq", "nat", "redir", "dup", "last", "objref", "dynset"}
)
"""Expressions that do not decide whether a rule matches; those that end it do not drop."""
_DECIDING = frozenset({"limit", "quota", "connlimit", "lookup", "fib", "socket", "range"})


@dataclass(frozen=True, slots=True)
class Denial:
    """A rule, or a chain's policy, that would drop or reject the segment."""

    rejects: bool
    chain: Chain
    rule: Rule | None
    """None for the chain's policy."""
    certain: bool
    """Whether all matches on the way to it were understood."""
    elsewhere: bool = False
    """Whether a verdict map or a queue decides, which may also accept."""

    @property
    def key(self) -> Key:
        """What counts its packets."""
        handle = self.rule.handle if self.rule else 0
        return (self.chain.family, self.chain.table, self.chain.name, handle)

    @property
    def words(self) -> str:
        """Return the rule as people look for it."""
        where = f"nftables, table {self.chain.family} {self.chain.table}, chain {self.chain.name}"
        if self.rule is None:
            return f"{where}, policy drop"
        return f"{where}, rule {self.rule.place} (handle {self.rule.handle})"


def translates(ruleset: Ruleset, hook: int, packet: Packet) -> bool:
    """Return whether a rule may give a segment another destination at a hook (DNAT, REDIRECT)."""
    walk = _Walk(ruleset, packet)
    for chain in _bases(ruleset, hook, packet, nat=True):
        walk.through(chain, 0)
    return walk.translates


def _bases(ruleset: Ruleset, hook: int, packet: Packet, nat: bool) -> list[Chain]:
    families = ("inet", "ip6" if packet.version == 6 else "ip")
    bases = (
        chain
        for chain in ruleset.chains.values()
        if chain.hook == hook and chain.family in families and (chain.kind == "nat") is nat
    )
    return sorted(bases, key=lambda each: each.priority)


def denials(ruleset: Ruleset, hook: int, packet: Packet) -> list[Denial]:
    """Return what may drop or reject a segment at a hook, in the order of evaluation."""
    found: list[Denial] = []
    walk = _Walk(ruleset, packet)
    for chain in _bases(ruleset, hook, packet, nat=False):
        verdict = walk.through(chain, 0)
        found += walk.taken()
        if verdict == "denied":
            break
        if chain.drops and verdict != "accepted":
            found.append(Denial(False, chain, None, walk.certain))
            if walk.certain:
                break
    return found


class _Walk:
    """The way of a segment through chains."""

    def __init__(self, ruleset: Ruleset, packet: Packet) -> None:
        self.certain = True
        self.translates = False
        """Whether a rule that may match gives the segment another destination."""
        self._tracked: bool | None = None
        self._ruleset = ruleset
        self._packet = packet
        self._headers = packet.headers()
        self._found: list[Denial] = []

    def taken(self) -> list[Denial]:
        """Return what was found since the last call."""
        found, self._found = self._found, []
        return found

    def through(self, chain: Chain, depth: int) -> str:
        """Return how a chain ends: `accepted`, `denied`, or `continued` after its last rule."""
        if depth == 0:
            self.certain = True
        for rule in chain.rules:
            matches, verdict, target = self._evaluated(rule)
            if matches is False or not verdict:
                continue
            certain = self.certain and matches is True
            if verdict == "unknown":
                self._found.append(Denial(False, chain, rule, False, elsewhere=True))
                self.translates, self.certain = True, False
            elif verdict == "translate":
                self.translates = True
                if matches:
                    return "accepted"
            elif verdict in ("drop", "reject"):
                self._found.append(Denial(verdict == "reject", chain, rule, certain))
                if matches:
                    return "denied"
                self.certain = False
            elif verdict in ("jump", "goto"):
                ended = self._entered(chain, target, depth, certain)
                if matches and (ended != "continued" or verdict == "goto"):
                    return ended
            elif matches is None:
                self.certain = False
            else:
                return "accepted" if verdict == "accept" else "continued"
        return "continued"

    def _entered(self, chain: Chain, target: str, depth: int, certain: bool) -> str:
        there = self._ruleset.chains.get((chain.family, chain.table, target))
        if there is None or depth == _MOST_JUMPS:
            self.certain = False
            return "continued"
        before, self.certain = self.certain, certain
        ended = self.through(there, depth + 1)
        self.certain &= before
        return ended

    def _evaluated(self, rule: Rule) -> tuple[bool | None, str, str]:
        """Return whether a rule matches (None: not understood), its verdict and its target."""
        registers: dict[int, bytes | None] = {}
        understood = True
        for expression in rule.expressions:
            verdict, target = expressions.verdict(expression)
            if verdict:
                return (True if understood else None), verdict, target
            matches = self._matched(expression, registers)
            if matches is False:
                return False, "", ""
            understood &= matches is True
        return (True if understood else None), "", ""

    def _matched(self, expression: Expression, registers: dict[int, bytes | None]) -> bool | None:
        data, name = expression.data, expression.name
        number = {kind: netlink.network_number(value) for kind, value in data.items()}
        if name in ("meta", "payload", "ct") and 1 in number:
            registers[expressions.place(number[1])] = self._loaded(name, number)
            return True
        if name == "bitwise":
            value = registers.get(expressions.place(number.get(1, 0)))
            registers[expressions.place(number.get(2, 0))] = expressions.masked(value, data)
            return True
        if name == "cmp":
            return expressions.compared(
                registers.get(expressions.place(number.get(1, 0))), number.get(2, 0), data
            )
        if name == "match":
            return self._extension(netlink.text(data.get(1, b"")), data)
        if name in _DECIDING:
            return None
        if name not in _NEUTRAL and name not in ("target", "immediate"):
            # What it computes is not known; where that is compared, neither is the result.
            for place in (expressions.place(number.get(1, 0)), expressions.place(number.get(2, 0))):
                registers[place] = None
        return True

    def _loaded(self, name: str, number: Mapping[int, int]) -> bytes | None:
        if name == "payload":
            header = self._headers.get(number.get(2, 0), b"")
            start, length = number.get(3, 0), number.get(4, 0)
            value = header[start : start + length]
            if len(value) != length or self._hides(number.get(2, 0), start, start + length):
                return None
            return value
        if name == "ct":
            state = self._state if number.get(2) == 0 else None
            return None if state is None else struct.pack("=I", state)
        return self._meta(number.get(2, -1))

    def _extension(self, name: str, data: Mapping[int, bytes]) -> bool | None:
        """Return whether a match of xtables holds, None where that is not understood."""
        if name == "comment":
            return True
        if name == "conntrack" and self._state is not None:
            return conntrack.holds(data, self._state)
        return None

    @property
    def _state(self) -> int | None:
        """The bit of the state in connection tracking, None where a rule may turn that off."""
        if self._tracked is None:
            self._tracked = not _untracked(self._ruleset, self._packet)
        if not self._tracked:
            return None
        return _NEW if self._packet.flags == SYN else _ESTABLISHED

    def untracks(self, rule: Rule) -> bool:
        """Return whether a rule may match that exempts the segment from connection tracking."""
        self._tracked = False  # its state is not known yet
        return self._evaluated(rule)[0] is not False

    def _hides(self, base: int, start: int, end: int) -> bool:
        """Return whether a part of a header has what is not known."""
        if base == TRANSPORT:
            return not self._packet.source_port and start < 2
        first, last = (8, 24) if self._packet.version == 6 else (12, 16)
        return not self._packet.source and start < last and end > first

    def _meta(self, key: int) -> bytes | None:
        six = self._packet.version == 6
        if key in (6, 7):
            name = self._packet.interfaces[key - 6]
            return None if name is None else name.encode().ljust(16, b"\0")
        known = {
            1: struct.pack("!H", 0x86DD if six else 0x0800),
            15: bytes([socket.AF_INET6 if six else socket.AF_INET]),
            16: bytes([socket.IPPROTO_TCP]),
        }
        return known.get(key)


def _untracked(ruleset: Ruleset, packet: Packet) -> bool:
    """Return whether a rule may exempt the segment, or the other direction, from tracking."""
    family = "ip6" if packet.version == 6 else "ip"
    walks = [
        _Walk(ruleset, replace(each, interfaces=(None, None)))
        for each in (packet, packet.answered())
    ]
    return any(
        walk.untracks(rule)
        for chain in ruleset.chains.values()
        if chain.family in ("inet", family)
        for rule in chain.rules
        if any(map(expressions.is_notrack, rule.expressions))
        for walk in walks
    )


def rising(
    found: list[Denial], before: Mapping[Key, int], after: Mapping[Key, int]
) -> Iterator[tuple[Denial, bool]]:
    """Yield those that can have acted: not whose counters stood still; and whether one rose."""
    for denial in found:
        if denial.key not in before or denial.key not in after:
            yield denial, False
        elif after[denial.key] > before[denial.key]:
            yield denial, True
