"""Columns that gadgets share, and what they are made of: owners, processes, endpoints, errors."""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from ig import c_text
from ig.containers.container import HOST, Container
from ig.durations import SECOND
from ig.gadget import Address, Batch, Column, End, Kind, Param, of_each
from ig.memo import Cache


def _owner_names(batch: Batch) -> Sequence[str]:
    """Return the owner names for tables: `host` for the host."""
    return of_each(batch.owners, lambda owner: "host" if owner is HOST else owner.name)


def owner_columns() -> tuple[Column, ...]:
    """Return the columns of an event's owner: runtime names, then Kubernetes names."""
    return (
        Column(
            "runtime",
            "runtime.runtimeName",
            width=10,
            of_owner=attrgetter("runtime"),
            description="Container runtime: docker, containerd, podman, cri-o, …",
        ),
        Column(
            "containername",
            "runtime.containerName",
            heading="RUNTIME.CONTAINERNAME",
            width=24,
            least=9,
            hidden=False,
            of_owner=attrgetter("name"),
            text=_owner_names,
            description="Container name, or the start of its ID; empty for the host.",
        ),
        Column(
            "containerid",
            "runtime.containerId",
            width=13,
            least=12,
            of_owner=attrgetter("id"),
            description="Container ID.",
        ),
        Column(
            "image",
            "runtime.containerImageName",
            width=24,
            least=12,
            of_owner=attrgetter("image"),
            description="Container image.",
        ),
        Column(
            "nested",
            "runtime.nestedId",
            width=13,
            least=12,
            of_owner=attrgetter("nested"),
            description="ID of a container nested in the container (Docker in Docker), else empty.",
        ),
        Column(
            "namespace",
            "k8s.namespace",
            heading="K8S.NAMESPACE",
            least=9,
            of_owner=attrgetter("pod_namespace"),
            description="Kubernetes namespace of the pod.",
        ),
        Column(
            "podname",
            "k8s.podName",
            heading="K8S.PODNAME",
            width=24,
            least=12,
            of_owner=attrgetter("pod_name"),
            description="Pod name.",
        ),
        Column(
            "podcontainer",
            "k8s.containerName",
            heading="K8S.CONTAINERNAME",
            least=13,
            drop=8,
            of_owner=attrgetter("pod_container"),
            description="Name of the container within the pod.",
        ),
        Column(
            "node",
            "k8s.node",
            heading="K8S.NODE",
            least=8,
            of_owner=_node,
            description="Host name.",
        ),
    )


@functools.cache
def _host_name() -> str:
    return socket.gethostname()


def _node(_: Container) -> str:
    return _host_name()


ADDRESSES: Cache[tuple[int, bytes], str] = Cache(
    lambda key: (
        ""
        if key[0] not in (4, 6)
        else socket.inet_ntop(
            socket.AF_INET if key[0] == 4 else socket.AF_INET6, key[1][: 4 if key[0] == 4 else 16]
        )
    )
)
"""(IP version, 16 bytes with the address in front, network byte order) to text."""
ZONED: Cache[Address, str] = Cache(
    lambda key: f"{ADDRESSES[key[:2]]}%{STRINGS[key[2]]}" if key[2] else ADDRESSES[key[:2]]
)
"""The same with its zone, as `zones` returns it, to text: `fe80::1%eth0` (RFC 4007)."""
BRACKETED: Cache[Address, str] = Cache(lambda key: f"[{ZONED[key]}]" if key[0] == 6 else ZONED[key])
"""The same as it stands before a port."""
ERRORS: Cache[int, str] = Cache(
    lambda number: errno.errorcode.get(number, str(number)) if number else ""
)
"""errno to its name, 0 to the empty string."""
STRINGS: Cache[bytes, str] = Cache(
    lambda raw: raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
)
"""A C string in a fixed field to text; bytes that are no UTF-8 become `\\xNN`."""


def text(field: str) -> Callable[[Batch], Sequence[str]]:
    """Return a reader of a `char` field."""
    return lambda batch: STRINGS.of(batch.fields[field])


_NO_DEVICE = bytes(16)


