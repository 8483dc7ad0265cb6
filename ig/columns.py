"""Columns that gadgets share, and what they are made of: owners, processes, endpoints, errors."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, TypeVar

from ig.containers.container import HOST, Container
from ig.gadget import Batch, Column, Kind, Param

Key = TypeVar("Key")
Value = TypeVar("Value")


class Cache(dict[Key, Value]):
    """A bounded memory of a function: `map(cache.__getitem__, keys)` runs without Python frames."""

    def __init__(self, compute: Callable[[Key], Value], limit: int = 16384) -> None:
        super().__init__()
        self._compute = compute
        self._limit = limit

    def __missing__(self, key: Key) -> Value:
        if len(self) >= self._limit:
            self.clear()
        value = self[key] = self._compute(key)
        return value

    def of(self, keys: Sequence[Key]) -> list[Value]:
        """Give the function's value for each key."""
        return list(map(self.__getitem__, keys))


def _owner(attribute: str) -> Callable[[Batch], Sequence[Any]]:
    get = attrgetter(attribute)
    return lambda batch: list(map(get, batch.owners))


def owner_columns() -> tuple[Column, ...]:
    """Give the columns that say whose an event is: runtime's, then Kubernetes' names."""
    return (
        Column("runtime", "runtime.runtimeName", width=10, read=_owner("runtime")),
        Column(
            "containername",
            "runtime.containerName",
            heading="RUNTIME.CONTAINERNAME",
            width=24,
            hidden=False,
            read=_owner("name"),
        ),
        Column("containerid", "runtime.containerId", width=13, read=_owner("id")),
        Column("image", "runtime.containerImageName", width=24, read=_owner("image")),
        Column("namespace", "k8s.namespace", heading="K8S.NAMESPACE", read=_owner("pod_namespace")),
        Column("podname", "k8s.podName", heading="K8S.PODNAME", width=24, read=_owner("pod_name")),
        Column(
            "podcontainer",
            "k8s.containerName",
            heading="K8S.CONTAINERNAME",
            read=_owner("pod_container"),
        ),
        Column("node", "k8s.node", heading="K8S.NODE", read=_node),
    )


_NODE: list[str] = []


def _node(batch: Batch) -> Sequence[str]:
    if not _NODE:
        _NODE.append(socket.gethostname())
    return _NODE * len(batch)


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
BRACKETED: Cache[tuple[int, bytes], str] = Cache(
    lambda key: f"[{ADDRESSES[key]}]" if key[0] == 6 else ADDRESSES[key]
)
ERRORS: Cache[int, str] = Cache(
    lambda number: errno.errorcode.get(number, str(number)) if number else ""
)
"""errno to its name, 0 to the empty string."""
STRINGS: Cache[bytes, str] = Cache(
    lambda raw: raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
)
"""A C string in a fixed field to text; bytes that are no UTF-8 become `\\xNN`."""


def text(field: str) -> Callable[[Batch], Sequence[str]]:
    """Give a reader of a `char` field."""
    return lambda batch: STRINGS.of(batch.fields[field])


def _owners(batch: Batch) -> Sequence[Container]:
    return batch.owners


def peers(batch: Batch) -> Sequence[Container]:
    """Give whose the far end is, HOST where that is not known."""
    return batch.fields.get("peer") or [HOST] * len(batch)


