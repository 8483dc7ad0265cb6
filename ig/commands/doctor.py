"""`ig doctor`: checks whether this host supports tracing, one line per check."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ig import output
from ig.commands.answers import closing, is_there
from ig.commands.setup import asked_for, selected_runtimes
from ig.container import HOST, Runtime
from ig.containers.index import Index
from ig.errors import IgError, RuntimeUnavailable
from ig.gadget import Batch, Column, Gadget, defines
from ig.gadgets import declared
from ig.kernel import mounts, netns, netns_finder
from ig.kernel.capabilities import need_privileges, reach
from ig.kernel.processes import sees_all_processes
from ig.output.layout import watch
from ig.output.stream import Stream
from ig.stop import Stop

_CONNECTS = 101
_TIMEOUT = 2.0  # seconds
_COLUMNS = tuple(
    Column(name, name, width=width, hidden=False, least=least, wrap=name == "found")
    for name, width, least in (("check", 36, 28), ("result", 9, 0), ("found", 80, 20))
)

Finding = tuple[str, str, str]
"""What was checked; `yes`, `no`, `degraded`, `slow` or `absent`; what was found."""


def examine(options: Mapping[str, Any]) -> bool:
    """Run all checks and print the results; return whether all gadgets work. Raises IgError."""
    shown = output.shown_columns(_COLUMNS, {})
    mode, shown = output.parse_output(options.get("output") or "columns", _COLUMNS, shown)
    formatter = output.formatter(mode, _COLUMNS, shown, array=True, screen=watch())
    stop = Stop()
    stream = Stream(1, stop)
    stream.write(formatter.header())
    results: dict[str, str] = {}
    for finding in _findings(options, results):
        with stop.noted():
            values = zip(_COLUMNS, finding, strict=True)
            fields = {column.name: [value] for column, value in values}
            stream.write(formatter.format(Batch(fields, [HOST])))
    stream.write(formatter.footer())
    return set(results.values()) == {"yes"}


def _findings(options: Mapping[str, Any], results: dict[str, str]) -> Iterator[Finding]:
    """Yield each finding as soon as it is known; add the result of each gadget to `results`."""
    tracepoints: dict[str, bool] = {}
    yield _tried("kernel's types (BTF)", _btf)
    yield _tried("BCC", _bcc)
    # Programs are loaded by a fork, which must precede all threads; runtimes start threads.
    for gadget in declared().values():
        finding = _tried(f"gadget {gadget.name}", partial(_gadget, gadget, tracepoints))
        results[gadget.name] = finding[1]
        yield finding
    yield _tried("causes of failures (--why)", partial(_causes, tracepoints))
    yield from _self_test()
    yield _tried("tracefs", partial(_tracefs, tracepoints))
    yield from _tracepoints(tracepoints)
    yield _tried("sock_diag", _sock_diag)
    yield _tried("cgroups", _cgroups)
    yield _tried("containers' cgroups", _hierarchy)
    yield _tried("32-bit programs", _compat)
    yield from _runtimes(options)
    yield from _kubernetes()
    yield _verdict(results)


def _verdict(results: Mapping[str, str]) -> Finding:
    worst = next((each for each in ("no", "degraded") if each in results.values()), "yes")
    words = {"no": "does not work", "degraded": "works partially"}
    limits = [f"{name} {words[result]}" for name, result in results.items() if result in words]
    return "verdict", worst, "; ".join(limits) or "all gadgets work"


def _tried(check: str, attempt: Callable[[], tuple[str, str]]) -> Finding:
    try:
        return (check, *attempt())
    except (IgError, OSError) as error:
        return check, "no", _reason(error)


def _reason(error: IgError | OSError) -> str:
    if isinstance(error, IgError):
        return " ".join(" ".join([error.failed, error.found, *error.output]).split())
    return error.strerror or str(error)


def _gadget(gadget: Gadget, tracepoints: dict[str, bool]) -> tuple[str, str]:
    """Load a gadget's program; add its tracepoints, and whether it was attached to each."""
    if not gadget.program:
        return _sockets()
    from ig.bpf.contract import usual_tracepoints
    from ig.bpf.loader import Loading

    try:
        need_privileges()
        probes = Loading(gadget.program, defines(gadget, {}), gadget.source == "aggregate").result()
    except IgError:
        for name in usual_tracepoints(gadget.program):
            tracepoints.setdefault(name, False)
        raise
    hooks = len(probes.hooks)
    probes.close()
    for name, attached in probes.tracepoints.items():
        tracepoints[name] = attached or tracepoints.get(name, False)
    if probes.refused:
        return "degraded", "; ".join(sorted(set(probes.refused)))
    return "yes", f"{gadget.program} loaded, {hooks} hooks attached"


