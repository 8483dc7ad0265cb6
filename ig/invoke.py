"""Carry out one command: bring the runtimes, the kernel, the gadget and the output together."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ig import answers, ready
from ig.answers import Answers, Hint, closing
from ig.attribution import Attribution
from ig.containers import runtimes
from ig.containers.container import HOST, Runtime
from ig.containers.follower import SHOWN_BY_ID
from ig.containers.index import Index
from ig.containers.selection import Selection, select
from ig.errors import UsageError
from ig.gadget import Batch, Gadget, View
from ig.kernel import monitor
from ig.kernel.capabilities import Capability, Use, drop, need_privileges
from ig.names import find_column
from ig.output.display import Shape
from ig.output.stderr import say
from ig.output.stream import Stream
from ig.peers import Peers
from ig.stop import Stop

_SNAPSHOT = (
    Capability.CAP_SYS_ADMIN,  # to enter network namespaces
    Capability.CAP_SYS_PTRACE,  # to find them, and who holds a socket
    Capability.CAP_DAC_READ_SEARCH,  # the same, and cgroups by their ids
    Capability.CAP_NET_ADMIN,  # sockets' marks
)
"""What a snapshot needs each time that it is taken."""
_SYNC_PATIENCE = 2.0  # seconds for the runtimes to list what they have


def selection(options: Mapping[str, Any]) -> Selection:
    """Return the containers that the options choose."""
    return select(
        options.get("containername") or (),
        pods=options.get("podname") or (),
        namespaces=options.get("namespace") or (),
        selectors=options.get("selector") or (),
        runtimes=_names(options.get("runtimes")) or (),
        host=bool(options.get("host")),
        host_only=bool(options.get("host_only")),
    )


def _names(values: Sequence[str] | None) -> list[str] | None:
    names = [name.strip() for value in values or () for name in value.split(",") if name.strip()]
    return names or None


def discovered(options: Mapping[str, Any]) -> list[Runtime]:
    """Return the runtimes that the options choose, each at its socket."""
    return runtimes.discover(
        _names(options.get("runtimes")),
        **_sockets(options),
        containerd_namespace=options.get("containerd_namespace"),
    )


def _sockets(options: Mapping[str, Any]) -> dict[str, str | None]:
    names = ("docker_socket", "containerd_socket", "podman_socket", "crio_socket")
    return {name: options.get(name) for name in names}


def asked_for(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the runtimes that the options, or the environment, ask for."""
    return runtimes.asked(_names(options.get("runtimes")), **_sockets(options))


def make_index(
    options: Mapping[str, Any], detailed: bool = False, consequence: str = SHOWN_BY_ID
) -> Index:
    """Return an index of the runtimes that the options choose, not started yet (see Index)."""
    return Index(discovered(options), say, asked_for(options), detailed, consequence)


def follow(
    index: Index,
    options: Mapping[str, Any],
    keep: Iterable[Capability],
    seconds: float = _SYNC_PATIENCE,
) -> Answers:
    """Drop all privileges but those to `keep`, and start to follow the runtimes.

    Return who has told what it has within so many seconds.
    """
    _give_up(index, options, keep)
    index.start()
    index.wait_synced(seconds)
    return answers.of(index, asked_for(options))


def trace(gadget: Gadget, view: View | None, options: Mapping[str, Any]) -> None:
    """Trace until the user stops it, or as long as the options say."""
    from ig.bpf.loader import Loading
    from ig.kernel.cgroup_paths import look_up
    from ig.sockets.proc import COMPAT, compat_processes
    from ig.trace.pipeline import Pipeline, defines

    shape = Shape(gadget, view, options)
    chosen = selection(options)
    need_privileges()
    stop = Stop()
    stream = Stream(1, stop)  # while it may still open what is another user's
    index = make_index(options, shape.resolves)
    peers = Peers(index).of_records if shape.resolves else None
    # Forks before the index has threads; compiles while the runtimes are asked.
    loading = Loading(gadget.program, defines(gadget, options))
    with closing(index), contextlib.closing(loading):
        compat = compat_processes()  # while it may see them
        _give_up(index, options, (Capability.CAP_BPF,))
        index.start()
        with _source(loading, index) as source:
            if compat:
                say(f"Not all is seen: {COMPAT} (such processes: {compat}).")
            hint = Hint(index, chosen, options)
            answered = answers.of(index, asked_for(options))
            _suit(shape, chosen, index, answered, " yet; those that start are shown")
            pipeline = Pipeline(
                source,
                Attribution(index, chosen.wants, source, look_up),
                shape.formatter(),
                stream,
                shape.keep,
                stop,
                lambda lost: _tell_lost(lost, shape.mode),
                peers=peers,
                max_events=options.get("max_events") or 0,
            )
            with stop.noted(), hint:
                ready.write(options.get("ready_file"))
                pipeline.run(options.get("timeout"))
                hint.give_at_end(pipeline.printed)
                _tell_withheld(gadget, shape)


