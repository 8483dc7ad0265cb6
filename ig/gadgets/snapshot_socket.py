"""`ig snapshot socket`: every TCP and UDP socket that exists now, and whose it is."""

from __future__ import annotations

import pwd
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ig.columns import RESOLVE, end_columns, integer, named_end, owner_columns, peers
from ig.containers.container import HOST, Container
from ig.gadget import Batch, Column, Gadget, Kind, Param
from ig.memo import Cache

_PROTOCOLS = ("TCP", "UDP")
_STATES = (
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "ACTIVE",
    "INACTIVE",
    "PUBLISHED",
)
"""As in ig.sockets.fields, those of UDP after those of TCP, and that of ig.sockets.published."""

_LINK_LOCAL = ("fe8", "fe9", "fea", "feb")
"""What addresses of fe80::/10 begin with: they mean something only beside an interface."""


_NOTHING = frozenset({("0.0.0.0", 0), ("[::]", 0)})
"""The far end of a socket that is connected to nothing."""
_BOUND = frozenset({"LISTEN", "INACTIVE", "PUBLISHED"})
"""The states in which a socket takes what comes to its address, whoever it is called."""


def _bound(named: str, plain: str) -> str:
    """Return an address that is bound and, in parentheses, whose it is if that is known."""
    name = named.rpartition(":")[0]
    return f"{plain}({name})" if plain and name.startswith(("c/", "p/")) else plain


def _behind(batch: Batch) -> Sequence[Container]:
    return batch.fields.get("behind") or [HOST] * len(batch)


def _stands_for(batch: Batch) -> Sequence[str]:
    ports = _optional("behind_port", 0)(batch)
    named = named_end([""] * len(batch), ports, _behind(batch))
    return [text if port else "" for text, port in zip(named, ports, strict=True)]


def _queue(batch: Batch) -> Sequence[str]:
    ends = zip(batch.fields["recv_q"], batch.fields["send_q"], strict=True)
    return [f"{waiting}/{limit}" for waiting, limit in ends]


def _here(batch: Batch) -> Sequence[Container]:
    return batch.owners


def _zones(batch: Batch, address: str) -> Sequence[str]:
    """Return the interface of each link-local address, "" for the others."""
    interfaces = batch.fields["interface"]
    if not any(interfaces):
        return interfaces
    return [
        interface if text.startswith(_LINK_LOCAL) else ""
        for text, interface in zip(batch.fields[address], interfaces, strict=True)
    ]


def _bracketed(batch: Batch, address: str) -> list[str]:
    """Return each address as it stands before a port: `[fe80::1%eth0]` is RFC 4007's form."""
    return [
        (f"[{text}%{zone}]" if zone else f"[{text}]") if ":" in text else text
        for text, zone in zip(batch.fields[address], _zones(batch, address), strict=True)
    ]


def _end(
    name: str,
    address: str,
    port: str,
    whose: Callable[[Batch], Sequence[Container]],
    **shown: Any,
) -> tuple[Column, ...]:
    """Return the columns of one end; unlike other gadgets' its protocol is the row's.

    In JSON each part is its own column: most are the same in many rows, and so cost nothing.
    """

    def both(batch: Batch) -> Sequence[str]:
        ends = zip(_bracketed(batch, address), batch.fields[port], strict=True)
        return ["" if end in _NOTHING else f"{end[0]}:{end[1]}" for end in ends]

    def named(batch: Batch) -> Sequence[str]:
        shown = named_end(_bracketed(batch, address), batch.fields[port], whose(batch))
        return [
            _bound(text, plain) if state in _BOUND else text
            for text, plain, state in zip(shown, both(batch), batch.fields["state"], strict=True)
        ]

    return (
        Column(
            name,
            width=22,
            drop=9 if name == "dst" else 0,
            read=both,
            resolved=named,
            **shown,
            description=f"The {'far' if name == 'dst' else 'near'} end, as ADDRESS:PORT.",
        ),
        Column(
            f"{name}.addr",
            f"{name}.addr",
            read=lambda batch: batch.fields[address],
            description="Its address.",
        ),
        Column(
            f"{name}.zone",
            f"{name}.zone",
            width=10,
            read=lambda batch: _zones(batch, address),
            description="Interface that a link-local address belongs to.",
        ),
        integer(f"{name}.port", f"{name}.port", port, width=5, right=True, description="Its port."),
        Column(
            f"{name}.proto",
            f"{name}.proto",
            read=lambda batch: batch.fields["proto"],
            width=5,
            values=_PROTOCOLS,
            description="TCP or UDP.",
        ),
        integer(
            f"{name}.version",
            f"{name}.version",
            "version",
            width=3,
            description="Version of IP, 4 or 6.",
        ),
        *end_columns(name, None if whose is _here else whose, paths=True),
    )


class _Users:
    """The names of users, or their numbers where names do not come in time.

    Names may come over a network, and a signal does not end the wait for that: it is done in a
    thread. Where one did not come in time, none is looked up any more.
    """

    def __init__(self) -> None:
        self._left = _NAMING
        self._names: dict[int, str] = {}

    def name(self, uid: int) -> str:
        began = time.monotonic()
        if self._left > 0:
            thread = threading.Thread(target=self._look_up, args=(uid,), daemon=True)
            thread.start()
            thread.join(self._left)
            self._left -= time.monotonic() - began
        return self._names.get(uid, str(uid))

    def _look_up(self, uid: int) -> None:
        with suppress(KeyError, OSError):
            self._names[uid] = pwd.getpwuid(uid).pw_name


_NAMING = 1.0
"""Seconds that the names of all users may take together."""
_USERS: Cache[int, str] = Cache(_Users().name)


