"""`ig trace bind`: every bind of an IP socket, with the options that decide what it may share."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace

from ig import c_text
from ig.columns import (
    STRINGS,
    TIMESTAMP,
    classic_columns,
    error_column,
    failures,
    integer,
    owner_columns,
    process_columns,
)
from ig.ends import ADDRESSES, ZONED, addresses, zone_column
from ig.gadget import Batch, Column, CompatView, Gadget, Param, Withheld
from ig.memo import Cache

_PROTOCOLS: Cache[int, str] = Cache(
    lambda number: next(
        (
            name.removeprefix("IPPROTO_")
            for name, value in vars(socket).items()
            if name.startswith("IPPROTO_") and value == number
        ),
        str(number),
    )
)
_LETTERS = {
    "REUSE_PORT": "r",
    "REUSE_ADDRESS": "R",
    "NO_PORT": "N",
    "TRANSPARENT": "T",
    "FREEBIND": "F",
}
_BITS = {
    letter: c_text.enum(c_text.read("bind.c"), "option")[name] for name, letter in _LETTERS.items()
}
_OPTIONS: Cache[int, str] = Cache(
    lambda bits: "".join(letter if bits & bit else "." for letter, bit in _BITS.items())
)


def _address(batch: Batch) -> Sequence[str]:
    return ADDRESSES.of(list(zip(batch.fields["version"], batch.fields["addr"], strict=True)))


def _device(batch: Batch) -> Sequence[str]:
    names = STRINGS.of(batch.fields["device"])
    return [
        name or str(index) for name, index in zip(names, batch.fields["bound_dev_if"], strict=True)
    ]


def _device_text(batch: Batch) -> Sequence[str]:
    return ["-" if name == "0" else name for name in _device(batch)]


_PROTO = Column(
    "proto",
    "addr.proto",
    width=8,
    hidden=False,
    read=lambda batch: _PROTOCOLS.of(batch.fields["proto"]),
    drop=6,
    description="Protocol: TCP, UDP, …",
)
_ADDR = Column(
    "addr",
    "addr.addr",
    hidden=False,
    read=_address,
    text=lambda batch: ZONED.of(addresses(batch, "addr")),
    description="Address that was bound; of a failed bind, the requested one.",
)
_PORT = integer(
    "port",
    "addr.port",
    width=5,
    hidden=False,
    description="Port that was bound; of a failed bind, the requested one.",
)
_OPTS = Column(
    "opts",
    "opts",
    width=5,
    hidden=False,
    read=lambda batch: _OPTIONS.of(batch.fields["opts"]),
    drop=2,
    description="Socket options: r SO_REUSEPORT, R SO_REUSEADDR, N IP_BIND_ADDRESS_NO_PORT, "
    "T IP_TRANSPARENT, F IP_FREEBIND; a dot for each that is not set.",
)
_IF = Column(
    "if",
    "bound_dev_if",
    width=8,
    hidden=False,
    read=_device,
    text=_device_text,
    drop=1,
    json=lambda batch: batch.fields["bound_dev_if"],
    description="Interface that the socket is bound to, 0 if none; its index in JSON.",
)

_BINDSNOOP = CompatView(
    command="bindsnoop",
    summary="Trace binds in the classic bindsnoop format.",
    columns=(
        *classic_columns(),
        replace(_PROTO, path="proto"),
        replace(_ADDR, path="addr"),
        replace(_PORT, path="port"),
        _OPTS,
        replace(_IF, path="if", json=None),
        integer(
            "mntns", "mountnsid", width=10, description="Inode of the process's mount namespace."
        ),
    ),
)

GADGET = Gadget(
    name="trace_bind",
    command=("trace", "bind"),
    summary="Trace binds: addresses, ports and socket options.",
    program="bind.c",
    event="ig.socket.bind",
    columns=(
        TIMESTAMP,
        *owner_columns(),
        *process_columns(shown=("pid", "comm")),
        _ADDR,
        zone_column("zone", "addr", "addr.zone"),
        _PORT,
        _PROTO,
        integer("version", "addr.version", width=7, description="IP version, 4 or 6."),
        _OPTS,
        _IF,
        replace(
            error_column(),
            show_if=lambda options: not options.get("ignore_errors"),
            style=lambda batch: ["failure" if error else "" for error in batch.fields["error"]],
        ),
        integer(
            "error_raw",
            "error_raw",
            "error",
            width=9,
            description="Error number (errno), 0 if none.",
        ),
    ),
    shown=("containername", "pid", "comm", "proto", "addr", "port", "opts", "if"),
    params=(
        Param("pid", ("--pid",), "pid", "Only the process with this PID.", define="FILTER_PID"),
        Param("ports", ("-P", "--ports"), "ports", "Only these ports.", define="FILTER_PORTS"),
        Param(
            "ignore_errors",
            ("-i", "--ignore-errors"),
            "flag",
            "Show only successful binds; -i=false shows failed ones too.",
            default=True,
        ),
        failures("binds that failed", implies={"ignore_errors": False}),
    ),
    views=(_BINDSNOOP,),
    withheld=Withheld(
        "ignore_errors", "error_raw", "{count} failed binds not shown; use -i=false to show them."
    ),
)
