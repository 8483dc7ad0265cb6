"""`ig trace tcp`: every TCP connect, accept and close."""

from __future__ import annotations

from dataclasses import replace

from ig.attempts import LATENCY, TYPES, WHY, attempt_columns, filter_params
from ig.columns import TIMESTAMP, classic_columns, failures, integer, owner_columns, process_columns
from ig.ends import ADDRESSES, RESOLVE, ZONED, addresses, endpoint_columns
from ig.gadget import Batch, Column, CompatView, Gadget, Kind, Param
from ig.summary_columns import sums

_LETTERS = {"": "", "connect": "C", "accept": "A", "close": "X", "unknown": "U"}
_CLOSE = TYPES.index("close")
_SHOWN = ("src", "dst", "comm", "pid", "tid", "uid", "gid", "type", "error", "outcome")


def _address(field: str) -> Column:
    def read(batch: Batch) -> list[str]:
        keys = zip(batch.fields["version"], batch.fields[field], strict=True)
        return list(map(ADDRESSES.__getitem__, keys))

    def zoned(batch: Batch) -> list[str]:
        return ZONED.of(addresses(batch, field))

    return Column(
        field,
        field,
        width=16,
        drop=2 if field == "saddr" else 0,
        hidden=False,
        read=read,
        text=zoned,
        description=f"{'Source' if field == 'saddr' else 'Destination'} address.",
    )


def _bytes(name: str, description: str) -> Column:
    """Return a column of bytes, which only closes have."""

    def text(batch: Batch) -> list[str]:
        pairs = zip(batch.fields[name], batch.fields["type"], strict=True)
        return [str(count) if kind == _CLOSE else "-" for count, kind in pairs]

    return integer(name, name, width=10, right=True, text=text, description=description)


_TYPE = next(column for column in attempt_columns() if column.name == "type")

_TCPTRACER = CompatView(
    command="tcptracer",
    summary="Trace TCP events in the classic tcptracer format.",
    columns=(
        Column(
            "t",
            width=1,
            hidden=False,
            read=lambda batch: [_LETTERS[TYPES[number]] for number in batch.fields["type"]],
            description="Event type: C connect, A accept, X close, U unknown.",
        ),
        *(replace(c, hidden=c.hidden or c.name == "containername") for c in classic_columns()),
        integer(
            "ip",
            "ipversion",
            "version",
            width=2,
            drop=1,
            hidden=False,
            description="IP version, 4 or 6.",
        ),
        _address("saddr"),
        _address("daddr"),
        integer("sport", "sport", width=5, drop=2, hidden=False, description="Source port."),
        integer("dport", "dport", width=5, hidden=False, description="Destination port."),
        replace(_TYPE, name="operation", path="operation"),
    ),
)

GADGET = Gadget(
    name="trace_tcp",
    command=("trace", "tcp"),
    summary="Trace TCP connects, accepts and closes.",
    program="tcp.c",
    event="ig.tcp.{type}",
    defines={"TRACE_CONNECT": 1, "TRACE_ACCEPT": 1, "TRACE_CLOSE": 1, "TRACE_DESCRIPTORS": 1},
    columns=(
        TIMESTAMP,
        *owner_columns(),
        *process_columns(shown=_SHOWN),
        *endpoint_columns("src", "saddr", "sport"),
        *endpoint_columns("dst", "daddr", "dport", far=True),
        *(replace(column, hidden=column.name not in _SHOWN) for column in attempt_columns()),
        integer("ip", "", "version", width=2, description="IP version, 4 or 6."),
        integer(
            "fd",
            "fd",
            width=5,
            description="File descriptor of the socket; accepts: of the listener.",
        ),
        integer(
            "accept_fd", "accept_fd", width=9, description="File descriptor that accept() returned."
        ),
        Column(
            "duration",
            "duration",
            Kind.DURATION,
            width=9,
            right=True,
            description="Closes only: time since the connection was established.",
        ),
        Column(
            "half_closed",
            "half_closed",
            Kind.DURATION,
            width=11,
            right=True,
            description="Closes only: time from shutdown() to the close, if the peer kept sending.",
        ),
        _bytes("sent", "Closes only: bytes sent."),
        _bytes("received", "Closes only: bytes received."),
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
        LATENCY,
        failures("connects and accepts that failed, were abandoned or are unanswered"),
        WHY,
        *filter_params(),
        RESOLVE,
    ),
    views=(_TCPTRACER,),
    sums=sums(connects_only=False),
)
