"""`ig trace tcpconnect`: every attempt to connect a TCP socket, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ig.columns import (
    RESOLVE,
    TIMESTAMP,
    attempt_columns,
    endpoint_columns,
    filter_params,
    integer,
    owner_columns,
    process_columns,
)
from ig.gadget import Gadget, Param


def _latency(options: Mapping[str, Any]) -> bool:
    return bool(options.get("latency"))


GADGET = Gadget(
    name="trace_tcpconnect",
    command=("trace", "tcpconnect"),
    summary="Trace TCP connects: who connects where, how fast, and what fails.",
    program="tcp.c",
    defines={"TRACE_CONNECT": 1},
    columns=(
        TIMESTAMP,
        *owner_columns(),
        *process_columns(shown=("pid", "comm")),
        integer("ip", "", "version", width=2, hidden=False),
        *endpoint_columns("src", "saddr", "sport"),
        *endpoint_columns("dst", "daddr", "dport", far=True),
        *(
            replace(column, show_if=_latency, right=True) if column.name == "latency" else column
            for column in attempt_columns()
        ),
    ),
    shown=("containername", "pid", "comm", "ip", "src", "dst"),
    params=(
        Param(
            "latency",
            ("-L", "--latency"),
            "flag",
            "Show each attempt when it is answered or given up, with the time from SYN to reply.",
            define="LATENCY",
        ),
        Param(
            "min",
            ("--min",),
            "duration",
            "Show only attempts that took at least so long (10ms, 1.5s); implies --latency.",
            define="MIN_LATENCY",
            implies={"latency": True},
        ),
        *filter_params(),
        RESOLVE,
    ),
)