def zones(batch: Batch, address: str) -> Sequence[bytes]:
    """Return the device that each link-local address belongs to, b"" for other addresses."""
    versions, devices = batch.fields["version"], batch.fields.get("zone", ())
    if 6 not in versions or devices.count(_NO_DEVICE) == len(devices):
        return [b""] * len(batch)
    return [
        device if version == 6 and raw[0] == 0xFE and raw[1] & 0xC0 == 0x80 and device[0] else b""
        for version, raw, device in zip(versions, batch.fields[address], devices, strict=True)
    ]


def addresses(batch: Batch, address: str) -> list[Address]:
    """Return (IP version, bytes, zone) of each address: what ZONED and BRACKETED are asked for."""
    keys = zip(batch.fields["version"], batch.fields[address], zones(batch, address), strict=True)
    return list(keys)


def zone_column(name: str, address: str, path: str = "") -> Column:
    """Return the column of the device that a link-local address belongs to."""
    return Column(
        name,
        path,
        width=10,
        read=lambda batch: STRINGS.of(zones(batch, address)),
        description="Interface of a link-local address.",
    )


def _owners(batch: Batch) -> Sequence[Container]:
    return batch.owners


def peers(batch: Batch) -> Sequence[Container]:
    """Return the owner of the far end, HOST if unknown."""
    return batch.fields.get("peer") or [HOST] * len(batch)


END_KINDS = ("container", "pod", "raw")


def end_kind(container: Container) -> str:
    """Return the kind of an end of a connection: `pod`, `container`, or `raw` (neither)."""
    if container.pod_name:
        return "pod"
    return "container" if container.name else "raw"


def end_name(container: Container) -> str:
    """Return the name of a pod or a container, empty for what is neither."""
    return container.pod_name or container.name


def _shown_end(container: Container) -> str:
    """Return the name as Inspektor Gadget shows it; empty for neither a pod nor a container."""
    if container.pod_name:
        return f"p/{container.pod_namespace}/{container.pod_name}"
    return f"c/{container.name}" if container.name else ""


def named_end(
    addresses: Sequence[str], ports: Sequence[int], whose: Sequence[Container]
) -> list[str]:
    """Return each end as `c/NAME:PORT`, `p/NAMESPACE/POD:PORT` or `r/ADDRESS:PORT`."""
    names = of_each(whose, _shown_end)
    return [
        f"{name or f'r/{address}'}:{port}"
        for name, address, port in zip(names, addresses, ports, strict=True)
    ]


def end_columns(
    name: str, whose: Callable[[Batch], Sequence[Container]] | None, *, paths: bool = False
) -> tuple[Column, ...]:
    """Return the columns that name an end of a connection; in JSON of their own with `paths`.

    The end is the events' owners' where `whose` is None.
    """
    parts: Mapping[str, Callable[[Container], str]] = {
        "name": end_name,
        "namespace": attrgetter("pod_namespace"),
        "kind": end_kind,
    }

    def column(part: str, of: Callable[[Container], str]) -> Column:
        path = f"{name}.{part}" if paths else ""
        return Column(
            f"{name}.{part}",
            path,
            least=0 if part == "kind" else 8,
            read=(lambda batch: of_each(whose(batch), of)) if whose else None,
            of_owner=None if whose else of,
            values=END_KINDS if part == "kind" else (),
            description=_END_PARTS[part],
        )

    return tuple(column(part, of) for part, of in parts.items())


_END_PARTS = {
    "name": "Pod or container with this address, empty if unknown.",
    "namespace": "Kubernetes namespace of that pod, empty if none.",
    "kind": "Kind of this end: container, pod, or raw (unknown).",
}