def _optional(name: str, missing: Any) -> Callable[[Batch], Sequence[Any]]:
    return lambda batch: batch.fields.get(name) or [missing] * len(batch)


def _holders(batch: Batch) -> Sequence[str]:
    held = _optional("processes", ())(batch)
    return [",".join(f"{comm}/{pid}" for pid, comm in each) for each in held]


def _processes(options: Mapping[str, Any]) -> bool:
    return bool(options.get("processes"))


def _listening(options: Mapping[str, Any]) -> bool:
    return bool(options.get("listening"))


def _not_listening(options: Mapping[str, Any]) -> bool:
    return not options.get("listening")


def _info(options: Mapping[str, Any]) -> bool:
    return bool(options.get("info"))


def _of_info(
    name: str, description: str, drop: int, kind: Kind = Kind.INTEGER, width: int = 10
) -> Column:
    return Column(
        name,
        name,
        kind,
        width=width,
        drop=drop,
        read=_optional(name, 0),
        show_if=_info,
        description=description,
        right=True,
    )


GADGET = Gadget(
    name="snapshot_socket",
    command=("snapshot", "socket"),
    summary="Show the TCP and UDP sockets of containers.",
    source="sockets",
    columns=(
        *owner_columns(),
        Column("proto", width=5, hidden=False, values=_PROTOCOLS, description="TCP or UDP."),
        *_end("src", "saddr", "sport", _here, hidden=False),
        Column(
            "for",
            width=16,
            read=_stands_for,
            show_if=_listening,
            description="The container and port that a published port of the host's stands for.",
        ),
        *end_columns("for", _behind, paths=True),
        Column(
            "for.port",
            "for.port",
            Kind.INTEGER,
            width=5,
            right=True,
            optional=True,
            read=_optional("behind_port", 0),
            description="The port in that container, 0 for none.",
        ),
        *_end("dst", "daddr", "dport", peers, show_if=_not_listening),
        Column(
            "state",
            "state",
            width=11,
            hidden=False,
            values=_STATES,
            description="The state; of UDP, ESTABLISHED if it is connected, else INACTIVE.",
        ),
        integer("state_raw", "state_raw", width=9, description="The kernel's number of the state."),
        integer(
            "netns",
            "netns_id",
            "netns_id",
            width=10,
            description="Inode of its network namespace.",
        ),
        integer("ino", "ino", width=10, description="The socket's inode, as in /proc/PID/fd."),
        integer("uid", "uid", width=6, description="Its user, as the host numbers users."),
        Column(
            "user",
            "user",
            width=10,
            read=lambda batch: _USERS.of(batch.fields["uid"]),
            description="That user's name on the host.",
        ),
        Column(
            "queue",
            width=8,
            right=True,
            read=_queue,
            show_if=_listening,
            description="Of a listener: connections waiting to be accepted, and their limit.",
        ),
        integer("recv_q", "recv_q", right=True, description="Bytes; of a listener, waiting."),
        integer("send_q", "send_q", right=True, description="Bytes; of a listener, its limit."),
        integer("mark", "mark", description="Its mark (SO_MARK)."),
        Column("interface", "interface", width=10, description="What the socket is bound to."),
        Column("cgroup", "cgroup", width=32, least=12, description="Path of the version 2 cgroup."),
        Column(
            "shared",
            "shared",
            Kind.BOOLEAN,
            width=6,
            description="Owned by one of those that share the namespace, unknown which.",
        ),
        Column(
            "pid",
            "proc.pid",
            Kind.INTEGER,
            width=8,
            drop=2,
            optional=True,
            read=_optional("pid", 0),
            show_if=_processes,
            description="A process that holds it, 0 if none is known.",
        ),
        Column(
            "comm",
            "proc.comm",
            least=7,
            drop=1,
            read=_optional("comm", ""),
            show_if=_processes,
            description="That process's name.",
        ),
        Column(
            "processes",
            "processes",
            width=24,
            least=12,
            drop=8,
            read=_holders,
            json=_optional("processes", ()),
            members=("pid", "comm"),
            show_if=_processes,
            description="All processes that hold it, each with pid and comm.",
        ),
        _of_info("rtt", "Smoothed round trip time.", 7, Kind.DURATION),
        _of_info("retransmits", "Segments sent again, in all.", 4),
        _of_info("cwnd", "Congestion window, in segments.", 3, width=6),
        _of_info("bytes_sent", "Bytes sent, those sent again included.", 5),
        _of_info("bytes_received", "Bytes received.", 6),
    ),
    params=(
        Param(
            "listening",
            ("-l", "--listening"),
            "flag",
            "Show only what listens, of the host too unless containers are chosen.",
            excludes=("state",),
        ),
        Param("tcp", ("-t", "--tcp"), "flag", "Show TCP."),
        Param("udp", ("-u", "--udp"), "flag", "Show UDP."),
        Param("port", ("--port",), "ports", "Show only sockets with one of these ports."),
        Param("all", ("--all",), "flag", "Show TIME_WAIT and the engine's resolver in tables too."),
        Param("proto", ("--proto",), "string", "Show only this protocol: tcp, udp, all.", "all"),
        Param("state", ("--state",), "strings", "Show only these states: listen,established,…"),
        Param("processes", ("-p", "--processes"), "flag", "Show who holds the sockets."),
        Param("info", ("-i", "--info"), "flag", "Show round trip time, retransmits, bytes."),
        RESOLVE,
        Param("sort", ("--sort",), "strings", "Order by these columns, -COLUMN downwards."),
        Param("watch", ("-w", "--watch"), "interval", "Show again every so many seconds, or 2."),
    ),
)