def _give_up(index: Index, options: Mapping[str, Any], keep: Iterable[Capability]) -> None:
    """Drop all privileges but those to `keep`, unless the user wants them all kept.

    It comes before any other thread is started. Raises KernelRefused.
    """
    if not options.get("keep_privileges"):
        monitor.start()
        drop(_used(index, options), keep)


def _used(index: Index, options: Mapping[str, Any]) -> Iterator[Use]:
    """Yield the files that are opened after privileges were given up."""
    if options.get("ready_file"):
        yield ready.use_of(options["ready_file"])
    asked = asked_for(options)
    for name, socket in index.sockets:
        yield Use(socket, expected=name in asked)
    yield from _certificates()
    yield from _modules()


def _certificates() -> Iterator[Use]:
    """Yield the files that prove who we are to an engine that is asked over the network."""
    if not os.environ.keys() & {"DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"}:
        return
    from ig.containers.engine_http import certificates

    folder = certificates()
    for name in ("ca.pem", "cert.pem", "key.pem") if folder else ():
        yield Use(f"{folder}/{name}", os.R_OK, expected=True)


def _modules() -> Iterator[Use]:
    """Yield where Python's modules are: the runtimes' clients are imported late."""
    for folder in filter(os.path.isdir, sys.path):
        yield Use(folder, os.R_OK | os.X_OK, lasting=False)
        if os.stat(folder).st_uid not in (0, os.geteuid()):
            yield from (Use(each.path, os.R_OK, lasting=False) for each in os.scandir(folder))


@contextmanager
def _source(loading: Any, index: Index) -> Iterator[Any]:
    from ig.bpf.session import Source

    probes = loading.result()
    for line in sorted(set(probes.refused)):
        say(f"Not all is seen: {line}.")
    index.wait_synced(_SYNC_PATIENCE)
    # What lives until the end need not be looked at by every collection.
    gc.collect()
    gc.freeze()
    source = Source(probes)
    try:
        yield source
    finally:
        source.close()


def _suit(
    shape: Shape, chosen: Selection, index: Index, answered: Answers, later: str = ""
) -> None:
    """Show what these containers need, and tell who has not answered, or that there are none."""
    containers = index.containers()
    shape.show_pods(containers)
    for runtime in answered.pending:
        say(f"{runtime.name} has not answered yet at {runtime.socket}; {SHOWN_BY_ID}")
    if chosen.host or chosen.host_only or containers:
        return
    unnamed = index.unnamed()
    if unnamed:
        say(
            f"No runtime names the containers that run, {unnamed}: they are shown by their cgroups."
        )
    elif line := answers.none_running(answered, later):
        say(line)


def _tell_withheld(gadget: Gadget, shape: Shape) -> None:
    if gadget.withheld and shape.withheld and not shape.mode.startswith("json"):
        say(gadget.withheld.message.format(count=shape.withheld))


def _tell_lost(lost: Mapping[str, int], mode: str) -> None:
    if mode.startswith("json"):
        counts = {"type": "lost", "count": sum(lost.values()), "causes": dict(lost)}
        sys.stderr.write(json.dumps(counts) + "\n")
        sys.stderr.flush()
    else:
        for cause, count in lost.items():
            say(f"{count} events were lost so far: {cause}.")


