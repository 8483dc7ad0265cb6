"""Which nftables rules would drop, reject or translate a TCP segment, as far as understood.

A match that is not understood (a limit, an extension of xtables, a set that is too large to be
read) may hold or not: what follows from it is uncertain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ig.causes.expressions import Budget, Decision, Evaluation
from ig.causes.packet import Packet
from ig.causes.xtables import To
from ig.kernel import netlink
from ig.kernel.nftables import Chain, Expression, Key, Rule, Ruleset

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_MOST_JUMPS = 16  # NFT_JUMP_STACK_SIZE
_TRANSLATED = {PREROUTING: -100, OUTPUT: -100, INPUT: 100, POSTROUTING: 100}
"""The priority at which an address is translated at each hook: NF_IP_PRI_NAT_DST, _SRC."""
_CONNTRACK = -200  # NF_IP_PRI_CONNTRACK, at prerouting and output


@dataclass(frozen=True, slots=True)
class Denial:
    """A rule, or a chain's policy, that would drop or reject the segment."""

    rejects: bool
    key: Key
    """What counts its packets: the chain and the rule's handle, 0 for the chain's policy."""
    place: int
    """The rule's place in the chain, from 1; 0 for the chain's policy."""
    certain: bool
    """Whether all matches on the way to it were understood."""
    elsewhere: bool = False
    """Whether a verdict map or a queue decides, which may also accept."""

    @property
    def words(self) -> str:
        """Return the rule as people look for it."""
        return _words(self.key, self.place)


@dataclass(frozen=True, slots=True)
class Translation:
    """A rule that may translate an address."""

    chain: Chain
    rule: Rule
    to: To | None
    """The new destination, None where it is not known to be one."""
    certain: bool
    """Whether all matches on the way to it were understood."""

    @property
    def words(self) -> str:
        """Return the rule as people look for it."""
        return _words(_key(self.chain, self.rule), self.rule.place)


def _key(chain: Chain, rule: Rule | None) -> Key:
    return (chain.family, chain.table, chain.name, rule.handle if rule else 0)


