"""Read the sockets of one network namespace after another, by sock_diag or else from /proc."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ig.kernel.netns import Namespace
from ig.sockets import proc, sock_diag
from ig.sockets.proc import LISTEN, STATES, UDP_STATES, Fields, empty, extend
from ig.sockets.sides import Side

_UNUSED = ("ifindex", "recv_q", "send_q", "uid")
"""The fields that are 0 in what is read of one side: that saves time."""
_TABLES_OF_PROCESS = "/proc/PID/net"
_NO_MODULE = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


class Reader:
    """Reads one namespace after another, by sock_diag or else from /proc."""

    def __init__(
        self, asked: Mapping[str, int], more: Sequence[str] = (), side: Side | None = None
    ) -> None:
        """Read the protocols in `asked` (TCP, UDP), each with a bit 1 << state for those wanted.

        `more` are the fields besides FIELDS. Of TCP connections those of the other `side` may be
        left out; listeners are asked for then.
        """
        self._asked = asked
        self._more = more
        self._side = side
        self._refused: dict[str, str] = {}
        self._unread = 0

    def read(self, namespace: Namespace, entered: bool) -> tuple[Namespace, Fields]:
        """Return the sockets of the namespace that this thread is in if `entered`.

        Two fields are added: the names of the state and of the interface (`state`, `interface`).
        """
        fields = empty(self._more)
        names: list[str] = []
        for proto, states in self._asked.items():
            if states:
                table = self._table(namespace, entered, proto, states)
                names += _named(table["state_raw"], _state(proto))
                extend(fields, table)
        fields["state"] = names
        fields["interface"] = _named(fields["ifindex"], _interface)
        return namespace, fields

    def warnings(self) -> list[str]:
        """Return a warning for each limitation of what was read."""
        lines = [
            f"warning: no sock_diag for {proto} sockets ({why}): using "
            f"{_TABLES_OF_PROCESS}/{proto.lower()}, without mark, interface and tcp_info."
            for proto, why in self._refused.items()
        ]
        if self._unread:
            lines.append(f"warning: {self._unread} network namespaces could not be read.")
        return lines

    def _table(self, namespace: Namespace, entered: bool, proto: str, states: int) -> Fields:
        if entered:
            try:
                if self._side and proto == "TCP":
                    return self._one_side(self._side, namespace, states)
                return sock_diag.ask(proto, states, self._more)
            except OSError as error:
                self._refused[proto] = _why(error)
        else:
            self._refused.setdefault(proto, "no permission to enter a network namespace")
        for who in ("thread-self",) if entered else namespace.tasks:
            try:
                return self._completed(proc.sockets(who, proto, states))
            except OSError:
                continue
        self._unread += 1
        return empty(self._more)

    def _one_side(self, side: Side, namespace: Namespace, states: int) -> Fields:
        before = proc.tcp_in_use()
        fields = sock_diag.ask("TCP", 1 << LISTEN, self._more)
        listeners = list(zip(fields["saddr"], fields["sport"], strict=True))
        chosen = side.chosen(namespace.id, listeners)
        # Each reading of connections walks the table of all namespaces. A listener that begins or
        # ends meanwhile is counted on one side only.
        if chosen is not None and max(before, proc.tcp_in_use()) > len(listeners):
            extend(
                fields, sock_diag.ask("TCP", states & ~(1 << LISTEN), self._more, chosen, _UNUSED)
            )
        return fields

    def _completed(self, fields: Fields) -> dict[str, list[Any]]:
        count = len(fields["proto"])
        return {name: fields.get(name) or [0] * count for name in empty(self._more)}


def _why(error: OSError) -> str:
    if error.errno in _NO_MODULE:
        return f"kernel module missing: {os.strerror(error.errno or 0)}"
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
