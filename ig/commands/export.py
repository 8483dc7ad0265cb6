"""`ig export`: metrics of TCP connections, for Prometheus and OpenTelemetry, and their events."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ig.bpf.loader import Loading
from ig.commands import answers
from ig.commands.answers import closing
from ig.commands.divided import Divided
from ig.commands.setup import (
    asked_for,
    check_ready_file,
    give_up_privileges,
    make_index,
    report_answers,
    selection,
    write_ready_file,
)
from ig.commands.snapshot import SNAPSHOT, known_by
from ig.commands.trace import (
    finishing,
    follow_causes,
    kept,
    make_senders,
    open_source,
    report_compat,
    with_causes,
)
from ig.containers.index import Index
from ig.containers.peers import Peers
from ig.containers.selection import Selection
from ig.errors import UsageError
from ig.export.collector import METRICS, Collector, parse_collector
from ig.export.connections import OpenConnections
from ig.export.destinations import Destinations, parse_networks
from ig.export.metrics import Metrics
from ig.export.otlp import Sender
from ig.export.pages import make_server, report
from ig.export.server import Address, Server, listen, parse_address
from ig.export.service import LogFile, notify, on_hangup
from ig.gadget import Gadget, defines, program
from ig.gadgets import declared
from ig.kernel.capabilities import need_privileges
from ig.kernel.cgroupfs import look_up
from ig.options import EXPORT
from ig.output.sink import Chain, Sink
from ig.output.stream import Stream, log_json, say
from ig.stop import Stop
from ig.summary import counted
from ig.trace.attribution import Attribution
from ig.trace.losses import UNNAMED
from ig.trace.pipeline import Pipeline

if TYPE_CHECKING:
    from ig.export.events import Events

INTERVAL = 5.0
"""Seconds between reads of the kernel's counts, by default."""
SERIES = 2000
"""The number of series of each metric by default."""
_OF_OTLP = ("events", "otlp_protocol", "buckets")
CLASSIC, NATIVE = "classic", "native"
_AGGREGATION = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
_HISTOGRAMS = {
    CLASSIC: CLASSIC,
    NATIVE: NATIVE,
    "explicit_bucket_histogram": CLASSIC,
    "base2_exponential_bucket_histogram": NATIVE,
}
Output = Server | Sender
_CONNECTS, _ALL = "trace_tcpconnect", "trace_tcp"


def export(options: Mapping[str, Any]) -> None:
    """Export metrics until the user stops it. Raises IgError."""
    address, collector = _targets(options)
    destinations = Destinations(parse_networks(options.get("cidr") or ()))
    chosen = selection(options)
    check_ready_file(options.get("ready_file"))
    _set_log_format(options.get("log_format") or "text")
    need_privileges()
    stop = Stop()
    on_hangup(LogFile(options["log_file"]) if options.get("log_file") else None)
    index = make_index(options, detailed=True)
    peers, causes = Peers(index), follow_causes(options, index)
    connections = _connections(options, chosen, index)
    metrics = _metrics(options, destinations, index, connections)
    outputs = _outputs(address, collector, metrics)
    gadget = _gadget(options)
    senders = _senders(gadget, options, destinations, metrics)
    # Forks before there are threads.
    loading = Loading(
        program(gadget, options), defines(gadget, options), gadget.source == "aggregate"
    )
    with closing(index), contextlib.closing(loading):
        report_compat()
        snapshots = SNAPSHOT if connections else ()
        give_up_privileges(index, options, (*kept(options), *snapshots))
        for each in (index, *outputs):
            each.start()
        with open_source(loading, index) as source:
            report_answers(chosen, index, answers.of(index, asked_for(options)))
            sink = Chain((), metrics, *senders)
            with stop.noted(), with_causes(sink, causes, source) as explained:
                pipeline = Pipeline(
                    source,
                    Attribution(index, chosen.wants, source, look_up),
                    _divided(sink, metrics, explained, options),
                    Stream(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stop),
                    lambda: stop() or any(each.failure for each in outputs),
                    lambda: False,
                    peers=peers.of_records,
                    holding=explained,
                    interval=metrics.interval,
                )
                # A series that begins with its first number would seem not to have grown then.
                metrics.lost(dict.fromkeys((*source.causes, UNNAMED), 0))
                metrics.open()
                _run(pipeline, outputs, connections, senders, options)


