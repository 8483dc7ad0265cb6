"""Read the nftables rules of this thread's network namespace; nothing is ever changed.

What `iptables-nft` and `nft` made is here; what `iptables-legacy` made is not.
Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ig.kernel import netlink, nftables_sets
from ig.kernel.netlink import Attributes
from ig.kernel.nftables_sets import Name, Set

_SUBSYSTEM = 10 << 8
_NEWCHAIN, _GETCHAIN, _NEWRULE, _GETRULE = (_SUBSYSTEM | number for number in (3, 4, 6, 7))
_GETGENERATION = _SUBSYSTEM | 16  # NFT_MSG_GETGEN
_GENERATION = 1  # NFTA_GEN_ID
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
"""The families whose rules see a TCP segment of this host on its way through IP."""
_BESIDE = {5: "netdev", 7: "bridge"}
_INET, _INGRESS = 1, 5  # NFPROTO_INET, NF_INET_INGRESS
_ABSENT = (errno.EINVAL, errno.EPROTONOSUPPORT)
"""Errors where the kernel has no nftables."""
_MOST = 16 << 20
"""The bytes that are read of chains, and of rules: some 30,000 rules."""
_OFFSET = 4  # the attributes come after struct nfgenmsg
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _CHAIN_COUNTERS = (
    1,
    3,
    4,
    5,
    7,
    8,
)
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_PACKETS = 2
_LOOKUP_SET = 1
_LEGACY = ("/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names")

Answer = tuple[int, bytes]
"""Of netlink: its type, and what follows its header."""
Key = tuple[str, str, str, int]
"""What counts packets: family, table, chain, and the rule's handle, 0 for the chain's policy."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One part of a rule: a comparison, a counter, a verdict."""

    name: str
    data: Attributes


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a chain."""

    handle: int
    place: int
    """Its place in the chain, from 1."""
    expressions: tuple[Expression, ...]
    packets: int | None
    """The packets that its counter saw, None without a counter."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of rules."""

    family: str
    table: str
    name: str
    kind: str
    """`filter`, `nat` or `route`; "" for a chain that only others lead to."""
    hook: int
    """The number of its hook (NF_INET_…), -1 without."""
    priority: int
    drops: bool
    """Whether its policy is to drop."""
    packets: int | None
    """The packets that its policy was applied to, None if not counted."""
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All rules of a namespace."""

    chains: Mapping[tuple[str, str, str], Chain]
    """By family, table and name."""
    unread: str = ""
    """Why rules are missing, "" if none are known to be."""
    hides: str = ""
    """What has rules that are missing and may translate addresses, in words."""
    sets: Mapping[Name, Set] = field(default_factory=dict)
    """Those that rules look something up in, where they were asked for."""
    interfaces: Mapping[str, int] = field(default_factory=dict)
    """The numbers of the namespace's interfaces by their names, where they were asked for."""

    def counters(self) -> dict[Key, int]:
        """Return the packets that each counter saw."""
        found: dict[Key, int] = {}
        for (family, table, name), chain in self.chains.items():
            if chain.packets is not None:
                found[family, table, name, 0] = chain.packets
            for rule in chain.rules:
                if rule.packets is not None:
                    found[family, table, name, rule.handle] = rule.packets
        return found

    @property
    def size(self) -> int:
        """The number of its rules and of its sets' elements."""
        rules = sum(len(each.rules) for each in self.chains.values())
        return rules + sum(len(each.elements) for each in self.sets.values())


def generation() -> int:
    """Return the number of this ruleset, which grows with each change of a rule or an element.

    What the packets change (counters, elements that rules add or that expire) does not. -1 if
    there is none.
    """
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    try:
        answers = netlink.ask(netlink.NETFILTER, _GETGENERATION, body)
    except OSError:
        return -1
    found = netlink.attributes(answers[0][1], _OFFSET).get(_GENERATION) if answers else None
    return netlink.network_number(found) if found else -1


