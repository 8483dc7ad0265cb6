"""What single expressions of nftables' rules do: compare, mask, decide.

Source: linux/netfilter/nf_tables.h, net/netfilter/nft_*.c.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from ig.kernel import netlink
from ig.kernel.nftables import Expression

_DROP, _ACCEPT, _BREAK, _JUMP, _GOTO, _RETURN = 0, 1, -2, -3, -4, -5
_DNAT = 1  # NFT_NAT_DNAT
_TARGETS = {
    "REJECT": "reject",
    "DROP": "drop",
    "ACCEPT": "accept",
    "TPROXY": "accept",
    "NFQUEUE": "unknown",
    "DNAT": "translate",
    "REDIRECT": "translate",
    "NETMAP": "translate",
}
_OPERATORS: Mapping[int, Callable[[bytes, bytes], bool]] = dict(
    enumerate((operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge))
)


def is_notrack(expression: Expression) -> bool:
    """Return whether an expression may exempt a packet from connection tracking."""
    target = netlink.text(expression.data.get(1, b"")) if expression.name == "target" else ""
    return expression.name == "notrack" or target in ("CT", "NOTRACK")


def verdict(expression: Expression) -> tuple[str, str]:
    """Return the verdict of an expression, and the chain that it leads to; "" for none."""
    data = expression.data

    def number(kind: int) -> int:
        return netlink.network_number(data.get(kind, b""))

    if expression.name == "reject":
        return "reject", ""
    if expression.name == "target":
        name = netlink.text(data.get(1, b""))
        return _TARGETS.get(name, ""), ""
    if expression.name == "redir" or (expression.name == "nat" and number(1) == _DNAT):
        return "translate", ""
    if expression.name == "queue" or (
        expression.name == "lookup" and 3 in data and number(3) == 0  # a verdict map
    ):
        return "unknown", ""
    if expression.name in ("tproxy", "synproxy"):
        return "accept", ""
    if expression.name != "immediate" or number(1) != 0:
        return "", ""
    decision = netlink.attributes(netlink.attributes(data.get(2, b"")).get(2, b""))
    code = int.from_bytes(decision.get(1, b""), "big", signed=True)
    names = {_DROP: "drop", _ACCEPT: "accept", _JUMP: "jump", _GOTO: "goto", _RETURN: "return"}
    return names.get(code, ""), netlink.text(decision.get(2, b""))


def place(register: int) -> int:
    """Return the offset of a register: of 16 bytes (1 to 4), or of 4 (8 and up)."""
    return (register - 8) * 4 if register >= 8 else (register - 1) * 16


def _constant(data: bytes) -> bytes:
    return netlink.attributes(data).get(1, b"")


def masked(value: bytes | None, data: Mapping[int, bytes]) -> bytes | None:
    """Return what a bitwise expression makes of a value, None where that is not known."""
    mask, other = _constant(data.get(4, b"")), _constant(data.get(5, b""))
    if value is None or len(mask) != len(value) or netlink.network_number(data.get(6, b"")):
        return None
    return bytes(v & m ^ x for v, m, x in zip(value, mask, other, strict=False))


def compared(value: bytes | None, how: int, data: Mapping[int, bytes]) -> bool | None:
    """Return whether a comparison holds, None where the value is not known."""
    wanted = _constant(data.get(3, b""))
    if value is None or len(value) < len(wanted) or how not in _OPERATORS:
        return None
    return _OPERATORS[how](value[: len(wanted)], wanted)
