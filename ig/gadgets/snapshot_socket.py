"""`ig snapshot socket`: every TCP and UDP socket that exists now, and whose it is."""

from __future__ import annotations

import pwd
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ig.columns import integer, owner_columns
from ig.container import HOST, Container
from ig.ends import PROTOCOLS, RESOLVE, end_columns, named_end, text_end_columns
from ig.gadget import Batch, Column, Gadget, Kind, Param
from ig.memo import Cache

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
"""As in ig.sockets.proc, those of UDP after those of TCP, and that of ig.sockets.published."""


def _behind(batch: Batch) -> Sequence[Container]:
    return batch.fields.get("behind") or [HOST] * len(batch)


def _stands_for(batch: Batch) -> Sequence[str]:
    ports = _optional("behind_port", 0)(batch)
    named = named_end([""] * len(batch), ports, _behind(batch))
    return [text if port else "" for text, port in zip(named, ports, strict=True)]


def _queue(batch: Batch) -> Sequence[str]:
    ends = zip(batch.fields["recv_q"], batch.fields["send_q"], strict=True)
    return [f"{waiting}/{limit}" for waiting, limit in ends]


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
            "proto",
            width=5,
            drop=8,
            hidden=False,
            values=PROTOCOLS,
            description="Protocol: TCP or UDP.",
        ),
        *text_end_columns("src", "saddr", "sport", hidden=False),
        Column(
            "for",
            width=16,
            drop=10,
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
        *text_end_columns("dst", "daddr", "dport", far=True, show_if=_not_listening),
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
            drop=9,
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
            least=18,
            drop=11,
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
