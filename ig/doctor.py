"""`ig doctor`: what this host can and cannot do, each line a check that was made."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ig import output
from ig.containers.container import HOST, Runtime
from ig.containers.index import Index
from ig.errors import IgError
from ig.gadget import Batch, Column, Gadget
from ig.gadgets import declared
from ig.invoke import Stop, discovered
from ig.output.stream import Stream
from ig.privileges import need_privileges

_CONNECTS = 101
_PATIENCE = 2.0  # seconds
_COLUMNS = tuple(
    Column(name, name, width=width, hidden=False)
    for name, width in (("check", 28), ("result", 9), ("found", 80))
)

Finding = tuple[str, str, str]
"""What was checked; `yes`, `no` or `degraded`; what was found."""


def examine(options: Mapping[str, Any]) -> bool:
    """Check everything and print how it went; say whether all gadgets work. Raises IgError."""
    shown = output.shown_columns(_COLUMNS, {})
    mode, shown = output.parse_output(options.get("output") or "columns", _COLUMNS, shown)
    width = os.get_terminal_size(1).columns if os.isatty(1) else None
    formatter = output.formatter(mode, _COLUMNS, shown, width=width, array=True)
    stream = Stream(1, Stop())
    stream.write(formatter.header())
    works = True
    for finding in _findings(options):
        fields = {column.name: [value] for column, value in zip(_COLUMNS, finding, strict=True)}
        stream.write(formatter.format(Batch(fields, [HOST])))
        works &= not (finding[0].startswith("gadget ") and finding[1] == "no")
    stream.write(formatter.footer())
    return works


def _findings(options: Mapping[str, Any]) -> Iterator[Finding]:
    # The gadgets come first: their programs are loaded by a fork, which wants no threads yet.
    gadgets = [
        _tried(f"gadget {gadget.name}", partial(_gadget, gadget)) for gadget in declared().values()
    ]
    self_test = _tried(f"{_CONNECTS} own connects seen", _self_test)
    yield _tried("kernel's types (BTF)", _btf)
    yield _tried("tracefs", _tracefs)
    yield _tried("sock_diag", _sock_diag)
    yield _tried("cgroups", _cgroups)
    yield from _runtimes(options)
    yield self_test
    yield from gadgets


def _tried(check: str, attempt: Callable[[], tuple[str, str]]) -> Finding:
    try:
        return (check, *attempt())
    except (IgError, OSError) as error:
        return check, "no", " ".join(str(error).split())


def _gadget(gadget: Gadget) -> tuple[str, str]:
    if gadget.source != "program":
        return _sock_diag()
    from ig.kernel.probes import Loading
    from ig.pipeline import defines

    need_privileges()
    probes = Loading(gadget.program, defines(gadget, {})).result()
    hooks = len(probes.hooks)
    probes.close()
    if probes.refused:
        return "degraded", "; ".join(sorted(set(probes.refused)))
    return "yes", f"{gadget.program} is loaded, {hooks} hooks are attached"


def _self_test() -> tuple[str, str]:
    """Connect to ourselves and count what the program tells of it."""
    from ig.kernel.probes import Loading
    from ig.kernel.source import Source

    need_privileges()
    defines = {"TRACE_CONNECT": 1, "FILTER_PID": os.getpid()}
    source = Source(Loading("tcp.c", defines).result())
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=_CONNECTS) as server:
            for _ in range(_CONNECTS):
                socket.create_connection(server.getsockname()).close()
        seen, ends = 0, time.monotonic() + _PATIENCE
        while seen < _CONNECTS and time.monotonic() < ends:
            seen += sum(1 for _ in source.records())
        lost = sum(source.lost().values())
    finally:
        source.close()
    return "yes" if seen == _CONNECTS else "no", f"{seen} seen, {lost} lost"


def _btf() -> tuple[str, str]:
    from ig.kernel.btf import Btf

    Btf()
    return "yes", "/sys/kernel/btf/vmlinux"


def _tracefs() -> tuple[str, str]:
    from ig.kernel import lockdown
    from ig.kernel.mounts import lists_tracepoints, mounts

    points = [mount.point for mount in mounts() if mount.kind == "tracefs"]
    if points and not any(map(lists_tracepoints, points)):
        why = lockdown.explained()
        return "no", " ".join(
            [f"empty at {', '.join(points)}", *(["(locked down)"] if why else [])]
        )
    if points or not os.geteuid():
        return "yes", ", ".join(points) or "not mounted; root mounts it for itself to attach"
    return "no", "not mounted"


def _sock_diag() -> tuple[str, str]:
    netlink_sock_diag = 4
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink_sock_diag):
        return "yes", "a netlink socket can be opened"


def _cgroups() -> tuple[str, str]:
    from ig.kernel.mounts import mounts

    kinds = {mount.kind: mount.point for mount in mounts() if mount.kind.startswith("cgroup")}
    found = ", ".join(f"{kind} at {point}" for kind, point in sorted(kinds.items()))
    return ("yes" if kinds else "no"), found or "none is mounted"


def _runtimes(options: Mapping[str, Any]) -> Iterator[Finding]:
    for runtime in discovered(options):
        yield f"runtime {runtime.name}", *_runtime(runtime)


def _runtime(runtime: Runtime) -> tuple[str, str]:
    """Ask one runtime for its containers."""
    try:
        os.stat(runtime.socket.removeprefix("unix://"))
    except OSError as error:
        if "://" not in runtime.socket.removeprefix("unix://"):
            return "no", f"{runtime.socket}: {error.strerror}"
    said: list[str] = []
    index = Index([runtime], said.append, [runtime.name])
    index.start()
    try:
        index.wait_synced(_PATIENCE)
        count = len(index.containers())
    finally:
        index.close()
    return ("no", said[0]) if said else ("yes", f"{runtime.socket}: {count} containers")