def endpoint_columns(
    name: str, address: str, port: str, *, far: bool = False, proto: str = "TCP", width: int = 22
) -> tuple[Column, ...]:
    """Return the columns of one end of a connection: `name` as ADDR:PORT, `name.addr`, …

    `address` and `port` are fields of the record; its `version` field is 4 or 6. The near end
    belongs to the event's owner, the `far` one to the container with that address.
    """
    whose = peers if far else _owners

    def keys(batch: Batch) -> Sequence[Address]:
        return addresses(batch, address)

    def both(batch: Batch) -> Sequence[str]:
        ends = zip(keys(batch), batch.fields[port], strict=True)
        return [f"{BRACKETED[key]}:{number}" for key, number in ends]

    def named(batch: Batch) -> Sequence[str]:
        return named_end(BRACKETED.of(list(keys(batch))), batch.fields[port], whose(batch))

    def alone(batch: Batch) -> Sequence[str]:
        return ADDRESSES.of(list(zip(batch.fields["version"], batch.fields[address], strict=True)))

    def zoned(batch: Batch) -> Sequence[str]:
        return ZONED.of(list(keys(batch)))

    return (
        Column(
            name,
            name,
            width=width,
            drop=0 if far else 2,
            hidden=False,
            read=both,
            end=End(keys, port, whose, proto),
            resolved=named,
            description=f"{'Far' if far else 'Near'} end, as ADDRESS:PORT.",
        ),
        Column(f"{name}.addr", read=alone, text=zoned, description="IP address."),
        zone_column(f"{name}.zone", address),
        Column(
            f"{name}.port",
            kind=Kind.INTEGER,
            width=5,
            right=True,
            read=lambda b: b.fields[port],
            description="Port.",
        ),
        *end_columns(name, peers if far else None),
    )


RESOLVE = Param(
    "resolve",
    ("--resolve",),
    "flag",
    "Show addresses as names: c/CONTAINER, p/NAMESPACE/POD, r/ADDRESS (unknown).",
)


def integer(name: str, path: str, field: str = "", width: int = 8, **rest: Any) -> Column:
    """Return a column of whole numbers, read from the field of its name unless another is named."""
    read = (lambda batch: batch.fields[field]) if field else None
    return Column(name, path, Kind.INTEGER, width=width, read=read, **rest)


def process_columns(shown: Sequence[str] = ("pid", "comm")) -> tuple[Column, ...]:
    """Return the columns of the process: its credentials, parent and namespaces."""

    def hidden(name: str) -> bool:
        return name not in shown

    return (
        Column(
            "comm",
            "proc.comm",
            least=7,
            drop=5,
            read=text("comm"),
            hidden=hidden("comm"),
            description="Thread name.",
        ),
        Column(
            "pcomm",
            "proc.pcomm",
            least=7,
            read=text("pcomm"),
            description="Process name (of the main thread).",
        ),
        _process("pid", "proc.pid", "Process ID.", drop=4, hidden=hidden("pid")),
        _process("tid", "proc.tid", "Thread ID.", drop=3, hidden=hidden("tid")),
        _process("mntns", "proc.mntns_id", "Inode of the process's mount namespace.", width=10),
        integer(
            "uid",
            "proc.creds.uid",
            width=6,
            drop=3,
            hidden=hidden("uid"),
            description="User ID, in the host's user namespace.",
        ),
        integer(
            "gid",
            "proc.creds.gid",
            width=6,
            drop=3,
            hidden=hidden("gid"),
            description="Group ID, in the host's user namespace.",
        ),
        Column(
            "parent_comm",
            "proc.parent.comm",
            least=7,
            read=text("parent_comm"),
            description="Name of the parent process.",
        ),
        _process("parent_pid", "proc.parent.pid", "Process ID of the parent."),
        _process("netns", "netns_id", "Inode of the socket's network namespace.", width=10),
        integer(
            "cgroup", "", width=10, description="ID of the cgroup that the event is attributed to."
        ),
    )


def _process(name: str, path: str, description: str, **rest: Any) -> Column:
    return integer(name, path, optional=True, description=description, **rest)


def _names(enum: str, **others: str) -> tuple[str, ...]:
    """Return the names of an enum of tcp.h as they are shown, those in `others` as said there."""
    numbers = c_text.enum(c_text.read("tcp.h"), enum)
    names = {
        number: others.get(name, name.lower().replace("_", "-")) for name, number in numbers.items()
    }
    return tuple(names.get(number, "") for number in range(max(names) + 1))


def classic_columns() -> tuple[Column, ...]:
    """Return the columns that the flat objects of the classic commands begin with."""
    columns = {column.name: column for column in owner_columns()}
    owner = (("node", "node"), ("namespace", "namespace"), ("podname", "pod"))
    return (
        Column(
            "event",
            "type",
            of_owner=lambda _: "normal",
            description="Always `normal`, for compatibility with the classic commands.",
        ),
        *(replace(columns[name], path=path, heading="") for name, path in owner),
        replace(columns["containername"], path="container", heading="CONTAINER", least=9),
        integer("pid", "pid", hidden=False, optional=True, drop=4, description="Process ID."),
        Column(
            "comm",
            "comm",
            least=7,
            drop=5,
            hidden=False,
            read=text("comm"),
            description="Thread name.",
        ),
    )


