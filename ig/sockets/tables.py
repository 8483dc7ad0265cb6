"""Read the sockets of a network namespace in the best way that the kernel allows there."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ig.kernel.netns import Namespace
from ig.sockets import proc, sock_diag
from ig.sockets.fields import STATES, UDP_STATES, Fields, empty, extend

_TABLES_OF_PROCESS = "/proc/PID/net"
_NO_MODULE = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


class Reader:
    """Reads namespace after namespace; what it is not given by sock_diag it takes from /proc."""

    def __init__(self, asked: Mapping[str, int], info: bool) -> None:
        """Read the protocols in `asked` (TCP, UDP), each with a bit 1 << state for those wanted."""
        self._asked = asked
        self._info = info
        self._refused: dict[str, str] = {}
        self._unread = 0

    def read(self, namespace: Namespace, entered: bool) -> tuple[Namespace, Fields]:
        """Return the sockets of the namespace that this thread is in if `entered`.

        Two fields are added: the names of the state and of the interface (`state`, `interface`).
        """
        fields = empty(self._info)
        names: list[str] = []
        for proto, states in self._asked.items():
            if states:
                table = self._table(namespace, entered, proto, states)
                names += _named(table["state_raw"], _state(proto))
                extend(fields, table)
        fields["state"] = names
        fields["interface"] = _named(fields["ifindex"], _interface)
        return namespace, fields

    def shortcomings(self) -> list[str]:
        """Return a line for each thing that could not be read as it should be."""
        lines = [
            f"The kernel's sock_diag does not tell {proto} sockets ({why}): read from "
            f"{_TABLES_OF_PROCESS}/{proto.lower()}, where there is no mark, interface, or tcp_info."
            for proto, why in self._refused.items()
        ]
        if self._unread:
            lines.append(f"Network namespaces that could not be read at all: {self._unread}.")
        return lines

    def _table(self, namespace: Namespace, entered: bool, proto: str, states: int) -> Fields:
        if entered:
            try:
                return sock_diag.ask(proto, states, self._info)
            except OSError as error:
                self._refused[proto] = _why(error)
        else:
            self._refused.setdefault(proto, "a network namespace may not be entered")
        for who in ("thread-self",) if entered else namespace.tasks:
            try:
                return self._completed(proc.sockets(who, proto, states))
            except OSError:
                continue
        self._unread += 1
        return empty(self._info)

    def _completed(self, fields: Fields) -> dict[str, list[Any]]:
        count = len(fields["proto"])
        return {name: fields.get(name) or [0] * count for name in empty(self._info)}


def _why(error: OSError) -> str:
    if error.errno in _NO_MODULE:
        return f"its module is missing: {os.strerror(error.errno or 0)}"
    return os.strerror(error.errno or 0)


def _named(numbers: Sequence[int], name: Callable[[int], str]) -> list[str]:
    names = {number: name(number) for number in set(numbers)}
    return list(map(names.__getitem__, numbers))


def _state(proto: str) -> Callable[[int], str]:
    known = UDP_STATES if proto == "UDP" else STATES
    return lambda number: known.get(number, str(number))


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError:
        return str(index)