def of_each(containers: Sequence[Container], compute: Callable[[Container], Value]) -> list[Value]:
    """Give what `compute` makes of each container, computed once for each that there is."""
    if containers and containers[0] is containers[-1] is containers[len(containers) // 2]:
        first = containers[0]
        if containers.count(first) == len(containers):
            return [compute(first)] * len(containers)
    keys = list(map(id, containers))  # cheaper than hashing all that a container has
    known = {key: compute(each) for key, each in dict(zip(keys, containers, strict=True)).items()}
    return list(map(known.__getitem__, keys))


def end_kind(container: Container) -> str:
    """Give what the end of a connection is: a `pod`, a `container`, or neither (`raw`)."""
    if container.pod_name:
        return "pod"
    return "container" if container.name else "raw"


def end_name(container: Container) -> str:
    """Give the name of a pod or a container, empty for what is neither."""
    return container.pod_name or container.name


def _shown_end(container: Container) -> str:
    """Give the name as Inspektor Gadget shows it; empty for neither a pod nor a container."""
    if container.pod_name:
        return f"p/{container.pod_namespace}/{container.pod_name}"
    return f"c/{container.name}" if container.name else ""


def _encoded_end(container: Container) -> str:
    parts = (end_name(container), container.pod_namespace, end_kind(container))
    # What is not ASCII is escaped; what is not UTF-8 is shown as its bytes.
    valid = (part.encode("utf-8", "backslashreplace").decode() for part in parts)
    name, namespace, kind = (json.dumps(part).replace("\x7f", "\\u007f") for part in valid)
    return f',"name":{name},"namespace":{namespace},"kind":{kind}}}'


def named_end(
    addresses: Sequence[str], ports: Sequence[int], whose: Sequence[Container]
) -> list[str]:
    """Give each end as `c/NAME:PORT`, `p/NAMESPACE/POD:PORT` or `r/ADDRESS:PORT`."""
    names = of_each(whose, _shown_end)
    return [
        f"{name or f'r/{address}'}:{port}"
        for name, address, port in zip(names, addresses, ports, strict=True)
    ]


def end_columns(
    name: str, whose: Callable[[Batch], Sequence[Container]], *, paths: bool = False
) -> tuple[Column, ...]:
    """Give the columns that name an end of a connection; in JSON of their own with `paths`."""
    parts: Mapping[str, Callable[[Container], str]] = {
        "name": end_name,
        "namespace": attrgetter("pod_namespace"),
        "kind": end_kind,
    }

    def column(part: str, of: Callable[[Container], str]) -> Column:
        path = f"{name}.{part}" if paths else ""
        return Column(f"{name}.{part}", path, read=lambda batch: of_each(whose(batch), of))

    return tuple(column(part, of) for part, of in parts.items())


def endpoint_columns(
    name: str, address: str, port: str, *, far: bool = False, proto: str = "TCP", width: int = 22
) -> tuple[Column, ...]:
    """Give the columns of one end of a connection: `name` as ADDR:PORT, `name.addr`, `name.port`, …

    `address` and `port` are fields of the record; its `version` field tells IPv4 from IPv6. The
    near end is the event's owner's, the `far` one whose the runtimes say that the address is.
    """
    whose = peers if far else _owners

    def keys(batch: Batch) -> zip[tuple[int, bytes]]:
        return zip(batch.fields["version"], batch.fields[address], strict=True)

    def both(batch: Batch) -> Sequence[str]:
        ports = batch.fields[port]
        return [f"{BRACKETED[key]}:{p}" for key, p in zip(keys(batch), ports, strict=True)]

    def named(batch: Batch) -> Sequence[str]:
        return named_end(BRACKETED.of(list(keys(batch))), batch.fields[port], whose(batch))

    fragments: Cache[tuple[int, bytes], tuple[str, str]] = Cache(
        lambda key: (
            f'{{"addr":{json.dumps(ADDRESSES[key])},"port":',
            f',"proto":"{proto}","version":{key[0]}',
        )
    )

    def encoded(batch: Batch) -> Sequence[str]:
        texts = map(fragments.__getitem__, keys(batch))
        ends = of_each(whose(batch), _encoded_end)
        return [
            f"{start}{p}{middle}{end}"
            for (start, middle), p, end in zip(texts, batch.fields[port], ends, strict=True)
        ]

    def alone(batch: Batch) -> Sequence[str]:
        return list(map(ADDRESSES.__getitem__, keys(batch)))

    return (
        Column(name, name, width=width, hidden=False, read=both, json=encoded, resolved=named),
        Column(f"{name}.addr", read=alone),
        Column(
            f"{name}.port", kind=Kind.INTEGER, width=5, right=True, read=lambda b: b.fields[port]
        ),
        *end_columns(name, whose),
    )


RESOLVE = Param(
    "resolve", ("--resolve",), "flag", "Show whose addresses are: c/NAME, p/NAMESPACE/POD, r/ADDR."
)


def integer(name: str, path: str, field: str = "", width: int = 8, **rest: Any) -> Column:
    """Give a column of whole numbers, read from the field of its name unless another is named."""
    read = (lambda batch: batch.fields[field]) if field else None
    return Column(name, path, Kind.INTEGER, width=width, read=read, **rest)


def process_columns(shown: Sequence[str] = ("pid", "comm")) -> tuple[Column, ...]:
    """Give the columns that say which process: its credentials, parent and namespaces."""

    def hidden(name: str) -> bool:
        return name not in shown

    return (
        Column("comm", "proc.comm", read=text("comm"), hidden=hidden("comm")),
        integer("pid", "proc.pid", hidden=hidden("pid")),
        integer("tid", "proc.tid", hidden=hidden("tid")),
        integer("mntns", "proc.mntns_id", width=10),
        integer("uid", "proc.creds.uid", width=6, hidden=hidden("uid")),
        integer("gid", "proc.creds.gid", width=6, hidden=hidden("gid")),
        Column("parent_comm", "proc.parent.comm", read=text("parent_comm")),
        integer("parent_pid", "proc.parent.pid"),
        integer("netns", "netns_id", width=10),
        integer("cgroup", "", width=10),
    )


def classic_columns() -> tuple[Column, ...]:
    """Give the columns that the flat objects of the classic commands begin with."""
    columns = {column.name: column for column in owner_columns()}
    owner = (("node", "node"), ("namespace", "namespace"), ("podname", "pod"))
    return (
        Column("event", "type", read=lambda batch: ["normal"] * len(batch)),
        *(replace(columns[name], path=path, heading="") for name, path in owner),
        replace(columns["containername"], path="container", heading="CONTAINER"),
        integer("pid", "pid", hidden=False),
        Column("comm", "comm", hidden=False, read=text("comm")),
    )


TYPES = ("", "connect", "accept", "close", "unknown")
"""enum type in tcp.h."""
OUTCOMES = (
    "",
    "established",
    "refused",
    "timed-out",
    "unreachable",
    "failed",
    "abandoned",
    "unanswered",
)
"""enum outcome in tcp.h."""


def _named(field: str, names: Sequence[str]) -> Callable[[Batch], Sequence[str]]:
    return lambda batch: list(map(names.__getitem__, batch.fields[field]))


def attempt_columns() -> tuple[Column, ...]:
    """Give the columns that say what happened to a TCP connection and how it ended."""
    return (
        Column("type", "type", width=8, read=_named("type", TYPES)),
        Column("error", "error", width=14, read=lambda batch: ERRORS.of(batch.fields["error"])),
        integer("error_raw", "error_raw", "error", width=5),
        Column("outcome", "outcome", width=12, read=_named("outcome", OUTCOMES)),
        integer("retransmits", "retransmits", width=5),
        Column("latency", "latency", Kind.DURATION, width=12, right=True),
    )


def filter_params() -> tuple[Param, ...]:
    """Give the options that filter by process and port in the kernel."""
    return (
        Param("pid", ("--pid",), "integer", "Only this process.", define="FILTER_PID"),
        Param("uid", ("--uid",), "integer", "Only this user's processes.", define="FILTER_UID"),
        Param("port", ("--port",), "port", "Only this destination port.", define="FILTER_PORT"),
    )


TIMESTAMP = Column("timestamp", "timestamp", Kind.TIMESTAMP, width=30)
Owners = Mapping[int, Container]
