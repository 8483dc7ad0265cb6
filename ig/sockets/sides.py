"""Have the kernel choose connections by whether something listens where they begin.

Source: linux/inet_diag.h, inet_diag_bc_run() and inet_diag_bc_audit() in net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

Listener = tuple[str, int]
"""An address and a port that something listens on."""
Listeners = Mapping[int, Collection[Listener]]
"""Those of each network namespace, by its id."""

WILDCARDS = ("0.0.0.0", "::")
_MOST = 64
"""Listeners that are compared with each connection; with more of them all are read."""
_JUMP, _SOURCE = 1, 7  # INET_DIAG_BC_JMP, INET_DIAG_BC_S_COND
_operation = struct.Struct("=BBH")  # inet_diag_bc_op: code; how many bytes to go on, yes and no
_condition = struct.Struct("=BBxxi")  # inet_diag_hostcond: family, prefix_len, port


class Side(NamedTuple):
    """Which connections are wanted: those that were accepted, or the others.

    Of these the interface, the queues and the user are not read.
    """

    accepted: bool
    former: Listeners
    """Listeners that are gone, some of whose connections are still there."""
    whole: Callable[[int], bool]
    """Return whether all connections of a namespace are wanted."""

    def chosen(self, namespace: int, listeners: Iterable[Listener]) -> bytes | None:
        """Return the filter for a namespace with these listeners, empty if all are to be read.

        None if it has none of the wanted connections. There may be others among what it lets pass.
        """
        served = {*listeners, *(self.former.get(namespace, ()) if self.accepted else ())}
        if self.whole(namespace) or len(served) > _MOST:
            return b""
        if not served:
            return None if self.accepted else b""
        return _program([_compared(*each) for each in sorted(served)], self.accepted)


def serving(address: str) -> tuple[str, ...]:
    """Return the addresses of listeners that may accept what is sent to an address."""
    return (address, "::") if ":" in address else (address, *WILDCARDS)


def _compared(address: str, port: int) -> bytes:
    """Return a condition without its operation: that a connection begins there."""
    if address == "::":  # IPv4 too, unless it was told not to
        return _condition.pack(socket.AF_UNSPEC, 0, port)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    octets = socket.inet_pton(family, address)
    compared = 0 if address in WILDCARDS else 8 * len(octets)
    return _condition.pack(family, compared, port) + octets


def _program(conditions: list[bytes], accepted: bool) -> bytes:
    """Return the filter that lets pass what meets one of the conditions, or none of them.

    Each is followed by a jump where it is met: to the end, which lets pass, or 4 bytes beyond it.
    """
    step = _operation.size
    program = _operation.pack(_JUMP, step, 2 * step) if accepted else b""
    for condition in reversed(conditions):
        left = step + len(program)
        program = _operation.pack(_JUMP, step, left if accepted else left + step) + program
        size = step + len(condition)
        program = _operation.pack(_SOURCE, size, size + step) + condition + program
    return program
