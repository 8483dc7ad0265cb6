"""Events as log records for an OpenTelemetry Collector, sent by the OpenTelemetry SDK.

The thread that reads the kernel's events never waits: another one sends them, from a bounded queue.
What there is no room for, and what cannot be sent in time at the end, is counted and reported.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ig.container import Container
from ig.errors import UsageError
from ig.export.attributes import Attributes
from ig.export.collector import Collector, import_sdk, resource
from ig.gadget import Batch, Gadget
from ig.output.sink import report_lost
from ig.output.stream import say

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord

NOT_SENT = "not sent to the OpenTelemetry Collector (upper bound)"
"""The cause of what is lost here; a collector may have what it did not acknowledge."""
_MOST = 65536  # events that wait to be sent: 100 MB at most
_PIECE = 512  # events in a request, at most
_DELAY = 1.0  # seconds that the first event of a request waits for others, at most
_RETRY, _MOST_RETRY = 1.0, 10.0  # seconds after the SDK has given up its own attempts
_REPORT_EVERY = 10.0  # seconds between reports of losses, while they last
_LAST = 5.0  # seconds to send the last events
_ENDING = 1.0  # seconds for a request to end that was given up


class Events:
    """The sink that sends events; `finish` ends it."""

    interval = 0.0

    def __init__(
        self,
        collector: Collector,
        gadget: Gadget,
        *,
        destination: Callable[[Container, str], str] | None = None,
        on_lost: Callable[[Mapping[str, int]], None] | None = None,
        structured: bool = False,
    ) -> None:
        """Prepare to send the events of a gadget. Raises MissingDependency without the SDK.

        `destination` returns the name of a far end, of its container and its address; `on_lost`
        takes the number of events that were not sent, at each interval and at the end. With
        `structured`, losses are reported as JSON.
        """
        import_sdk(collector.protocol)
        self._collector, self._on_lost, self._structured = collector, on_lost, structured
        self._attributes = Attributes(gadget, destination)
        self._resource = resource()
        self._most = _room()
        self._changed = threading.Condition()
        self._queue: deque[Batch] = deque()
        self._waiting = 0
        """Events that are queued or being sent."""
        self._lost = self._reported = 0
        self._report_due = 0.0
        self._fails = self._ending = False
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp events", daemon=True)
        self._failure: BaseException | None = None

    def open(self) -> None:
        """Begin to send."""
        self._exporter = self._collector.exporter()
        self._thread.start()
        self.tick(0)

    def write(self, batch: Batch) -> None:
        """Queue the events, or count them as lost if there is no room. Never waits.

        Raises what has ended the thread that sends.
        """
        self._raise()
        with self._changed:
            for start in range(0, len(batch), _PIECE):
                piece = batch.part(start, start + _PIECE)
                if self._waiting + len(piece) > self._most:
                    self._lost += len(piece)
                else:
                    self._queue.append(piece)
                    self._waiting += len(piece)
            self._changed.notify()
        self._report()

    def tick(self, now: int) -> None:
        """Pass on the number of events that were not sent. Raises as `write` does."""
        del now
        self._raise()
        if self._on_lost:
            self._on_lost({NOT_SENT: self._lost})

    def lost(self, counts: Mapping[str, int]) -> None:
        """Do nothing: others report what the kernel has lost."""

    def close(self) -> None:
        """Note that no more events follow; see `finish`."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    def finish(self) -> None:
        """Send what waits, within a few seconds; the rest is lost. Raises what has failed here."""
        self.close()
        if self._thread.ident:
            self._thread.join(_LAST)
            self._given_up.set()
            self._exporter.shutdown()  # it ends the waits between attempts
            self._thread.join(_ENDING)
        with self._changed:
            self._lost += self._waiting
            self._waiting = 0
        self._report(last=True)
        self.tick(0)

    def _raise(self) -> None:
        if self._failure:
            raise self._failure

    def _report(self, last: bool = False) -> None:
        if self._lost > self._reported and (last or time.monotonic() >= self._report_due):
            self._reported = self._lost
            self._report_due = time.monotonic() + _REPORT_EVERY
            report_lost({NOT_SENT: self._lost}, self._structured)

    def _run(self) -> None:
        try:
            while pieces := self._next():
                if not self._send(pieces):
                    return
        except BaseException as error:  # raised in the main thread
            self._failure = error

    def _next(self) -> list[Batch]:
        """Return the events of the next request; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ending)
            self._changed.wait_for(lambda: self._waiting >= _PIECE or self._ending, _DELAY)
            pieces: list[Batch] = []
            while self._queue and sum(map(len, pieces)) + len(self._queue[0]) <= _PIECE:
                pieces.append(self._queue.popleft())
            return pieces

    def _send(self, pieces: Sequence[Batch]) -> bool:
        """Send events, again and again; return whether that was done before it was given up."""
        records = [record for piece in pieces for record in self._records(piece)]
        pause = _RETRY
        while not (sent := self._exporter.export(records)) and not self._exporter.refused:
            if self._given_up.is_set():
                return False
            self._say_failure(f"trying again, up to {self._most} are kept")
            if self._given_up.wait(pause):
                return False
            pause = min(2 * pause, _MOST_RETRY)
        with self._changed:
            self._waiting -= len(records)
            self._lost += self._exporter.rejected if sent else len(records)
        if not sent:
            self._say_failure("they are lost")
        elif self._fails:
            say(f"events are sent to {self._collector.url} again")
        self._fails = not sent
        return True

    def _say_failure(self, what_follows: str) -> None:
        if not self._fails:
            reason = f" ({self._exporter.reason})" if self._exporter.reason else ""
            url = self._collector.url
            say(f"warning: events cannot be sent to {url}{reason}; {what_follows}")
        self._fails = True

    def _records(self, batch: Batch) -> list[ReadableLogRecord]:
        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.sdk._logs import ReadableLogRecord
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        scope = InstrumentationScope("ig", version("ig"))
        rows = zip(
            batch.fields["timestamp"],
            self._attributes.names(batch),
            self._attributes.of(batch),
            strict=True,
        )
        records = []
        for moment, name, attributes in rows:
            failed = "error.type" in attributes
            record = LogRecord(
                timestamp=moment,
                severity_number=SeverityNumber.WARN if failed else SeverityNumber.INFO,
                severity_text="WARN" if failed else "INFO",
                attributes=attributes,
                event_name=name,
            )
            records.append(ReadableLogRecord(record, self._resource, scope))
        return records


def _room() -> int:
    """Return the events that may wait, as the standard variable of log processors says."""
    text: Any = os.environ.get("OTEL_BLRP_MAX_QUEUE_SIZE", str(_MOST))
    if not text.isdecimal() or not _PIECE <= int(text) <= 10**7:
        raise UsageError(
            f"Invalid OTEL_BLRP_MAX_QUEUE_SIZE {text[:32]!r}.", "", f"Use at least {_PIECE}."
        )
    return int(text)
