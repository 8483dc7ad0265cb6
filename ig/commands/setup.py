"""The start of a command: select runtimes and containers, drop privileges; the ready file."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

from ig.commands import answers
from ig.commands.answers import Answers
from ig.commands.display import DisplayOptions
from ig.container import Cluster, Runtime
from ig.containers import runtimes
from ig.containers.index import Index
from ig.containers.selection import Selection, select
from ig.containers.watcher import NAMES_UNAVAILABLE
from ig.errors import IgError
from ig.kernel import monitor
from ig.kernel.capabilities import Capability, Use, drop, obstacle
from ig.output.stream import say

EXAMINING = (
    Capability.CAP_SYS_ADMIN,  # to enter network namespaces
    Capability.CAP_SYS_PTRACE,  # to find them, and who holds a socket
    Capability.CAP_DAC_READ_SEARCH,  # the same
    Capability.CAP_NET_ADMIN,  # to read the firewall's rules
)
"""The capabilities that examining this host for causes needs."""
_OTLP_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
"""The ends of the standard variables that name files of TLS."""
SYNC_TIMEOUT = 2.0  # seconds for the runtimes to list their containers


def selection(options: Mapping[str, Any]) -> Selection:
    """Return the selection of containers of the options."""
    return select(
        options.get("containername") or (),
        pods=options.get("podname") or (),
        namespaces=options.get("namespace") or (),
        selectors=options.get("selector") or (),
        runtimes=split_names(options.get("runtimes")) or (),
        host=bool(options.get("host")),
        host_only=bool(options.get("host_only")),
    )


def split_names(values: Sequence[str] | None) -> list[str] | None:
    """Return the names in comma-separated lists, None if there are none."""
    names = [name.strip() for value in values or () for name in value.split(",") if name.strip()]
    return names or None


def selected_runtimes(options: Mapping[str, Any]) -> list[Runtime]:
    """Return the runtimes that the options select, each with its socket."""
    return runtimes.discover(
        split_names(options.get("runtimes")),
        **_sockets(options),
        containerd_namespace=options.get("containerd_namespace"),
    )


def _sockets(options: Mapping[str, Any]) -> dict[str, str | None]:
    names = ("docker_socket", "containerd_socket", "podman_socket", "crio_socket")
    return {name: options.get(name) for name in names}


def asked_for(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the runtimes that the options or the environment name."""
    return runtimes.asked(split_names(options.get("runtimes")), **_sockets(options))


def make_index(
    options: Mapping[str, Any], detailed: bool = False, consequence: str = NAMES_UNAVAILABLE
) -> Index:
    """Return an index of the selected runtimes, not started yet (see Index). Raises IgError."""
    cluster = _cluster(options.get("kubernetes"))
    asked = asked_for(options)
    chosen = selected_runtimes(options)
    return Index(chosen, say, asked, detailed, consequence, cluster=cluster)


def _cluster(given: str | None) -> Cluster | None:
    """Return the Kubernetes cluster whose kubeconfig is given, if one is."""
    if not given:
        return None
    from ig.kubernetes import cluster, credentials  # and TLS: 5 MB

    return cluster.of(credentials.find(given), say)


def follow(
    index: Index,
    options: Mapping[str, Any],
    keep: Iterable[Capability],
    seconds: float = SYNC_TIMEOUT,
) -> Answers:
    """Drop all privileges but those to `keep`, and start to follow the runtimes.

    Return which runtimes listed their containers within that many seconds.
    """
    give_up_privileges(index, options, keep)
    index.start()
    index.wait_synced(seconds)
    return answers.of(index, asked_for(options))


def give_up_privileges(
    index: Index, options: Mapping[str, Any], keep: Iterable[Capability]
) -> None:
    """Drop all privileges but those to `keep`, unless the options keep them all.

    It must precede the start of other threads. Raises KernelRefused.
    """
    if options.get("keep_privileges"):
        return
    kept = set(keep)
    if Capability.CAP_SYS_PTRACE not in kept:
        monitor.start()
    drop(_used(index, options), kept)