def _causes(tracepoints: dict[str, bool]) -> tuple[str, str]:
    """Check which causes are seen by signals of the kernel; add the tracepoints of these."""
    from ig.bpf.loader import Loading
    from ig.causes.signals import FOR_IPV4, SEEN_BY

    need_privileges()
    probes = Loading("tcp_why.c", {"TRACE_CONNECT": 1}).result()
    probes.close()
    attached = {hook: probes.tracepoints.get(hook, False) for hook in SEEN_BY}
    tracepoints.update(attached)
    shown = {kind for hook, each in SEEN_BY.items() if attached[hook] for kind in each}
    every = dict.fromkeys(kind for each in SEEN_BY.values() for kind in each)
    kinds = [kind for kind in every if kind.removesuffix(FOR_IPV4) not in shown - {kind}]
    seen, likely = list(filter(shown.__contains__, kinds)), [k for k in kinds if k not in shown]
    found = f"signals show {', '.join(seen) or 'none'}"
    if likely:
        return "degraded", f"{found}; only likely are {', '.join(likely)}"
    return "yes", found


def _compat() -> tuple[str, str]:
    from ig.sockets.proc import COMPAT, compat_processes

    count = compat_processes()
    if count:
        return "degraded", f"{count} running; not traced: {COMPAT}"
    return "yes", "none running"


def _sockets() -> tuple[str, str]:
    """Check what a snapshot needs: sock_diag and access to other namespaces."""
    limits = []
    try:
        _sock_diag()
    except OSError as error:
        limits.append(f"sock_diag: {error.strerror}; using /proc/PID/net instead")
    if not sees_all_processes():
        limits.append("only this PID namespace is visible, not the whole host")
    if not _may_enter(netns.host()):
        limits.append("only its own network namespace is visible")
    return ("degraded", "; ".join(limits)) if limits else ("yes", "uses sock_diag")


def _may_enter(namespace: int) -> bool:
    found = netns_finder.find()
    ways = netns.visit([found.namespaces[namespace]], lambda _, entered: entered)
    others = [each for each in found.namespaces.values() if each.id != netns.own()]
    return found.complete and all(ways) and all(netns.visit(others[:1], lambda _, into: into))


def _self_test() -> list[Finding]:
    """Connect to this process itself and check the events of these connects."""
    checks = ("reading kernel memory", "ring buffer", f"{_CONNECTS} own connects seen")
    try:
        seen, right, lost = _own_connects()
    except (IgError, OSError) as error:
        return [(check, "no", _reason(error)) for check in checks]
    worked = (right == seen > 0, seen > 0, seen == _CONNECTS)
    found = (
        f"{right} of {seen} events have the right port",
        f"{seen} events received",
        f"{seen} seen, {lost} lost",
    )
    results = ["yes" if well else "no" for well in worked]
    return list(zip(checks, results, found, strict=True))


def _own_connects() -> tuple[int, int, int]:
    """Return the number of events of own connects, of those with the right port, and of losses."""
    from ig.bpf.loader import Loading
    from ig.bpf.session import Source

    need_privileges()
    defines = {"TRACE_CONNECT": 1, "FILTER_PID": os.getpid()}
    source = Source(Loading("tcp.c", defines).result())
    try:
        place = source.fields.index("dport")
        with socket.create_server(("127.0.0.1", 0), backlog=_CONNECTS) as server:
            port = server.getsockname()[1]
            for _ in range(_CONNECTS):
                socket.create_connection(("127.0.0.1", port)).close()
        ports: list[int] = []
        ends = time.monotonic() + _TIMEOUT
        while len(ports) < _CONNECTS and time.monotonic() < ends:
            ports += [record[place] for record in source.records()]
        return len(ports), ports.count(port), sum(source.lost().values())
    finally:
        source.close()


def _btf() -> tuple[str, str]:
    from ig.bpf.btf import VMLINUX, Btf

    Btf()
    return "yes", str(VMLINUX)


def _bcc() -> tuple[str, str]:
    from ig.bpf.loader import bcc_version

    return "yes", bcc_version()


