"""Which nftables rules would drop or reject a TCP segment, as far as their matches are understood.

A match that is not understood (a set, a limit, an extension of xtables) may hold or not: what
follows from it is uncertain. Source: linux/netfilter/nf_tables.h, net/netfilter/nft_*.c.
"""

from __future__ import annotations

import operator
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from ig.kernel import netlink
from ig.kernel.nftables import Chain, Expression, Key, Rule, Ruleset

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
SYN, SYN_ACK = 0x02, 0x12
_NEW, _ESTABLISHED = 8, 2  # NF_CT_STATE_BIT of IP_CT_NEW and IP_CT_ESTABLISHED
_MOST_JUMPS = 16  # NFT_JUMP_STACK_SIZE
_DROP, _ACCEPT, _BREAK, _JUMP, _GOTO, _RETURN = 0, 1, -2, -3, -4, -5
_NETWORK, _TRANSPORT = 1, 2
_OPERATORS: Mapping[int, Callable[[bytes, bytes], bool]] = dict(
    enumerate((operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge))
)
_NEUTRAL = frozenset(
    {"counter", "log", "notrack", "masq", "nat", "redir", "dup", "last", "objref", "dynset"}
)
"""Expressions that do not decide whether a rule matches; those that end it do not drop."""
_DECIDING = frozenset({"match", "limit", "quota", "connlimit", "lookup", "fib", "socket", "range"})


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment at one hook."""

    source: str
    """ "" where it is not known, as after an address translation."""
    source_port: int
    """0 where it is not known."""
    destination: str
    port: int
    flags: int = SYN
    interfaces: tuple[str | None, str | None] = (None, None)
    """The names of the interfaces that it comes in and goes out by; "" for none, None unknown."""

    @property
    def version(self) -> int:
        """The version of IP, 4 or 6."""
        return 6 if ":" in self.destination else 4

    def headers(self) -> dict[int, bytes]:
        """Return the IP and the TCP header, by the base that nftables numbers them with."""
        source = self.source or ("::" if self.version == 6 else "0.0.0.0")
        ends = b"".join(ip_address(each).packed for each in (source, self.destination))
        tcp = struct.pack(
            "!HHIIBBHHH", self.source_port, self.port, 0, 0, 5 << 4, self.flags, 64240, 0, 0
        )
        if self.version == 6:
            ip = struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64) + ends
        else:
            head = (0x45, 0, 20 + len(tcp), 0, 0x4000, 64, socket.IPPROTO_TCP, 0)
            ip = struct.pack("!BBHHHBBH", *head) + ends
        return {_NETWORK: ip, _TRANSPORT: tcp}


@dataclass(frozen=True, slots=True)
class Denial:
    """A rule, or a chain's policy, that would drop or reject the segment."""

    rejects: bool
    chain: Chain
    rule: Rule | None
    """None for the chain's policy."""
    certain: bool
    """Whether all matches on the way to it were understood."""

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


def denials(ruleset: Ruleset, hook: int, packet: Packet) -> list[Denial]:
    """Return what may drop or reject a segment at a hook, in the order of evaluation."""
    families = ("inet", "ip6" if packet.version == 6 else "ip")
    bases = [
        chain
        for chain in ruleset.chains.values()
        if chain.hook == hook and chain.family in families and chain.kind != "nat"
    ]
    found: list[Denial] = []
    walk = _Walk(ruleset, packet)
    for chain in sorted(bases, key=lambda each: each.priority):
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
            if verdict in ("drop", "reject"):
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
            verdict, target = _verdict(expression)
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
            registers[_place(number[1])] = self._loaded(name, number)
            return True
        if name == "bitwise":
            value = registers.get(_place(number.get(1, 0)))
            registers[_place(number.get(2, 0))] = _masked(value, data)
            return True
        if name == "cmp":
            return _compared(registers.get(_place(number.get(1, 0))), number.get(2, 0), data)
        if name == "match" and netlink.text(data.get(1, b"")) == "comment":
            return True
        if name in _DECIDING:
            return None
        if name not in _NEUTRAL and name not in ("target", "immediate"):
            # What it computes is not known; where that is compared, neither is the result.
            for place in (_place(number.get(1, 0)), _place(number.get(2, 0))):
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
            state = _NEW if self._packet.flags == SYN else _ESTABLISHED
            return struct.pack("=I", state) if number.get(2) == 0 else None
        return self._meta(number.get(2, -1))

    def _hides(self, base: int, start: int, end: int) -> bool:
        """Return whether a part of a header has what is not known."""
        if base == _TRANSPORT:
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


def _verdict(expression: Expression) -> tuple[str, str]:
    """Return the verdict of an expression, and the chain that it leads to; "" for none."""
    data = expression.data
    if expression.name == "reject":
        return "reject", ""
    if expression.name == "target":
        name = netlink.text(data.get(1, b""))
        return {"REJECT": "reject", "DROP": "drop", "ACCEPT": "accept"}.get(name, ""), ""
    if expression.name in ("queue", "tproxy", "synproxy"):
        return "accept", ""
    if expression.name != "immediate" or netlink.network_number(data.get(1, b"")) != 0:
        return "", ""
    told = netlink.attributes(netlink.attributes(data.get(2, b"")).get(2, b""))
    code = int.from_bytes(told.get(1, b""), "big", signed=True)
    names = {_DROP: "drop", _ACCEPT: "accept", _JUMP: "jump", _GOTO: "goto", _RETURN: "return"}
    return names.get(code, ""), netlink.text(told.get(2, b""))


def _place(register: int) -> int:
    """Return the offset of a register: of 16 bytes (1 to 4), or of 4 (8 and up)."""
    return (register - 8) * 4 if register >= 8 else (register - 1) * 16


def _value(data: bytes) -> bytes:
    return netlink.attributes(data).get(1, b"")


def _masked(value: bytes | None, data: Mapping[int, bytes]) -> bytes | None:
    mask, other = _value(data.get(4, b"")), _value(data.get(5, b""))
    if value is None or len(mask) != len(value) or netlink.network_number(data.get(6, b"")):
        return None
    return bytes(v & m ^ x for v, m, x in zip(value, mask, other, strict=False))


def _compared(value: bytes | None, how: int, data: Mapping[int, bytes]) -> bool | None:
    wanted = _value(data.get(3, b""))
    if value is None or len(value) < len(wanted) or how not in _OPERATORS:
        return None
    return _OPERATORS[how](value[: len(wanted)], wanted)


def rising(
    found: list[Denial], before: Mapping[Key, int], after: Mapping[Key, int]
) -> Iterator[tuple[Denial, bool]]:
    """Yield those that can have acted: not whose counters stood still; and whether one rose."""
    for denial in found:
        if denial.key not in before or denial.key not in after:
            yield denial, False
        elif after[denial.key] > before[denial.key]:
            yield denial, True
