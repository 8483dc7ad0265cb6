"""`ig trace tcp`: every TCP connect, accept and close."""

from __future__ import annotations

from dataclasses import replace

from ig.columns import (
    ADDRESSES,
    RESOLVE,
    TIMESTAMP,
    attempt_columns,
    classic_columns,
    endpoint_columns,
    filter_params,
    integer,
    owner_columns,
    process_columns,
)
from ig.gadget import Batch, Column, Gadget, Kind, Param, View

_LETTERS = ("", "C", "A", "X", "U")  # enum type in tcp.h, as `ig tcptracer` has them
_SHOWN = ("src", "dst", "comm", "pid", "tid", "uid", "gid", "type", "error")


def _address(field: str) -> Column:
    def read(batch: Batch) -> list[str]:
        keys = zip(batch.fields["version"], batch.fields[field], strict=True)
        return list(map(ADDRESSES.__getitem__, keys))

    return Column(field, field, width=16, hidden=False, read=read)


_TYPE = next(column for column in attempt_columns() if column.name == "type")

_TCPTRACER = View(
    command="tcptracer",
    summary="Trace TCP connects, accepts and closes, as the classic tcptracer shows them.",
    columns=(
        Column(
            "t",
            width=1,
            hidden=False,
            read=lambda batch: [_LETTERS[number] for number in batch.fields["type"]],
        ),
        *(replace(c, hidden=c.hidden or c.name == "containername") for c in classic_columns()),
        integer("ip", "ipversion", "version", width=2, hidden=False),
        _address("saddr"),
        _address("daddr"),
        integer("sport", "sport", width=5, hidden=False),
        integer("dport", "dport", width=5, hidden=False),
        replace(_TYPE, name="operation", path="operation"),
    ),
)

GADGET = Gadget(
    name="trace_tcp",
    command=("trace", "tcp"),
    summary="Trace TCP connects, accepts and closes.",
    program="tcp.c",
    defines={"TRACE_CONNECT": 1, "TRACE_ACCEPT": 1, "TRACE_CLOSE": 1, "TRACE_DESCRIPTORS": 1},
    columns=(
        TIMESTAMP,
        *owner_columns(),
        *process_columns(shown=_SHOWN),
        *endpoint_columns("src", "saddr", "sport"),
        *endpoint_columns("dst", "daddr", "dport", far=True),
        *(replace(column, hidden=column.name not in _SHOWN) for column in attempt_columns()),
        integer("ip", "", "version", width=2),
        integer("fd", "fd", width=5),
        integer("accept_fd", "accept_fd", width=5),
        Column(
            "duration",
            "duration",
            Kind.DURATION,
            width=12,
            description="Of a close: since the connection was established.",
        ),
        integer("sent", "sent", width=10),
        integer("received", "received", width=10),
    ),
    shown=("containername", *_SHOWN),
    params=(
        Param(
            "connect_only",
            ("--connect-only",),
            "flag",
            "Show only connects.",
            define="CONNECT_ONLY",
            excludes=("accept_only",),
        ),
        Param(
            "accept_only", ("--accept-only",), "flag", "Show only accepts.", define="ACCEPT_ONLY"
        ),
        Param(
            "failure_only",
            ("--failure-only",),
            "flag",
            "Show only connects and accepts that did not succeed.",
            define="FAILURE_ONLY",
        ),
        *filter_params(),
        RESOLVE,
    ),
    views=(_TCPTRACER,),
)
