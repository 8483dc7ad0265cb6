"""`ig trace ...`: connects the BPF program, the runtimes and the output."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ig.bpf.loader import Loading
from ig.bpf.session import Source
from ig.commands import answers
from ig.commands.answers import Hint, closing
from ig.commands.display import DisplayOptions
from ig.commands.replay import recording
from ig.commands.setup import (
    EXAMINING,
    SYNC_TIMEOUT,
    asked_for,
    configure_display,
    give_up_privileges,
    make_index,
    selection,
    write_ready_file,
)
from ig.containers.index import Index
from ig.containers.peers import Peers
from ig.errors import UsageError
from ig.gadget import CompatView, Gadget, defines, program
from ig.kernel.capabilities import Capability, need_privileges
from ig.kernel.cgroupfs import look_up
from ig.output.sink import Chain
from ig.output.stream import Stream, say
from ig.query import Limit
from ig.sockets.proc import COMPAT, compat_processes
from ig.stop import Stop
from ig.trace.attribution import Attribution
from ig.trace.pipeline import Pipeline
from ig.trace.summary import DRAIN

if TYPE_CHECKING:
    from ig.export.events import Events


def trace(gadget: Gadget, view: CompatView | None, options: Mapping[str, Any]) -> None:
    """Trace until the user stops it or a limit of the options is reached."""
    display = DisplayOptions(gadget, view, options)
    chosen = selection(options)
    senders = make_senders(gadget, options, structured=display.mode.startswith("json"))
    need_privileges()
    stop = Stop()
    stream = Stream(1, stop)  # while it may still open what is another user's
    index = make_index(options, display.resolves or bool(options.get("why")))
    peers = Peers(index).of_records if display.resolves else None
    causes = follow_causes(options, index)
    # Forks before the index starts threads; compiles while the runtimes are queried.
    loading = Loading(
        program(gadget, options), defines(gadget, options), gadget.source == "aggregate"
    )
    with closing(index), contextlib.closing(loading), recording(gadget, options) as recorders:
        report_compat()
        give_up_privileges(index, options, kept(options))
        if not chosen.choosy:
            index.batch()
        index.start()
        with open_source(loading, index, gadget.keep_counts) as source:
            hint = Hint(index, chosen, options)
            configure_display(
                display,
                chosen,
                index,
                answers.of(index, asked_for(options)),
                " yet; new containers are shown as they start",
            )
            limit = Limit(options.get("max_events") or 0)
            shown = Chain(display.stages, display.sink(stream))
            before, after = display.around_causes()
            sink = Chain([*after, limit], *recorders, *senders, shown)
            with (
                stop.noted(),
                finishing(senders),
                with_causes(sink, causes, source) as explained,
                hint,
            ):
                pipeline = Pipeline(
                    source,
                    Attribution(index, chosen.wants, source, look_up),
                    Chain(before, explained or sink),
                    stream,
                    stop,
                    limit.reached,
                    peers=peers,
                    holding=explained,
                    interval=options.get("interval") or shown.interval,
                    intervals=options.get("count") or 0,
                    drain=DRAIN if options.get("summary") else 0,
                )
                write_ready_file(options.get("ready_file"))
                pipeline.run(options.get("timeout"))
                hint.report_at_end(limit.passed)
                display.report_withheld()


def kept(options: Mapping[str, Any]) -> Sequence[Capability]:
    """Return the capabilities that a trace keeps."""
    return (Capability.CAP_BPF, *(EXAMINING if options.get("why") else ()))


def follow_causes(options: Mapping[str, Any], index: Index) -> Any:
    """Return the finder of causes, None unless the options ask for it.

    It follows the containers from the first one on, so it precedes the start of the index.
    """
    if not options.get("why"):
        return None
    from ig.commands.why import following

    return following(index)


@contextmanager
def with_causes(sink: Chain, causes: Any, source: Source) -> Iterator[Any]:
    """Yield the sink that adds causes before another, None if there are none to be found."""
    if causes is None:
        yield None
        return
    from ig.commands.why import explaining

    with explaining(sink, causes, source) as explained:
        yield explained


def make_senders(gadget: Gadget, options: Mapping[str, Any], **rest: Any) -> Sequence[Events]:
    """Return the sink that sends a gadget's events to an OpenTelemetry Collector, with `--otlp`.

    Raises UsageError, and MissingDependency without the SDK.
    """
    url, protocol = options.get("otlp"), options.get("otlp_protocol")
    if not url:
        if protocol:
            raise UsageError("--otlp-protocol needs --otlp.", "", "Use --otlp URL.")
        return ()
    from ig.export.collector import LOGS, parse_collector
    from ig.export.events import Events

    return (Events(parse_collector(url, protocol, LOGS), gadget, **rest),)


@contextmanager
def finishing(senders: Sequence[Events]) -> Iterator[None]:
    """Give each a few seconds at the end to send what waits."""
    try:
        yield
    finally:
        for each in senders:
            each.finish()


def report_compat() -> None:
    """Report processes that are not traced, while there is the privilege to see them."""
    if compat := compat_processes():
        say(f"warning: partial coverage: not traced: {COMPAT} ({compat} such processes)")


@contextmanager
def open_source(loading: Any, index: Index, keep_counts: bool = False) -> Iterator[Any]:
    """Yield the source of a program's events, once it is loaded and the runtimes have answered."""
    probes = loading.result()
    for line in sorted(set(probes.refused)):
        say(f"warning: partial coverage: {line}")
    index.wait_synced(SYNC_TIMEOUT)
    # Objects that live until the end need not be scanned by every collection.
    gc.collect()
    gc.freeze()
    gc.enable()  # the launcher disabled it
    source = Source(probes, keep_counts)
    try:
        yield source
    finally:
        source.close()
