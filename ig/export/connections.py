"""The connections that are open now, counted by container every few seconds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from ig.container import Container
from ig.export.metrics import OWNER, owner_labels
from ig.export.series import OTHER, Metric
from ig.gadget import of_each
from ig.output.stream import Once
from ig.sockets.collect import collect
from ig.sockets.owner import Known

_STATES = ("established", "close_wait")
"""The states in which this end can still send."""
INTERVAL = 5.0
"""Seconds between counts."""
_SHARE = 20  # of the time, at most one in so many parts is spent on counting
_LAST = 1.0  # seconds to end; the thread is a daemon and holds nothing that outlives the process


class OpenConnections(threading.Thread):
    """The metric `ig_tcp_open_connections`, counted in this thread: no reader waits for it.

    A count that fails is reported, and the next one tried.
    """

    def __init__(
        self,
        known: Callable[[], Known],
        wants: Callable[[Container], bool],
        say: Callable[[str], None],
        most: int,
        interval: float = INTERVAL,
    ) -> None:
        """`known` returns the containers, `say` gets each limitation once; `most` series."""
        super().__init__(name="connections", daemon=True)
        self._known, self._wants, self._say, self._most = known, wants, Once(say), most
        self._interval = interval
        self._stopping = threading.Event()
        self._metric = Metric(
            "ig_tcp_open_connections",
            "gauge",
            "TCP connections on which this end can still send.",
            (*OWNER, "state"),
        )

    def metrics(self) -> Sequence[Metric]:
        """Return the metric as last counted, without series if that failed. For any thread."""
        return (self._metric,)

    def run(self) -> None:
        """Count until `stop`."""
        pause = 0.0
        while not self._stopping.wait(pause):
            began = time.monotonic()
            try:
                self._metric.set(self._count())
            except Exception as error:
                self._metric.set({})  # not known now
                self._say(f"warning: open connections cannot be counted: {error!r}")
            finally:
                pause = max(self._interval, _SHARE * (time.monotonic() - began))

    def stop(self) -> None:
        """End it, soon."""
        self._stopping.set()
        self.join(_LAST)

    def _count(self) -> dict[tuple[str, ...], int]:
        options = {"proto": "tcp", "state": _STATES}
        batch = collect(options, self._known(), self._wants, self._say)
        owners = of_each(batch.owners, owner_labels)
        states = [state.lower().replace("_", "-") for state in batch.fields["state"]]
        counts = Counter((*owner, state) for owner, state in zip(owners, states, strict=True))
        shown = dict(counts.most_common(self._most))
        for (*_, state), count in counts.most_common()[self._most :]:
            labels = (*(OTHER for _ in OWNER), state)
            shown[labels] = shown.get(labels, 0) + count
        return shown