def read(with_sets: bool = False) -> Ruleset:
    """Return the rules of this thread's namespace; without any where there is no nftables."""
    legacy = _legacy()
    unread = f"iptables-legacy has tables ({', '.join(legacy)})" if legacy else ""
    hides = "iptables-legacy" if "nat" in legacy else ""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    try:
        chains = netlink.ask(netlink.NETFILTER, _GETCHAIN, body, dump=True, most=_MOST)
        rules = (
            netlink.ask(netlink.NETFILTER, _GETRULE, body, dump=True, most=_MOST) if chains else []
        )
    except OSError as error:
        hides = hides or ("" if error.errno in _ABSENT else "nftables")
        return Ruleset({}, unread or f"nftables: {error.strerror or error}", hides)
    unread = "; ".join(filter(None, (unread, _passed_over(chains, rules))))
    by_chain: dict[tuple[str, str, str], list[Rule]] = {}
    for kind, answer in rules:
        parts = netlink.attributes(answer, _OFFSET)
        if kind == _NEWRULE and answer[0] in _FAMILIES:
            names = (netlink.text(parts.get(each, b"")) for each in (_RULE_TABLE, _RULE_CHAIN))
            table, chain = names
            same = by_chain.setdefault((_FAMILIES[answer[0]], table, chain), [])
            same.append(_rule(parts, len(same) + 1))
    found = {}
    for kind, answer in chains:
        if kind == _NEWCHAIN and answer[0] in _FAMILIES:
            made = _chain(_FAMILIES[answer[0]], netlink.attributes(answer, _OFFSET), by_chain)
            found[(made.family, made.table, made.name)] = made
    if not with_sets:
        return Ruleset(found, unread, hides)
    try:
        sets = nftables_sets.read(_FAMILIES, _looked_up(found.values()))
    except OSError as error:
        return Ruleset(found, unread or f"sets of nftables: {error.strerror or error}", hides)
    return Ruleset(found, unread, hides, sets)


def _passed_over(chains: Iterable[Answer], rules: Iterable[Answer]) -> str:
    """Return which tables see segments beside IP's hooks, as a phrase: at devices and bridges."""
    filled = set()
    for _, answer in rules:
        parts = netlink.attributes(answer, _OFFSET)
        filled.add((answer[0], netlink.text(parts.get(_RULE_TABLE, b""))))
    tables = set()
    for kind, answer in chains:
        parts = netlink.attributes(answer, _OFFSET)
        hook = netlink.attributes(parts.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER, b"")
        family, table = answer[0], netlink.text(parts.get(_CHAIN_TABLE, b""))
        ingress = family == _INET and netlink.network_number(hook) == _INGRESS
        drops = _CHAIN_POLICY in parts and netlink.network_number(parts[_CHAIN_POLICY]) == 0
        beside = ingress or family in _BESIDE
        if kind == _NEWCHAIN and hook and beside and (drops or (family, table) in filled):
            tables.add(f"{_BESIDE.get(family, 'inet (ingress)')} {table}")
    return f"tables are not evaluated ({', '.join(sorted(tables))})" if tables else ""


def _looked_up(chains: Iterable[Chain]) -> set[Name]:
    return {
        (chain.family, chain.table, netlink.text(expression.data.get(_LOOKUP_SET, b"")))
        for chain in chains
        for rule in chain.rules
        for expression in rule.expressions
        if expression.name == "lookup"
    }


def _chain(
    family: str, parts: Attributes, rules: Mapping[tuple[str, str, str], Iterable[Rule]]
) -> Chain:
    table, name = (netlink.text(parts.get(each, b"")) for each in (_CHAIN_TABLE, _CHAIN_NAME))
    hook = netlink.attributes(parts.get(_CHAIN_HOOK, b""))
    counters = netlink.attributes(parts.get(_CHAIN_COUNTERS, b""))
    return Chain(
        family,
        table,
        name,
        netlink.text(parts.get(_CHAIN_TYPE, b"")),
        netlink.network_number(hook[_HOOK_NUMBER]) if _HOOK_NUMBER in hook else -1,
        int.from_bytes(hook.get(_HOOK_PRIORITY, b""), "big", signed=True),
        _CHAIN_POLICY in parts and netlink.network_number(parts[_CHAIN_POLICY]) == 0,
        netlink.network_number(counters[_PACKETS]) if _PACKETS in counters else None,
        tuple(rules.get((family, table, name), ())),
    )


def _rule(parts: Attributes, place: int) -> Rule:
    expressions = []
    packets = None
    for _, element in netlink.each(parts.get(_RULE_EXPRESSIONS, b"")):
        inner = netlink.attributes(element)
        name = netlink.text(inner.get(_EXPRESSION_NAME, b""))
        data = netlink.attributes(inner.get(_EXPRESSION_DATA, b""))
        expressions.append(Expression(name, data))
        if name == "counter":
            packets = netlink.network_number(data.get(_PACKETS, b""))
    handle = netlink.network_number(parts.get(_RULE_HANDLE, b""))
    return Rule(handle, place, tuple(expressions), packets)


def _legacy() -> list[str]:
    """Return which tables of iptables-legacy there are."""
    names: list[str] = []
    for path in _LEGACY:
        try:
            with open(path, encoding="ascii") as file:
                names += file.read().split()
        except OSError:
            continue
    return sorted(set(names))
