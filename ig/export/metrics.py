"""The metrics of TCP connections: the sink of what the kernel has counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import repeat

from ig import buckets
from ig.attempts import ESTABLISHED, OUTCOMES
from ig.container import UNKNOWN_RUNTIME, Container
from ig.ends import ADDRESSES, peers, shown_end
from ig.export.destinations import Destinations, port_name
from ig.export.prometheus import exposition
from ig.export.series import OTHER, Labels, Metric
from ig.gadget import Batch, of_each
from ig.summary import CONNECT, KINDS, Measure, measures

EXPIRY = 600.0
"""Seconds that series stay after their container was last there; of a metric that is full, after
they have last grown."""
BOUNDS = tuple((1 << power) - 1 for power in (*range(16, 31), 32, 34, 36))
"""The largest number of ns in each bucket, 65 µs to 69 s. Some of the kernel's buckets end at each
power of two, so that the counts are exact."""

OWNER = ("container", "pod", "namespace", "runtime")
_HOST = ("",) * len(OWNER)
UNKNOWN = "unknown"
_UNKNOWN = (UNKNOWN,) * len(OWNER)
_ENDS = (*OWNER, "destination", "port")


class _Counted:
    """The metrics of what the kernel counts; the number of their series is bounded."""

    def __init__(self, exponential: bool) -> None:
        self.connects = Metric(
            "ig_tcp_connects_total",
            "counter",
            "TCP connection attempts that have ended.",
            (*_ENDS, "outcome"),
            kept=("outcome",),
        )
        self.durations = Metric(
            "ig_tcp_connect_duration_seconds",
            "histogram",
            "Time from the SYN to the reply of TCP connections that were established.",
            _ENDS,
            bounds=BOUNDS,
        )
        self.exponential = Metric(
            self.durations.name, "histogram", self.durations.text, _ENDS, exponential=True
        )
        self.retransmits = Metric(
            "ig_tcp_retransmits_total",
            "counter",
            "TCP segments that were sent again; kind syn: those of attempts that have ended.",
            (*_ENDS, "kind"),
            kept=("kind",),
        )
        self.bytes = Metric(
            "ig_tcp_bytes_total",
            "counter",
            "Bytes of TCP connections that have been closed.",
            (*OWNER, "destination", "direction"),
            kept=("direction",),
        )
        self.failures = Metric(
            "ig_tcp_connect_failures_total",
            "counter",
            "TCP connection attempts that were not established, by cause.",
            (*_ENDS, "cause"),
            kept=("cause",),
        )
        self.all = (self.connects, self.durations, self.retransmits, self.bytes, self.failures)
        self.also = (self.exponential,) if exponential else ()
        """Metrics that are in `all` in another form."""


class _Own:
    """The metrics of ig itself."""

    def __init__(self) -> None:
        self.lost = Metric(
            "ig_events_lost_total", "counter", "Events that were not counted.", ("cause",)
        )
        self.containers = Metric("ig_containers", "gauge", "Running containers.", ("runtime",))
        self.series = Metric(
            "ig_series", "gauge", "Combinations of label values of a metric.", ("metric",)
        )
        self.overflow = Metric(
            "ig_series_overflow_total",
            "counter",
            "Events that a metric has counted with labels `other` for want of room.",
            ("metric",),
        )
        self.build = Metric("ig_build_info", "gauge", "The version of ig; always 1.", ("version",))
        self.build.set({(version("ig"),): 1})
        self.all = (self.lost, self.containers, self.series, self.overflow, self.build)


class Metrics:
    """The sink that adds up what the kernel has counted.

    Any thread may call `reading` and `exposition`, and read `updated`; all else is for the thread
    that reads the kernel's counts.
    """

    def __init__(
        self,
        interval: float,
        most: int,
        destinations: Destinations,
        running: Callable[[], Sequence[Container]],
        *,
        exponential: bool = False,
        runtimes: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take counts every `interval` seconds, for at most `most` series of each metric.

        `running` returns the containers that run now, `runtimes` are the engines that are followed.
        With `exponential`, `reading` has an exponential histogram of durations, too.
        """
        self.interval = interval
        self.updated = 0.0
        """When counts were last read, by the clock; 0 before the first time."""
        self.more: Callable[[], Sequence[Metric]] = tuple
        """Return metrics that are counted when they are read."""
        self._most, self._destinations, self._running = most, destinations, running
        self._runtimes, self._clock = runtimes, clock
        self._lock = threading.Lock()
        self._counted, self._own = _Counted(exponential), _Own()
        self._lost: Counter[str] = Counter()
        self._overflow: Counter[str] = Counter()
        self._seen: dict[Labels, float] = {}
        """When each container was last seen, by its labels as an owner and as a destination."""

    def open(self) -> None:
        """Begin: all metrics have values from now on."""
        self.tick(0)

    def write(self, batch: Batch) -> None:
        """Add attempts, bytes of connections, and segments that were sent again.

        They are events, or what the kernel has counted.
        """
        fields = batch.fields
        addresses = fields["version"], fields["daddr"]
        others = fields.get("other") or [0] * len(batch)
        ends = zip(peers(batch), *addresses, _ports(fields), others, strict=True)
        totals = fields.get("total_latency") or fields["latency"]
        causes, kinds = fields.get("cause_kind") or repeat(""), fields.get("kind") or repeat(0)
        counts = zip(measures(batch), totals, causes, kinds, strict=False)
        owners = of_each(batch.owners, owner_labels)
        now = self._clock()
        with self._lock:
            for owner, end, (measure, total, cause, kind) in zip(owners, ends, counts, strict=True):
                destination, port = self._end(*end)
                self._note(owner, destination, now)
                labels = (*owner, destination, port)
                if kind:
                    added = self._add_retransmits((*labels, KINDS[kind]), measure, now)
                elif measure.type == CONNECT:
                    added = self._add(labels, measure, total, now)
                    if "cause_kind" in fields and measure.outcome != ESTABLISHED:
                        added |= self._add_failure((*labels, cause or UNKNOWN), measure, now)
                else:
                    added = self._add_bytes((*owner, destination), measure, now)
                for metric, has_room in added.items():
                    if not has_room or destination == OTHER:
                        self._overflow[metric.name] += measure.number

    def _end(
        self, peer: Container, ip: int, address: bytes, port: int, other: int
    ) -> tuple[str, str]:
        if other:  # all that the kernel had no room for
            return OTHER, OTHER
        return self._destinations.name(peer, ADDRESSES[ip, address]), port_name(port)

    def _add(self, labels: Labels, measure: Measure, total: int, now: float) -> dict[Metric, bool]:
        """Add attempts; return the metrics that have counted them, and whether in own series."""
        connects, retransmits = self._counted.connects, self._counted.retransmits
        durations, room = self._counted.durations, (self._most, now)
        outcome = OUTCOMES[measure.outcome]
        added = {connects: connects.add((*labels, outcome), measure.number, *room)}
        if measure.retransmits:
            added[retransmits] = retransmits.add((*labels, "syn"), measure.retransmits, *room)
        if measure.bucket and measure.outcome == ESTABLISHED:
            low, end = buckets.bounds(measure.bucket)
            numbers = measure.number, total
            added[durations] = durations.observe(labels, low, numbers, *room)
            for metric in self._counted.also:
                metric.observe(labels, (low + end) // 2, numbers, *room)
        return added

    def _add_retransmits(self, labels: Labels, measure: Measure, now: float) -> dict[Metric, bool]:
        metric = self._counted.retransmits
        return {metric: metric.add(labels, measure.number, self._most, now)}

    def _add_failure(self, labels: Labels, measure: Measure, now: float) -> dict[Metric, bool]:
        metric = self._counted.failures
        return {metric: metric.add(labels, measure.number, self._most, now)}

    def _add_bytes(self, labels: Labels, measure: Measure, now: float) -> dict[Metric, bool]:
        metric = self._counted.bytes
        numbers = ("transmit", measure.sent), ("receive", measure.received)
        rooms = [
            metric.add((*labels, direction), number, self._most, now)
            for direction, number in numbers
            if number
        ]
        return {metric: all(rooms)} if rooms else {}

    def tick(self, now: int) -> None:
        """Update what the kernel does not count, and remove series of containers that are gone."""
        del now
        running, moment = self._running(), self._clock()
        with self._lock:
            for container in running:
                self._note(owner_labels(container), shown_end(container), moment)
            self._expire(moment)
            counts = Counter(each.engine for each in running)
            engines = dict.fromkeys((*self._runtimes, *counts))
            self._own.containers.set({(name,): counts[name] for name in engines})
            self._own.series.set({(each.name,): len(each) for each in self._counted.all})
            self._own.overflow.set(
                {(each.name,): self._overflow[each.name] for each in self._counted.all}
            )
            self.updated = moment

    def _note(self, owner: Labels, destination: str, now: float) -> None:
        """Note that a container is there, or was a moment ago."""
        if owner not in (_HOST, _UNKNOWN):
            self._seen[owner] = now
        if "/" in destination:  # a container's or a pod's
            self._seen[(destination,)] = now

    def _expire(self, now: float) -> None:
        gone = {labels for labels, seen in self._seen.items() if now - seen > EXPIRY}
        for labels in gone:
            del self._seen[labels]
        owner = len(OWNER)
        for metric in (*self._counted.all, *self._counted.also):
            if gone:
                metric.expire(lambda labels: labels[:owner] in gone or labels[owner:][:1] in gone)
            metric.make_room(now - EXPIRY)

    def lost(self, counts: Mapping[str, int]) -> None:
        """Take the number of lost events by cause; each only grows."""
        with self._lock:
            for cause, count in counts.items():
                self._lost[cause] = max(self._lost[cause], count)
            self._own.lost.set({(cause,): count for cause, count in self._lost.items()})

    def close(self) -> None:
        """End: nothing more is counted."""

    @contextmanager
    def reading(self) -> Iterator[Sequence[Metric]]:
        """Yield all metrics, which stay as they are meanwhile."""
        more = self.more()
        with self._lock:
            yield (*self._counted.all, *self._counted.also, *more, *self._own.all)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        with self.reading() as metrics:
            return exposition(each for each in metrics if not each.exponential)


def _ports(fields: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """Return the far ends' ports; of segments sent again, those that were connected to."""
    if "kind" not in fields:
        return fields["dport"]
    ports = zip(fields["kind"], fields["dport"], fields["sport"], strict=True)
    return [near if kind and not far else far for kind, far, near in ports]


def owner_labels(container: Container) -> Labels:
    """Return the labels `OWNER`: empty for the host, `unknown` for unknown.

    That of the runtime tells apart engines of one kind: of root, of users.
    """
    if container.runtime == UNKNOWN_RUNTIME and container.id.startswith(("cgroup:", "unknown")):
        return _UNKNOWN
    name = container.pod_container or container.name
    return name, container.pod_name, container.pod_namespace, container.engine
