"""Metrics for an OpenTelemetry Collector, sent by the OpenTelemetry SDK.

Their names are those of semantic-conventions' proposal #3682 with the prefix `ig.`. All are
cumulative: what could not be sent is in what is sent next.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import TYPE_CHECKING

from ig.errors import UsageError
from ig.export.collector import Collector, error_type, import_sdk, resource
from ig.export.series import OFFSET, SCALE, Metric, Sample
from ig.output.stream import Once, say
from ig.output.text import visible
from ig.values import MILLISECOND, SECOND

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import export as sdk

Reading = Callable[[], AbstractContextManager[Sequence[Metric]]]

_LAST = 5.0  # seconds to send the last counts
_NAMES = {
    "ig_tcp_connects_total": ("ig.tcp.connections", "{connection}"),
    "ig_tcp_connect_duration_seconds": ("ig.tcp.handshake.duration", "s"),
    "ig_tcp_retransmits_total": ("ig.tcp.retransmits", "{segment}"),
    "ig_tcp_bytes_total": ("ig.tcp.io", "By"),
    "ig_tcp_connect_failures_total": ("ig.tcp.connection.failures", "{connection}"),
    "ig_tcp_open_connections": ("ig.tcp.connection.count", "{connection}"),
    "ig_events_lost_total": ("ig.events.lost", "{event}"),
    "ig_containers": ("ig.container.count", "{container}"),
    "ig_series": ("ig.series.count", "{series}"),
    "ig_series_overflow_total": ("ig.series.overflow", "{event}"),
}
"""The name and the unit of each metric here; that of the build is in the resource."""
_ATTRIBUTES = {
    "container": "container.name",
    "pod": "k8s.pod.name",
    "namespace": "k8s.namespace.name",
    "destination": "ig.destination",
    "outcome": "ig.outcome",
    "kind": "ig.retransmit.kind",
    "direction": "network.io.direction",
    "state": "network.connection.state",
    "cause": "ig.cause",
    "runtime": "container.runtime.name",
    "metric": "ig.metric",
}


def attributes(metric: Metric, sample: Sample) -> dict[str, str | int]:
    """Return the labels of a series as attributes; those that are empty are left out."""
    labels = {
        name: visible(value)
        for name, value in zip(metric.labels, sample.labels, strict=True)
        if value
    }
    found: dict[str, str | int] = {
        attribute: labels[name] for name, attribute in _ATTRIBUTES.items() if name in labels
    }
    if "pod" in labels and "container" in labels:
        found["k8s.container.name"] = found.pop("container.name")
    if port := labels.get("port"):
        found |= {"server.port": int(port)} if port.isdecimal() else {"ig.port": port}
    if error := error_type(labels.get("outcome", "")):
        found["error.type"] = error
    if metric.name == "ig_tcp_connect_failures_total" and "cause" in labels:
        found["ig.cause.kind"] = found.pop("ig.cause")
    if state := labels.get("state"):
        found["network.connection.state"] = state.replace("-", "_")
    return found


class Sender(threading.Thread):
    """Sends all metrics at an interval, and at the end."""

    def __init__(self, collector: Collector, reading: Reading) -> None:
        """Prepare to send what `reading` yields. Raises MissingDependency without the SDK."""
        super().__init__(name="otlp", daemon=True)
        self.failure: BaseException | None = None
        """The error that ended it, if one did."""
        self._collector, self._reading = collector, reading
        self._began = time.time_ns()
        self._interval = _interval()
        self._stopping = threading.Event()
        self._fails = False
        self._once = Once(say)
        import_sdk(collector.protocol)
        self._resource = resource()

    def start(self) -> None:
        """Begin to send."""
        self._exporter = self._collector.exporter()
        super().start()

    def run(self) -> None:
        """Send until `stop`; what ends it otherwise is in `failure`."""
        try:
            while not self._stopping.wait(self._interval):
                self._send()
            self._send()
        except BaseException as error:  # for the main thread, which ends with it
            self.failure = error

    def stop(self) -> None:
        """Send the last counts, and end; a collector that does not answer is given up."""
        self._stopping.set()
        self.join(_LAST)
        self._exporter.shutdown()  # it ends the waits between attempts
        self.join(_LAST)
        if self.is_alive() or self._fails:
            say(f"warning: the last metrics were not sent to {self._collector.url}")

    def _send(self) -> None:
        with self._reading() as metrics:
            data = self._data(metrics, time.time_ns())
        failed = not self._exporter.export(data)
        if rejected := self._exporter.rejected:
            self._once(f"warning: {self._collector.url} has rejected {rejected} points of metrics")
        if failed and not self._fails:
            reason = f" ({self._exporter.reason})" if self._exporter.reason else ""
            say(
                f"warning: metrics cannot be sent to {self._collector.url}{reason}; "
                f"trying again every {self._interval:g} s, no counts are lost"
            )
        elif self._fails and not failed:
            say(f"metrics are sent to {self._collector.url} again")
        self._fails = failed

    def _data(self, metrics: Sequence[Metric], now: int) -> sdk.MetricsData:
        from opentelemetry.sdk.metrics import export as sdk
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        instead = {each.name for each in metrics if each.exponential}
        sent = [
            self._metric(each, now)
            for each in metrics
            if each.name in _NAMES and len(each)
            if each.exponential or each.name not in instead
        ]
        scope = sdk.ScopeMetrics(InstrumentationScope("ig", version("ig")), sent, "")
        return sdk.MetricsData([sdk.ResourceMetrics(self._resource, [scope], "")])

    def _metric(self, metric: Metric, now: int) -> sdk.Metric:
        from opentelemetry.sdk.metrics import export as sdk

        name, unit = _NAMES[metric.name]
        cumulative = sdk.AggregationTemporality.CUMULATIVE
        data: sdk.Sum | sdk.Histogram | sdk.ExponentialHistogram
        if metric.exponential:
            exponential = [self._exponential(metric, each, now) for each in metric.samples()]
            data = sdk.ExponentialHistogram(exponential, cumulative)
        elif metric.bounds:
            points = [self._histogram(metric, sample, now) for sample in metric.samples()]
            data = sdk.Histogram(points, cumulative)
        else:
            numbers = [
                sdk.NumberDataPoint(
                    attributes(metric, sample), sample.since or self._began, now, sample.values[0]
                )
                for sample in metric.samples()
            ]
            data = sdk.Sum(numbers, cumulative, is_monotonic=metric.kind == "counter")
        return sdk.Metric(name, metric.text, unit, data)

    def _histogram(self, metric: Metric, sample: Sample, now: int) -> sdk.HistogramDataPoint:
        from opentelemetry.sdk.metrics import export as sdk

        *counts, total = sample.values
        return sdk.HistogramDataPoint(
            attributes(metric, sample),
            sample.since or self._began,
            now,
            sum(counts),
            total / SECOND,
            counts,
            [bound / SECOND for bound in metric.bounds],
            # Neither is known; the encoder leaves these out.
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
        )

    def _exponential(
        self, metric: Metric, sample: Sample, now: int
    ) -> sdk.ExponentialHistogramDataPoint:
        from opentelemetry.sdk.metrics import export as sdk

        *counts, total = sample.values
        used = [place for place, count in enumerate(counts) if count]
        first, last = used[0], used[-1]
        return sdk.ExponentialHistogramDataPoint(
            attributes(metric, sample),
            sample.since or self._began,
            now,
            sum(counts),
            total / SECOND,
            SCALE,
            0,
            sdk.Buckets(OFFSET + first, counts[first : last + 1]),
            sdk.Buckets(0, []),
            0,
            # Neither is known; the encoder leaves these out.
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
        )


def _interval() -> float:
    """Return the seconds between exports that the environment gives, as the SDK's own reader."""
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "60000")
    if not text.isdecimal() or not 0 < int(text) < 10**9:
        raise UsageError(
            f"Invalid OTEL_METRIC_EXPORT_INTERVAL {text[:32]!r}.", "", "Use a number of ms."
        )
    return int(text) * MILLISECOND / SECOND