def _gadget(options: Mapping[str, Any]) -> Gadget:
    """Return the gadget that counts; with --events, one that reports each attempt once.

    With --why alone, what fails is reported, and all else counted. Segments that are sent again are
    always counted.
    """
    gadget = counted(declared()[_ALL if options.get("bytes") else _CONNECTS])
    more = {"COUNT_RETRANSMITS": 1}
    if options.get("events"):
        more |= {"COUNT_EVENTS": 0, "REPORT_EVENTS": 1}
    elif options.get("why"):
        more |= {"REPORT_FAILURES": 1}
    return replace(gadget, defines={**gadget.defines, **more})


def _divided(sink: Chain, metrics: Metrics, explained: Any, options: Mapping[str, Any]) -> Sink:
    """Return the sink of all records: one that adds causes, if any, takes the events."""
    reports = explained or options.get("events")
    return Divided(explained or sink, metrics, sink) if reports else sink


def _senders(
    gadget: Gadget, options: Mapping[str, Any], destinations: Destinations, metrics: Metrics
) -> Sequence[Events]:
    if not options.get("events"):
        return ()
    return make_senders(gadget, options, destination=destinations.name, on_lost=metrics.lost)


def _outputs(
    address: Address | None, collector: Collector | None, metrics: Metrics
) -> list[Output]:
    """Return the threads that serve metrics at an address and send them to a URL."""
    outputs: list[Output] = []
    if address:
        outputs.append(make_server(listen(address), metrics))
    if collector:
        outputs.append(Sender(collector, metrics.reading))
    return outputs


def _run(
    pipeline: Pipeline,
    outputs: Sequence[Output],
    connections: OpenConnections | None,
    senders: Sequence[Events],
    options: Mapping[str, Any],
) -> None:
    """Count until the user stops it. Raises what has ended one of the outputs."""
    if connections:
        connections.start()  # the runtimes have answered: owners are known
    for each in outputs:
        if isinstance(each, Server):
            report(each.listener)
    write_ready_file(options.get("ready_file"))
    notify("READY=1")
    with finishing(senders):
        pipeline.run()
        notify("STOPPING=1")
    if connections:
        connections.stop()
    for each in outputs:
        each.stop()
        if each.failure:
            raise each.failure


def _targets(options: Mapping[str, Any]) -> tuple[Address | None, Collector | None]:
    """Return the address to serve metrics on, and the collector to send them to."""
    address, url = options.get("prometheus"), options.get("otlp")
    for param in EXPORT:
        if param.name in _OF_OTLP and options.get(param.name) and not url:
            raise UsageError(f"{param.flags[0]} needs --otlp.", "", "Use --otlp URL.")
    _histogram(options)
    if not (address or url):
        raise UsageError(
            "Nothing to export to.", "", "Use --prometheus 127.0.0.1:9435 or --otlp URL."
        )
    collector = parse_collector(url, options.get("otlp_protocol"), METRICS) if url else None
    return (parse_address(address) if address else None, collector)


def _histogram(options: Mapping[str, Any]) -> str:
    """Return the kind of histograms that are sent."""
    if not options.get("otlp"):
        return CLASSIC  # whatever the environment says for others
    name: str = options.get("buckets") or os.environ.get(_AGGREGATION, "").lower() or CLASSIC
    if name not in _HISTOGRAMS:
        raise UsageError(f"Unknown histogram {name[:64]!r}.", f"Known ones: {CLASSIC}, {NATIVE}")
    return _HISTOGRAMS[name]


def _set_log_format(name: str) -> None:
    if name not in ("text", "json"):
        raise UsageError(f"Unknown log format {name[:64]!r}.", "Known formats: text, json")
    if name == "json":
        log_json()


def _metrics(
    options: Mapping[str, Any],
    destinations: Destinations,
    index: Index,
    connections: OpenConnections | None,
) -> Metrics:
    interval, most = options.get("interval") or INTERVAL, options.get("series") or SERIES
    metrics = Metrics(
        interval,
        most,
        destinations,
        index.containers,
        exponential=_histogram(options) == NATIVE,
        runtimes=list(index.sources),
    )
    if connections:
        metrics.more = connections.metrics
    return metrics


def _connections(
    options: Mapping[str, Any], chosen: Selection, index: Index
) -> OpenConnections | None:
    if not options.get("open_connections"):
        return None
    most = options.get("series") or SERIES
    return OpenConnections(partial(known_by, index), chosen.wants, say, most)