def _used(index: Index, options: Mapping[str, Any]) -> Iterator[Use]:
    """Yield the files that are opened after privileges are dropped."""
    if options.get("ready_file"):
        yield _ready_file_use(options["ready_file"])
    if options.get("log_file"):
        yield Use(options["log_file"], os.W_OK, expected=True)
        yield Use(os.path.dirname(os.path.abspath(options["log_file"])), os.W_OK | os.X_OK)
    asked = asked_for(options)
    for runtime in index.sources.values():
        yield Use(runtime.socket, expected=runtime.name in asked)
    for file in index.cluster.files if index.cluster else ():
        yield Use(file, os.R_OK, expected=True)
    if options.get("otlp"):
        names = product(("", "METRICS_", "LOGS_"), _OTLP_FILES)
        found = (os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}{name}") for signal, name in names)
        yield from (Use(path, os.R_OK) for path in found if path)
    yield from _certificates()
    yield from _modules()


def _certificates() -> Iterator[Use]:
    """Yield the TLS files for an engine that is queried over the network."""
    if not os.environ.keys() & {"DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"}:
        return
    from ig.containers.runtimes.http_api import certificates

    folder = certificates()
    for name in ("ca.pem", "cert.pem", "key.pem") if folder else ():
        yield Use(f"{folder}/{name}", os.R_OK, expected=True)


def _modules() -> Iterator[Use]:
    """Yield the directories of Python modules: clients of runtimes are imported later."""
    for folder in filter(os.path.isdir, sys.path):
        yield Use(folder, os.R_OK | os.X_OK, lasting=False)
        if os.stat(folder).st_uid not in (0, os.geteuid()):
            yield from (Use(each.path, os.R_OK, lasting=False) for each in os.scandir(folder))


def configure_display(
    display: DisplayOptions, chosen: Selection, index: Index, answered: Answers, later: str = ""
) -> None:
    """Show Kubernetes columns if needed; report runtimes without an answer, or no containers."""
    display.show_pods(index.containers())
    report_answers(chosen, index, answered, later)


def report_answers(chosen: Selection, index: Index, answered: Answers, later: str = "") -> None:
    """Report runtimes without an answer, or that no containers are running."""
    containers = index.containers()
    for runtime in answered.pending:
        say(
            f"{runtime.name} has not answered yet at {runtime.socket}; "
            "its containers are shown by ID until it answers"
        )
    if index.cluster and index.cluster.pending:
        say(
            f"the Kubernetes API has not answered yet at {index.cluster.url}; "
            "pods and Services are shown by address until it answers"
        )
    if chosen.host or chosen.host_only or containers:
        return
    unnamed = index.unnamed()
    if unnamed:
        say(
            f"{unnamed} running containers are unknown to the runtimes and named by their cgroups. "
            "`ig doctor` lists the runtimes that are queried."
        )
    elif line := answers.none_running(answered, later):
        say(line)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _ready_file_use(path: str) -> Use:
    """Return the file access for which privileges are kept until the file is written."""
    return Use(os.path.dirname(os.path.abspath(path)), os.W_OK | os.X_OK, lasting=False)


def check_ready_file(path: str | None) -> None:
    """Raise IgError if a file is requested and cannot be written later."""
    if not path:
        return
    try:
        kind = _KINDS.get(stat.S_IFMT(os.lstat(path).st_mode))
    except FileNotFoundError:
        kind = None
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    if kind:
        raise _refused(path, f"It is {kind}.")
    folder = _ready_file_use(path)
    if problem := obstacle(folder.path, folder.access):
        raise _refused(path, f"{problem}.")


def write_ready_file(path: str | None) -> None:
    """Write the PID to the file, if one is requested. Raises IgError.

    A new file replaces the old one atomically: an existing file is not opened or followed, and no
    reader sees half of it.
    """
    check_ready_file(path)
    if not path:
        return
    new = f".ig-{os.urandom(8).hex()}"
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write_pid(folder, new)
            os.rename(new, os.path.basename(path), src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(OSError):
                os.unlink(new, dir_fd=folder)
            raise
        finally:
            os.close(folder)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error


def _write_pid(folder: int, name: str) -> None:
    descriptor = os.open(name, _NEW, 0o644, dir_fd=folder)
    try:
        os.write(descriptor, f"{os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


def _refused(path: str, found: str) -> IgError:
    return IgError(
        f"Cannot write the ready file {path}.",
        found,
        "Use a new file in an existing, writable directory.",
    )
