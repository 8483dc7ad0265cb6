"""The conntrack match of xtables, as far as it asks for the state alone.

Source: linux/netfilter/xt_conntrack.h, net/netfilter/xt_conntrack.c.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ig.kernel import netlink

_REVISION, _INFO = 2, 3  # NFTA_MATCH_REV, NFTA_MATCH_INFO
_FLAGS = struct.Struct("=HHH")  # of struct xt_conntrack_mtinfo3: match_flags, invert_flags, state
_OFFSET = 146  # eight addresses of 16 bytes, two numbers of 4, five of 2
_STATE = 1  # XT_CONNTRACK_STATE
_STATES = 0x0F  # INVALID, ESTABLISHED, RELATED, NEW; others depend on address translation


def holds(data: Mapping[int, bytes], state: int) -> bool | None:
    """Return whether a match holds for the bit of a state; None where it asks for more."""
    info = data.get(_INFO, b"")
    if netlink.network_number(data.get(_REVISION, b"")) != 3 or len(info) < _OFFSET + _FLAGS.size:
        return None
    asked, inverted, states = _FLAGS.unpack_from(info, _OFFSET)
    if asked != _STATE or states & ~_STATES:
        return None
    return bool(states & state) != bool(inverted & _STATE)