def _tracepoints(tracepoints: Mapping[str, bool]) -> Iterator[Finding]:
    for name, attached in sorted(tracepoints.items()):
        kind = "program" if re.search("[:/]", name) else "raw program"
        found = ("yes", f"{kind} attached") if attached else ("no", "no program attached")
        yield f"{'hook' if '/' in name else 'tracepoint'} {name}", *found


def _tracefs(tracepoints: Mapping[str, bool]) -> tuple[str, str]:
    points = [mount.point for mount in mounts.mounts() if mount.kind == "tracefs"]
    if points and not any(map(mounts.lists_tracepoints, points)):
        why = " (locked down)" if mounts.lockdown_refusal() else ""
        return "no", f"empty at {', '.join(points)}{why}"
    if points:
        return "yes", ", ".join(points)
    if any(":" in name for name, attached in tracepoints.items() if attached):
        return "yes", "not mounted; mounted privately to attach"
    return "no", "not mounted"


def _sock_diag() -> tuple[str, str]:
    """Query the TCP sockets of this network namespace. Raises OSError."""
    # A second opinion on what ig.sockets.sock_diag reads by itself: this import takes 0.1 s, 24 MB.
    from pyroute2 import DiagSocket
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with DiagSocket() as netlink:
            netlink.get_sock_stats(family=socket.AF_INET)
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
    return "yes", "netlink socket opened"


def _cgroups() -> tuple[str, str]:
    kinds = {
        mount.kind: mount.point for mount in mounts.mounts() if mount.kind.startswith("cgroup")
    }
    found = ", ".join(f"{kind} at {point}" for kind, point in sorted(kinds.items()))
    return ("yes" if kinds else "no"), found or "none mounted"


def _hierarchy() -> tuple[str, str]:
    """Return which cgroup hierarchies identify the owner of an event: see ig.h."""
    legacy = mounts.legacy_cgroup_controller()
    if any(mount.kind == "cgroup2" for mount in mounts.mounts()):
        second = f", else by their cgroup v1 ({legacy})" if legacy else ""
        return "yes", f"identified by their cgroup v2{second}"
    if legacy:
        return "yes", f"identified by their cgroup v1 ({legacy})"
    return "no", "neither cgroup v2 nor a cgroup v1 controller is mounted"


def _runtimes(options: Mapping[str, Any]) -> Iterator[Finding]:
    asked = asked_for(options)
    for runtime in selected_runtimes(options):
        yield f"runtime {runtime.name}", *_runtime(runtime, runtime.name in asked)


def _runtime(runtime: Runtime, asked: bool) -> tuple[str, str]:
    """Query one runtime for its containers."""
    if not is_there(runtime.socket):
        found = f"{runtime.socket}: {os.strerror(errno.ENOENT)}"
        return ("no" if asked else "absent"), found
    warnings: list[str] = []
    index = Index([runtime], warnings.append, [runtime.name], consequence="")
    index.start()
    with closing(index):
        synced = index.wait_synced(_TIMEOUT)
        count = len(index.containers())
    if warnings:
        return "no", warnings[0]
    if not synced:
        return "slow", f"{runtime.socket}: no answer in {_TIMEOUT:g} s"
    result, reached = _reached(runtime.socket, asked)
    what = f"{_version(runtime)} at {runtime.socket}, {count} containers running"
    return result, f"{what}; {reached}"


def _kubernetes() -> Iterator[Finding]:
    """Check the credentials that --kubernetes finds, if there are any; the API is not asked."""
    from ig.kubernetes.credentials import Credentials, usual

    def read(found: Credentials) -> tuple[str, str]:
        return "yes", f"credentials for {found.access().url} in {found.place}"

    if credentials := usual():
        yield _tried("Kubernetes (--kubernetes)", partial(read, credentials))


def _reached(socket: str, asked: bool) -> tuple[str, str]:
    """Return whether a trace can still query a runtime after it has dropped its privileges."""
    found = reach(socket, expected=asked)
    if found.problem:
        return "degraded", f"not accessible once a trace has dropped privileges: {found.problem}"
    if found.kept:
        return "yes", f"a trace keeps {found.kept} to access it: {found.why}"
    return "yes", "accessible without privileges"


def _version(runtime: Runtime) -> str:
    try:
        return runtime.version()
    except RuntimeUnavailable:
        return "unknown version"
