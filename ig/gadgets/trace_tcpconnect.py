"""`ig trace tcpconnect`: every attempt to connect a TCP socket, and how it ended."""

from __future__ import annotations

from ig.attempts import LATENCY, WHY, attempt_columns, filter_params
from ig.columns import TIMESTAMP, failures, integer, owner_columns, process_columns
from ig.ends import RESOLVE, endpoint_columns
from ig.gadget import Gadget, Param
from ig.summary_columns import sums

GADGET = Gadget(
    name="trace_tcpconnect",
    command=("trace", "tcpconnect"),
    summary="Trace TCP connection attempts and their outcome.",
    program="tcp.c",
    event="ig.tcp.{type}",
    defines={"TRACE_CONNECT": 1},
    columns=(
        TIMESTAMP,
        *owner_columns(),
        *process_columns(shown=("pid", "comm")),
        integer(
            "ip", "", "version", width=2, drop=1, hidden=False, description="IP version, 4 or 6."
        ),
        *endpoint_columns("src", "saddr", "sport"),
        *endpoint_columns("dst", "daddr", "dport", far=True),
        *attempt_columns(),
    ),
    shown=("containername", "pid", "comm", "ip", "src", "dst"),
    params=(
        LATENCY,
        Param(
            "min",
            ("--min",),
            "duration",
            "Show only attempts that took at least DURATION (10ms, 1.5s; a bare number is in ms); "
            "implies --latency.",
            define="MIN_LATENCY",
            implies={"latency": True},
        ),
        failures("attempts that failed, were abandoned or are unanswered"),
        WHY,
        *filter_params(),
        RESOLVE,
    ),
    sums=sums(connects_only=True),
)
