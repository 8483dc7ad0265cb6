"""What the expressions of one nftables rule do with a segment: whether it matches, what it decides.

Source: linux/netfilter/nf_tables.h, net/netfilter/nft_*.c.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from ig.causes import xtables
from ig.causes.packet import Fields, Packet
from ig.causes.registers import Registers, find, within
from ig.causes.xtables import To
from ig.kernel import netlink
from ig.kernel.nftables import Chain, Expression, Rule, Ruleset
from ig.kernel.nftables_sets import Element

_DROP, _ACCEPT, _BREAK, _JUMP, _GOTO, _RETURN = 0, 1, -2, -3, -4, -5
_VERDICTS = {_DROP: "drop", _ACCEPT: "accept", _JUMP: "jump", _GOTO: "goto", _RETURN: "return"}
_DNAT, _INET = 1, 1  # NFT_NAT_DNAT; NFPROTO_INET: of both versions
_TARGETS = {
    "REJECT": "reject",
    "DROP": "drop",
    "ACCEPT": "accept",
    "TPROXY": "unknown",  # it accepts, or drops where there is no such socket
    "NFQUEUE": "unknown",
    "DNAT": "translate",
    "REDIRECT": "translate",
    "NETMAP": "translate",
    "SNAT": "mask",
    "MASQUERADE": "mask",
}
_ENDS = {"reject": "reject", "queue": "unknown", "synproxy": "accept"}
_NEUTRAL = frozenset({"counter", "log", "notrack", "dup", "last", "nat"})
"""Expressions that do not decide whether a rule matches, and store nothing."""
_DECIDING = frozenset({"limit", "quota", "connlimit", "socket", "tproxy"})
_NEUTRAL_OBJECTS = frozenset({1, 3, 7, 8})
"""Kinds of objects that a rule names and that never end it: counter, ct helper, ct timeout, secmark
(NFT_OBJECT_…). Others may: a limit, a quota, a number of connections."""
_SYNPROXY = 10  # NFT_OBJECT_SYNPROXY
_DELETE = 2  # NFT_DYNSET_OP_DELETE: what adds to a set ends the rule where the set is full
_LOADING = frozenset({"meta", "payload", "ct", "fib", "numgen"})
_MOST = 64
"""The elements of a verdict map that are followed where the key is not known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule decides."""

    matches: bool | None
    """Whether it does; None where that is not understood."""
    verdict: str
    """drop, reject, accept, jump, goto, return; translate (the destination), mask (the source);
    unknown: not evaluated."""
    chain: str = ""
    """Where it jumps or goes to."""
    to: To | None = None
    """Where it translates to, None where that is not one destination."""


class Budget:
    """How many rules, and elements of sets, are still looked at: anybody may have made many."""

    def __init__(self, most: int = 100_000) -> None:
        self._left = most

    def spend(self, count: int) -> bool:
        """Return whether so many may still be looked at."""
        self._left -= count
        return self._left >= 0


class Evaluation:
    """Evaluates rules for one segment at one hook."""

    def __init__(
        self,
        ruleset: Ruleset,
        packet: Packet,
        tracked: Callable[[], bool],
        budget: Budget | None = None,
    ) -> None:
        """`tracked` returns whether connection tracking surely sees the segment."""
        self._budget = budget or Budget()
        self.unread: dict[str, None] = {}
        """The sets that rules look something up in and that are not known, in words."""
        self._ruleset = ruleset
        self._packet = packet
        self._fields = Fields(packet, ruleset.interfaces, tracked)
        self._registers = Registers()
        self._chain: Chain | None = None

    def decisions(self, chain: Chain, rule: Rule) -> list[Decision]:
        """Return what a rule decides, several where any of them may be; none if it goes on."""
        if not self._spend(1):
            return [Decision(None, "unknown")]
        self._registers = Registers()
        self._chain = chain
        understood = True
        for expression in rule.expressions:
            decided = list(self._decided(expression))
            if decided:
                sure = understood and len(decided) == 1
                return [
                    Decision(each.matches if sure else None, each.verdict, each.chain, each.to)
                    for each in decided
                ]
            matches = self._matched(expression)
            if matches is False:
                return []
            understood &= matches is True
        return []

    @property
    def ended(self) -> bool:
        """Whether no further rule is looked at."""
        return not self._budget.spend(0)

    def _spend(self, count: int) -> bool:
        if self._budget.spend(count):
            return True
        self.unread["there are too many rules to look at"] = None
        return False

    def may_match(self, chain: Chain, rule: Rule) -> bool:
        """Return whether a rule may match, whatever it decides."""
        if not self._spend(1):
            return True
        self._registers, self._chain = Registers(), chain
        return all(self._matched(each) is not False for each in rule.expressions)

    def _decided(self, expression: Expression) -> Iterator[Decision]:
        data, name = expression.data, expression.name
        number = {kind: netlink.network_number(value) for kind, value in data.items()}
        if name == "target":
            target = netlink.text(data.get(1, b""))
            verdict = _TARGETS.get(target, "")
            to = None
            if verdict == "translate":
                to = xtables.destination(target, data, self._packet.version)
            if verdict:
                yield Decision(True, verdict, to=to)
        elif name in _ENDS or (name == "objref" and number.get(1) == _SYNPROXY):
            yield Decision(True, _ENDS.get(name, _ENDS["synproxy"]))
        elif name == "nat" and not self._is_translated(number):
            return
        elif name == "redir":
            ports = self._ports(number, 1, 2)
            yield Decision(True, "translate", to=To("", ports, True) if ports is not None else None)
        elif name == "nat":
            to = self._destination(number) if number.get(1) == _DNAT else None
            yield Decision(True, "translate" if number.get(1) == _DNAT else "mask", to=to)
        elif name == "masq":
            yield Decision(True, "mask")
        elif name == "lookup" and number.get(3) == 0:  # a verdict map
            yield from self._mapped(data, number)
        elif name == "immediate" and number.get(1) == 0:
            verdict, chain = _verdict(netlink.attributes(data.get(2, b"")).get(2, b""))
            if verdict:
                yield Decision(True, verdict, chain)

    def _mapped(self, data: Mapping[int, bytes], number: Mapping[int, int]) -> Iterator[Decision]:
        found = self._found(data, number)
        if found is None or len(found[0]) > _MOST:
            yield Decision(None, "unknown")
            return
        elements, none = found
        for each in elements:
            verdict, chain = _verdict(each.verdict)
            if verdict:
                yield Decision(None if none or len(elements) > 1 else True, verdict, chain)

    def _found(
        self, data: Mapping[int, bytes], number: Mapping[int, int]
    ) -> tuple[list[Element], bool] | None:
        """Return the elements that are looked up, and whether there may be none; None: unknown."""
        assert self._chain
        name = self._chain.family, self._chain.table, netlink.text(data.get(1, b""))
        found = self._ruleset.sets.get(name)
        if found is None or found.unread:
            what = f"set {name[2]} of table {name[0]} {name[1]}"
            self.unread[f"{what} {found.unread if found else 'is not there'}"] = None
            return None
        if not self._spend(len(found.elements)):
            return None
        return find(found, self._registers.load(number.get(2, 0), found.length))

    def _ports(self, number: Mapping[int, int], first: int, last: int) -> int | None:
        """Return the port in registers, 0 where none is given, None unless it is one."""
        if not number.get(first):
            return 0
        only = self._only(number, (first, last), 2)
        return None if only is None else netlink.network_number(only)

    def _only(self, number: Mapping[int, int], ends: Iterable[int], size: int) -> bytes | None:
        """Return what two registers both have, the second of which may be left out."""
        used = [number[each] for each in ends if number.get(each)]
        first, *others = (self._registers.certain(each, size) for each in used)
        return first if all(each == first for each in others) else None

    def _is_translated(self, number: Mapping[int, int]) -> bool:
        """Return whether a translation is for this version of IP: nft_nat_inet_eval()."""
        own = socket.AF_INET6 if self._packet.version == 6 else socket.AF_INET
        return number.get(2, own) in (own, _INET)

    def _destination(self, number: Mapping[int, int]) -> To | None:
        if number.get(7, 0) & ~0x1F:  # NF_NAT_RANGE_NETMAP, …
            return None
        port, address = self._ports(number, 5, 6), ""
        if number.get(3):
            only = self._only(number, (3, 4), 16 if self._packet.version == 6 else 4)
            if only is None:
                return None
            address = str(ip_address(only))
        return None if port is None else To(address, port)

    def _matched(self, expression: Expression) -> bool | None:
        data, name = expression.data, expression.name
        number = {kind: netlink.network_number(value) for kind, value in data.items()}
        if name in ("cmp", "range"):
            return self._compared(name, data, number)
        if name == "lookup":
            return self._looked_up(data, number)
        if name == "match":
            what = netlink.text(data.get(1, b""))
            return xtables.holds(what, data, self._packet, self._fields.state)
        if name == "socket":
            self._registers.forget(number.get(2, 0))
        if name in _DECIDING or _may_end(name, number):
            return None
        if name in _LOADING:
            self._load(name, number)
        elif name == "bitwise":
            self._mask(data, number)
        elif name == "immediate":
            self._registers.store(number.get(1, 0), _constant(data.get(2, b"")))
        elif name not in _NEUTRAL and name not in ("target", "objref", "dynset"):
            # What it computes is not known; where that is compared, neither is the result.
            for register in (number.get(1, 0), number.get(2, 0)):
                self._registers.forget(register)
        return True

    def _compared(
        self, name: str, data: Mapping[int, bytes], number: Mapping[int, int]
    ) -> bool | None:
        register, how, low = number.get(1, 0), number.get(2, 0), _constant(data.get(3, b""))
        if name == "cmp":
            return self._registers.compare(register, how, low) if low else None
        high = _constant(data.get(4, b""))
        if not low or len(low) != len(high) or how > 1:
            return None
        found = within(self._registers.load(register, len(low)), low, high)
        return None if found is None else found != bool(how)

    def _looked_up(self, data: Mapping[int, bytes], number: Mapping[int, int]) -> bool | None:
        found = self._found(data, number)
        register = number.get(3, 0)
        if register:
            self._registers.forget(register)
        if found is None:
            return None
        elements, none = found
        if register and len(elements) == 1:
            self._registers.store(register, elements[0].data)
        inverted = bool(number.get(5, 0) & 1)  # NFT_LOOKUP_F_INV
        if elements and none:
            return None
        return bool(elements) != inverted

    def _mask(self, data: Mapping[int, bytes], number: Mapping[int, int]) -> None:
        mask, other = _constant(data.get(4, b"")), _constant(data.get(5, b""))
        source, target = number.get(1, 0), number.get(2, 0)
        if number.get(6) or not mask or len(mask) != len(other):  # shifts, and two registers
            self._registers.forget(target)
        else:
            self._registers.mask(source, target, mask, other)

    def _load(self, name: str, number: Mapping[int, int]) -> None:
        if 1 not in number:  # it sets something of the packet
            if name == "payload":
                self._fields.write(number)
            return
        loaded = self._fields.load(name, number)
        if loaded is None:
            self._registers.forget(number[1])
        else:
            self._registers.store(number[1], *loaded)


def _may_end(name: str, number: Mapping[int, int]) -> bool:
    """Return whether a rule may end at an expression that does not compare anything."""
    if name == "objref":
        return number.get(1, 0) not in _NEUTRAL_OBJECTS
    return name == "dynset" and number.get(3, 0) != _DELETE


def _constant(data: bytes) -> bytes:
    return netlink.attributes(data).get(1, b"")


def _verdict(data: bytes) -> tuple[str, str]:
    """Return the verdict in attributes, and the chain that it leads to; "" for none."""
    parts = netlink.attributes(data)
    code = int.from_bytes(parts.get(1, b""), "big", signed=True)
    return _VERDICTS.get(code, ""), netlink.text(parts.get(2, b""))