TYPES = _names("type")
"""The types of events, each at the place of its number; "" where there is none."""
OUTCOMES = _names("outcome", NONE="", DONE="established")
"""How attempts end, in the same way."""


def _named(field: str, names: Sequence[str]) -> Callable[[Batch], Sequence[str]]:
    return lambda batch: list(map(names.__getitem__, batch.fields[field]))


_FAILURES = frozenset(map(OUTCOMES.index, ("refused", "timed-out", "unreachable", "failed")))
_OPEN = frozenset(map(OUTCOMES.index, ("abandoned", "unanswered")))
SLOW = SECOND
"""Nanoseconds from which an answer is marked as slow."""


def _attempt_style(batch: Batch) -> Sequence[str]:
    """Return `failure` for failed attempts, `warning` for slow, abandoned and unanswered ones."""
    return [
        "failure"
        if outcome in _FAILURES
        else "warning"
        if outcome in _OPEN or (outcome and (latency >= SLOW or retransmits))
        else ""
        for outcome, latency, retransmits in zip(
            batch.fields["outcome"],
            batch.fields["latency"],
            batch.fields["retransmits"],
            strict=True,
        )
    ]


def wants_latency(options: Mapping[str, Any]) -> bool:
    """Return whether attempts are reported with latency, when they have ended."""
    return bool(options.get("latency"))


def attempt_columns() -> tuple[Column, ...]:
    """Return the columns of a TCP event: type, error, outcome and times."""
    return (
        Column(
            "type",
            "type",
            width=7,
            read=_named("type", TYPES),
            values=TYPES[1:],
            description="Event type: connect, accept, close, or unknown.",
        ),
        error_column(),
        integer(
            "error_raw",
            "error_raw",
            "error",
            width=5,
            description="Error number (errno), 0 if none.",
        ),
        Column(
            "outcome",
            "outcome",
            width=11,
            hidden=False,
            read=_named("outcome", OUTCOMES),
            values=OUTCOMES[1:],
            style=_attempt_style,
            description=f"Outcome of an attempt: {', '.join(OUTCOMES[1:])}; else empty.",
        ),
        integer("retransmits", "retransmits", width=5, description="SYNs retransmitted."),
        Column(
            "latency",
            "latency",
            Kind.DURATION,
            width=9,
            right=True,
            show_if=wants_latency,
            description="Time from the SYN to the reply; null if there was none.",
        ),
        Column(
            "waited",
            "waited",
            Kind.DURATION,
            width=9,
            right=True,
            description="Time from the SYN to the outcome; while unanswered, until now.",
        ),
        Column(
            "update",
            "update",
            Kind.BOOLEAN,
            width=6,
            description="Whether this attempt was reported before as unanswered.",
        ),
    )


def error_column() -> Column:
    """Return the column of what the call, or the attempt, failed with."""
    return Column(
        "error",
        "error",
        width=13,
        read=lambda batch: ERRORS.of(batch.fields["error"]),
        description="Error name (ECONNREFUSED), empty if none.",
    )


LATENCY = Param(
    "latency",
    ("-L", "--latency"),
    "flag",
    "Report each attempt when it has ended, with the time from SYN to reply.",
    define="LATENCY",
)


def failures(what: str, **rest: Any) -> Param:
    """Return the option that shows only what failed."""
    return Param(
        "failure_only",
        ("--failures", "--failure-only"),
        "flag",
        f"Show only {what}.",
        define="FAILURE_ONLY",
        **rest,
    )


def filter_params() -> tuple[Param, ...]:
    """Return the options that filter by process and port in the kernel."""
    return (
        Param("pid", ("--pid",), "pid", "Only the process with this PID.", define="FILTER_PID"),
        Param(
            "uid",
            ("--uid",),
            "uid",
            "Only processes of this user (name or ID).",
            define="FILTER_UID",
        ),
        Param(
            "port",
            ("--port",),
            "port",
            "Only this destination port (number or service).",
            define="FILTER_PORT",
        ),
    )


TIMESTAMP = Column(
    "timestamp", "timestamp", Kind.TIMESTAMP, width=30, description="Time of the event (UTC)."
)
Owners = Mapping[int, Container]
