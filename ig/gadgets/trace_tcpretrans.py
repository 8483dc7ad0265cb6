"""`ig trace tcpretrans`: every TCP segment that is sent again, and whose connection it is."""

from __future__ import annotations

from ig.columns import TIMESTAMP, enum_names, hyphenated, integer, named, owner_columns
from ig.ends import RESOLVE, endpoint_columns
from ig.gadget import Column, Gadget, Param

_TYPES = hyphenated(enum_names("tcpretrans.c", "kind"))
_STATES = enum_names("tcpretrans.c", "state")

GADGET = Gadget(
    name="trace_tcpretrans",
    command=("trace", "tcpretrans"),
    summary="Trace TCP retransmissions: whose connections lose segments, and where to.",
    program="tcpretrans.c",
    event="ig.tcp.retransmit",
    columns=(
        TIMESTAMP,
        *owner_columns(),
        integer(
            "netns",
            "netns_id",
            width=10,
            description="Inode of the socket's network namespace.",
        ),
        integer(
            "cgroup", "", width=10, description="ID of the cgroup in which the socket was made."
        ),
        integer("ip", "", "version", width=2, drop=1, description="IP version, 4 or 6."),
        *endpoint_columns("src", "saddr", "sport"),
        *endpoint_columns("dst", "daddr", "dport", far=True),
        Column(
            "state",
            "state",
            width=11,
            hidden=False,
            drop=3,
            read=named("state", _STATES),
            values=_STATES[1:],
            description="TCP state of the connection.",
        ),
        Column(
            "type",
            "type",
            width=7,
            hidden=False,
            read=named("kind", _TYPES),
            values=_TYPES[1:],
            description="What is sent again: syn, syn-ack, or data (a FIN too).",
        ),
        integer(
            "retransmits",
            "retransmits",
            hidden=False,
            right=True,
            width=11,
            description="Retransmissions on this connection so far, this one included; "
            "of a SYN-ACK, of this request.",
        ),
    ),
    shown=("containername", "src", "dst", "state", "type", "retransmits"),
    params=(
        Param(
            "port",
            ("--port",),
            "port",
            "Only this port at the far end (number or service).",
            define="FILTER_PORT",
        ),
        RESOLVE,
    ),
)
