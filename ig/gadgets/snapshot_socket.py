"""`ig snapshot socket`: every TCP and UDP socket that exists now, and whose it is."""

from __future__ import annotations

import pwd
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ig.columns import integer, owner_columns
from ig.containers.container import HOST, Container
from ig.ends import RESOLVE, end_columns, named_end, peers
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
"""The states in which a socket receives whatever is sent to its address."""


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
            description=f"{'Far' if name == 'dst' else 'Near'} end, as ADDRESS:PORT.",
        ),
        Column(
            f"{name}.addr",
            f"{name}.addr",
            read=lambda batch: batch.fields[address],
            description="IP address.",
        ),
        Column(
            f"{name}.zone",
            f"{name}.zone",
            width=10,
            read=lambda batch: _zones(batch, address),
            description="Interface of a link-local address.",
        ),
        integer(f"{name}.port", f"{name}.port", port, width=5, right=True, description="Port."),
        Column(
            f"{name}.proto",
            f"{name}.proto",
            read=lambda batch: batch.fields["proto"],
            width=5,
            values=_PROTOCOLS,
            description="Protocol: TCP or UDP.",
        ),
        integer(
            f"{name}.version",
            f"{name}.version",
            "version",
            width=3,
            description="IP version, 4 or 6.",
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
        Column(
            "proto", width=5, hidden=False, values=_PROTOCOLS, description="Protocol: TCP or UDP."
        ),
        *_end("src", "saddr", "sport", _here, hidden=False),
        Column(
            "for",
            width=16,
            read=_stands_for,
            show_if=_listening,
            description="Container and port behind a published port of the host.",
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
            description="Port in that container, 0 if none.",
        ),
        *_end("dst", "daddr", "dport", peers, show_if=_not_listening),
        Column(
            "state",
            "state",
            width=11,
            hidden=False,
            values=_STATES,
            description="Socket state; UDP: ESTABLISHED if connected, else INACTIVE.",
        ),
        integer(
            "state_raw", "state_raw", width=9, description="Socket state as the kernel's number."
        ),
        integer(
            "netns",
            "netns_id",
            "netns_id",
            width=10,
            description="Inode of the network namespace.",
        ),
        integer("ino", "ino", width=10, description="Inode of the socket, as in /proc/PID/fd."),
        integer(
            "uid",
            "uid",
            width=6,
            description="User ID of the socket, in the host's user namespace.",
        ),
        Column(
            "user",
            "user",
            width=10,
            read=lambda batch: _USERS.of(batch.fields["uid"]),
            description="Name of that user on the host.",
        ),
        Column(
            "queue",
            width=8,
            right=True,
            read=_queue,
            show_if=_listening,
            description="Listeners: connections waiting to be accepted / backlog limit.",
        ),
        integer(
            "recv_q",
            "recv_q",
            right=True,
            description="Receive queue in bytes; listeners: connections waiting to be accepted.",
        ),
        integer(
            "send_q",
            "send_q",
            right=True,
            description="Send queue in bytes; listeners: backlog limit.",
        ),
        integer("mark", "mark", description="Socket mark (SO_MARK)."),
        Column(
            "interface", "interface", width=10, description="Interface that the socket is bound to."
        ),
        Column(
            "cgroup", "cgroup", width=32, least=12, description="Path of the cgroup (version 2)."
        ),
        Column(
            "shared",
            "shared",
            Kind.BOOLEAN,
            width=6,
            description="Owner unknown: one of the containers that share the network namespace.",
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
            description="PID of a process that holds the socket, 0 if unknown.",
        ),
        Column(
            "comm",
            "proc.comm",
            least=7,
            drop=1,
            read=_optional("comm", ""),
            show_if=_processes,
            description="Name of that process.",
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
            description="All processes that hold the socket, each with pid and comm.",
        ),
        _of_info("rtt", "Smoothed round-trip time.", 7, Kind.DURATION),
        _of_info("retransmits", "Segments retransmitted in total.", 4),
        _of_info("cwnd", "Congestion window in segments.", 3, width=6),
        _of_info("bytes_sent", "Bytes sent, including retransmissions.", 5),
        _of_info("bytes_received", "Bytes received.", 6),
    ),
    params=(
        Param(
            "listening",
            ("-l", "--listening"),
            "flag",
            "Show only listeners; includes the host unless containers are selected.",
            excludes=("state",),
        ),
        Param("tcp", ("-t", "--tcp"), "flag", "Show TCP sockets."),
        Param("udp", ("-u", "--udp"), "flag", "Show UDP sockets."),
        Param("port", ("--port",), "ports", "Only sockets with one of these ports at either end."),
        Param("all", ("--all",), "flag", "Include TIME_WAIT and Docker's DNS resolver in tables."),
        Param("proto", ("--proto",), "string", "Only this protocol: tcp, udp, all.", "all"),
        Param("state", ("--state",), "strings", "Only these states: listen,established,…"),
        Param(
            "processes", ("-p", "--processes"), "flag", "Show the processes that hold each socket."
        ),
        Param("info", ("-i", "--info"), "flag", "Show round-trip time, retransmits and bytes."),
        RESOLVE,
        Param("sort", ("--sort",), "strings", "Sort by these columns; -COLUMN: descending."),
        Param("watch", ("-w", "--watch"), "interval", "Repeat every SECONDS (default 2)."),
    ),
)