def snapshot(gadget: Gadget, view: View | None, options: Mapping[str, Any]) -> None:
    """Show what exists now, once or again and again."""
    from ig.sockets.collect import DEFAULT_ORDER, Notes, collect, known_by, watch, with_host

    options = with_host(options)
    chosen = selection(options)
    sort = _names(options.get("sort")) or list(DEFAULT_ORDER)
    options = _snapshot_options(gadget, view, options, sort)
    shape = Shape(gadget, view, options)
    stop = Stop()
    stream = Stream(1, stop)  # while it may still open what is another user's
    index = make_index(options, _tells_ends(shape, options))
    answered = follow(index, options, _SNAPSHOT)
    _suit(shape, chosen, index, answered)
    gc.disable()  # one pass over plain lists: nothing to collect, much to look at
    notes = Notes(say, again=os.isatty(1))
    name_ends = _name_ends(shape, options, chosen, index)
    finish = _finish(gadget, shape, {**options, "sort": sort}, notes.append)
    show = _shower(shape, options, stream, stop, notes.tell)

    def take() -> Batch:
        return finish(name_ends(collect(options, known_by(index), chosen.wants, notes.append)))

    ready.write(options.get("ready_file"))
    with closing(index):
        if options.get("watch"):
            watch(options["watch"], take, show, stop.wait)
        else:
            Hint(index, chosen, options).give_now()
            show(take())
            answers.need_owners(answered, chosen)


def _tells_ends(shape: Shape, options: Mapping[str, Any]) -> bool:
    """Return whether the containers that addresses and published ports belong to are needed."""
    return shape.resolves or bool(options.get("listening"))


def _name_ends(
    shape: Shape, options: Mapping[str, Any], chosen: Selection, index: Index
) -> Callable[[Batch], Batch]:
    """Return what names the containers behind published ports and at far ends, if they are needed.

    It adds rows for published ports that no socket stands for, where they are asked for.
    """
    from ig.kernel import netns
    from ig.sockets.published import Published, silent

    peers = Peers(index) if shape.resolves else None
    host = netns.host()

    def name(batch: Batch) -> Batch:
        if _tells_ends(shape, options):
            ports = Published(index.containers(sandboxes=True), host)
            batch = ports.add(batch, silent(options, chosen.wants(HOST)))
        return peers.told(batch) if peers else batch

    return name


def _finish(
    gadget: Gadget, shape: Shape, options: Mapping[str, Any], note: Callable[[str], None]
) -> Callable[[Batch], Batch]:
    """Return what filters, folds and sorts a snapshot; `note` is told what was folded."""
    from ig import order
    from ig.folding import folded
    from ig.kernel import netns

    folds = shape.mode == "columns" and not (options.get("all") or options.get("filter"))
    host = netns.host()

    def finish(batch: Batch) -> Batch:
        if shape.keep:
            batch = batch.select(shape.keep(batch))
        if folds:
            batch, line = folded(batch, host, bool(options.get("state")))
            note(line)
        return order.first(batch, gadget.columns, options["sort"], options.get("max_rows"))

    return finish


def _snapshot_options(
    gadget: Gadget, view: View | None, options: Mapping[str, Any], sort: Sequence[str]
) -> dict[str, Any]:
    from ig.sockets.collect import asked_by_columns

    named = [find_column(key.lstrip("-"), gadget.columns) for key in sort]
    named += Shape(gadget, view, options).named
    return asked_by_columns({**options, "state": _names(options.get("state"))}, named)


def _shower(
    shape: Shape,
    options: Mapping[str, Any],
    stream: Stream,
    stop: Stop,
    tell: Callable[[], None],
) -> Callable[[Batch], None]:
    """Return a function that prints a snapshot, on a terminal in the last one's place."""
    from ig.sockets.collect import portions

    columns = [c for c in shape.columns if c.show_if is None or c.show_if(options)]
    formatter = shape.formatter(array=True, columns=columns)

    def show(batch: Batch) -> None:
        with stop.noted():
            if options.get("watch") and os.isatty(1):
                stream.write("\x1b[H\x1b[2J")
            stream.write(formatter.header(batch))
            for part in portions(batch):
                stream.write(formatter.format(part))
            stream.write(formatter.footer())
        tell()

    return show


def run(gadget: Gadget, view: View | None, options: dict[str, Any]) -> None:
    """Carry out a gadget's command. Raises IgError."""
    for param in gadget.params:
        given = options.get(param.name) not in (None, False, [])
        if given:
            options |= param.implies
        clash = [name for name in param.excludes if given and options.get(name)]
        if clash:
            flags = {other.name: other.flags[-1] for other in gadget.params}
            raise UsageError(
                f"{param.flags[-1]} and {flags[clash[0]]} exclude each other.",
                remedy="Give one of them.",
            )
    ready.check(options.get("ready_file"))
    carry_out: Callable[..., None] = trace if gadget.source == "program" else snapshot
    carry_out(gadget, view, options)