def _words(key: Key, place: int) -> str:
    family, table, name, handle = key
    rule = f"rule {place} (handle {handle})" if place else "policy drop"
    return f"nftables, table {family} {table}, chain {name}, {rule}"


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the rules at one hook do with a segment."""

    denials: tuple[Denial, ...] = ()
    """What may drop or reject it, in the order of evaluation."""
    translations: tuple[Translation, ...] = ()
    """What may translate its destination."""
    masks: bool = False
    """Whether a rule may translate its source."""
    unread: tuple[str, ...] = ()
    """The sets that were looked something up in, and are not known."""


def translations(
    ruleset: Ruleset, hook: int, packet: Packet, budget: Budget | None = None
) -> Verdicts:
    """Return which rules may translate an address of a segment, the first of a connection.

    No more are looked at than `budget` has; what they do is then unknown.
    """
    walk = _Walk(ruleset, packet, budget or Budget())
    for chain in _bases(ruleset, hook, packet, nat=True):
        walk.through(chain, 0)
        if walk.translations and walk.translations[-1].certain:
            break
    return Verdicts((), tuple(walk.translations), walk.masks, walk.unread)


def _bases(ruleset: Ruleset, hook: int, packet: Packet, nat: bool) -> list[Chain]:
    families = ("inet", "ip6" if packet.version == 6 else "ip")
    bases = (
        chain
        for chain in ruleset.chains.values()
        if chain.hook == hook and chain.family in families and (chain.kind == "nat") is nat
    )
    return sorted(bases, key=lambda each: each.priority)


def denials(
    ruleset: Ruleset,
    hook: int,
    packet: Packet,
    before: Packet | None = None,
    budget: Budget | None = None,
) -> Verdicts:
    """Return what may drop or reject a segment at a hook.

    `before` is the segment before its addresses were translated there, if they were; `budget` is
    that of `translations`.
    """
    found: list[Denial] = []
    budget = budget or Budget()
    walks = [_Walk(ruleset, each, budget) for each in (before or packet, packet)]
    for chain in _bases(ruleset, hook, packet, nat=False):
        walk = walks[chain.priority > _TRANSLATED.get(hook, -(1 << 31))]
        verdict = walk.through(chain, 0)
        found += walk.taken()
        if verdict == "denied":
            break
        if chain.drops and verdict != "accepted":
            found.append(Denial(False, _key(chain, None), 0, walk.certain))
            if walk.certain:
                break
    return Verdicts(tuple(found), unread=tuple(each for walk in walks for each in walk.unread))


class _Walk:
    """The way of a segment through chains."""

    def __init__(self, ruleset: Ruleset, packet: Packet, budget: Budget) -> None:
        self.certain = True
        """Whether no rule of this chain before, or of those it led to, may have ended the way."""
        self._sure = True
        """Whether the way surely leads to this chain."""
        self.translations: list[Translation] = []
        self.masks = False
        """Whether a rule that may match gives the segment another source."""
        self._tracked: bool | None = None
        self._ruleset = ruleset
        self._packet = packet
        self._budget = budget
        self._evaluation = Evaluation(ruleset, packet, self._is_tracked, budget)
        self._found: dict[tuple[Key, bool], Denial] = {}
        self._base: Chain | None = None

    @property
    def unread(self) -> tuple[str, ...]:
        """What was looked up in vain."""
        return tuple(self._evaluation.unread)

    def taken(self) -> list[Denial]:
        """Return what was found since the last call."""
        found, self._found = self._found, {}
        return list(found.values())

    def through(self, chain: Chain, depth: int) -> str:
        """Return how a chain ends: `accepted`, `denied`, or `continued` after its last rule."""
        if depth == 0:
            self.certain, self._base = True, chain
        for rule in chain.rules:
            certain = self._sure and self.certain
            for decision in self._evaluation.decisions(chain, rule):
                ended = self._applied(chain, rule, decision, depth, certain)
                if ended and decision.matches:
                    return "continued" if ended == "returned" else ended
                if decision.matches is None and (ended or decision.verdict == "unknown"):
                    self.certain = False
            if self._evaluation.ended:
                break
        return "continued"

    def _applied(
        self, chain: Chain, rule: Rule, decision: Decision, depth: int, certain: bool
    ) -> str:
        """Return how a decision ends the chain, "" if it does not, as if it were surely made."""
        sure = certain and decision.matches is True
        verdict = decision.verdict
        if verdict in ("drop", "reject"):
            self._find(Denial(verdict == "reject", _key(chain, rule), rule.place, sure))
            return "denied"
        if verdict == "unknown":
            self._find(Denial(False, _key(chain, rule), rule.place, False, elsewhere=True))
            self.translations.append(Translation(chain, rule, None, False))
            self.masks, self.certain = True, False
            return ""
        if verdict == "translate":
            self.translations.append(Translation(chain, rule, decision.to, sure))
        self.masks |= verdict == "mask"
        if verdict in ("jump", "goto"):
            ended = self._entered(chain, decision.chain, depth, sure)
            if ended == "continued":
                return "returned" if verdict == "goto" else ""
            return ended
        return "returned" if verdict == "return" else "accepted"

    def _find(self, denial: Denial) -> None:
        self._found.setdefault((denial.key, denial.certain), denial)

    def _entered(self, chain: Chain, target: str, depth: int, certain: bool) -> str:
        there = self._ruleset.chains.get((chain.family, chain.table, target))
        if there is None or depth == _MOST_JUMPS:
            self.certain = False
            return "continued"
        before = self.certain, self._sure
        self.certain, self._sure = True, certain
        ended = self.through(there, depth + 1)
        self.certain, self._sure = self.certain and before[0], before[1]
        return ended

    def _is_tracked(self) -> bool:
        """Return whether connection tracking has surely seen the segment."""
        base = self._base
        if base and base.hook in (PREROUTING, OUTPUT) and base.priority <= _CONNTRACK:
            return False  # it comes later
        if self._tracked is None:
            self._tracked = not _untracked(self._ruleset, self._packet, self._budget)
        return self._tracked


def _untracked(ruleset: Ruleset, packet: Packet, budget: Budget) -> bool:
    """Return whether a rule may exempt the segment, or the other direction, from tracking."""
    family = "ip6" if packet.version == 6 else "ip"
    evaluations = [
        Evaluation(ruleset, replace(each, interfaces=(None, None)), lambda: False, budget)
        for each in (packet, packet.answered())
    ]
    return any(
        evaluation.may_match(chain, rule)
        for chain in ruleset.chains.values()
        if chain.family in ("inet", family)
        for rule in chain.rules
        if any(map(_is_notrack, rule.expressions))
        for evaluation in evaluations
    )


def _is_notrack(expression: Expression) -> bool:
    """Return whether an expression may exempt a packet from connection tracking."""
    target = netlink.text(expression.data.get(1, b"")) if expression.name == "target" else ""
    return expression.name == "notrack" or target in ("CT", "NOTRACK")


def rising(
    found: tuple[Denial, ...], before: Mapping[Key, int], after: Mapping[Key, int]
) -> Iterator[tuple[Denial, bool]]:
    """Yield those that can have acted: not whose counters stood still; and whether one rose."""
    for denial in found:
        if denial.key not in before or denial.key not in after:
            yield denial, False
        elif after[denial.key] > before[denial.key]:
            yield denial, True
