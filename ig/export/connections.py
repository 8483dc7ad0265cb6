"""The connections that are open now, counted by container when they are asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from ig.container import Container
from ig.export.metrics import OWNER, owner_labels
from ig.export.series import OTHER, Metric
from ig.gadget import of_each
from ig.sockets.collect import collect
from ig.sockets.owner import Known

_STATES = ("established", "close_wait")
"""The states in which this end can still send."""
_LEAST = 5.0  # seconds that a count is used
_SHARE = 20  # of the time, at most one in so many parts is spent on counting


class OpenConnections:
    """The metric `ig_tcp_open_connections`."""

    def __init__(
        self,
        known: Callable[[], Known],
        wants: Callable[[Container], bool],
        say: Callable[[str], None],
        most: int,
    ) -> None:
        """`known` returns the containers, `say` gets each limitation once; `most` series."""
        self._known, self._wants, self._say, self._most = known, wants, say, most
        self._said: set[str] = set()
        self._due = 0.0
        self._lock = threading.Lock()
        self._metric = Metric(
            "ig_tcp_open_connections",
            "gauge",
            "TCP connections on which this end can still send.",
            (*OWNER, "state"),
        )

    def metric(self) -> Metric:
        """Return the metric, counted anew if the last count is some seconds old.

        Any thread may call it.
        """
        with self._lock:
            began = time.monotonic()
            if began >= self._due:
                self._metric.set(self._count())
                ended = time.monotonic()
                self._due = ended + max(_LEAST, _SHARE * (ended - began))
            return self._metric

    def _count(self) -> dict[tuple[str, ...], int]:
        options = {"proto": "tcp", "state": _STATES}
        batch = collect(options, self._known(), self._wants, self._limit)
        owners = of_each(batch.owners, owner_labels)
        states = [state.lower().replace("_", "-") for state in batch.fields["state"]]
        counts = Counter((*owner, state) for owner, state in zip(owners, states, strict=True))
        shown = dict(counts.most_common(self._most))
        for (*_, state), count in counts.most_common()[self._most :]:
            labels = (OTHER, OTHER, OTHER, state)
            shown[labels] = shown.get(labels, 0) + count
        return shown

    def _limit(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)
