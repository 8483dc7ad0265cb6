"""Columns that gadgets share, and what they are made of: owners, processes, endpoints, errors."""

from __future__ import annotations

import errno
import functools
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from ig.container import HOST, Container
from ig.gadget import Batch, Column, Kind, Param, of_each
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
            description="Host name, or NODE_NAME of the environment.",
        ),
    )


@functools.cache
def _host_name() -> str:
    return os.environ.get("NODE_NAME") or socket.gethostname()


def _node(_: Container) -> str:
    return _host_name()


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


def enum_names(program: str, enum: str) -> tuple[str, ...]:
    """Return the names of an enum of a program's C text, each at the place of its number.

    "" where a number has none.
    """
    from ig import c_text

    numbers = c_text.enum(c_text.read(program), enum)
    names = {number: name for name, number in numbers.items()}
    return tuple(names.get(number, "") for number in range(max(names) + 1))


def hyphenated(names: Sequence[str], **others: str) -> tuple[str, ...]:
    """Return `TIMED_OUT` as `timed-out`, or as in `others`."""
    return tuple(others.get(name, name.lower().replace("_", "-")) for name in names)


def named(field: str, names: Sequence[str]) -> Callable[[Batch], Sequence[str]]:
    """Return a reader of a field that holds an enum's numbers."""
    return lambda batch: list(map(names.__getitem__, batch.fields[field]))


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


def error_column() -> Column:
    """Return the column of what the call, or the attempt, failed with."""
    return Column(
        "error",
        "error",
        width=13,
        read=lambda batch: ERRORS.of(batch.fields["error"]),
        description="Error name (ECONNREFUSED), empty if none.",
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


TIMESTAMP = Column(
    "timestamp", "timestamp", Kind.TIMESTAMP, width=30, description="Time of the event (UTC)."
)
