"""What a trace that several tests share tells of the namespace of one."""

from __future__ import annotations

from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer

MARK = 1
"""The port of refused connects that are made before and after those of the test."""


class WatchedNamespace:
    """A namespace whose events a running trace prints, in the order of their times.

    The kernel gives a new namespace the inode of one that is gone, so a connect marks where the
    events of this one begin. Another shows that all events before it were printed.
    """

    def __init__(self, tracer: Tracer, namespace: Namespace) -> None:
        self._tracer = tracer
        self._namespace = namespace
        self._begin = self._marked() + 1

    def events(self) -> list[Report]:
        """Return the events of the namespace since the object was made."""
        end = self._marked()
        return [each for each in self._tracer.events[self._begin : end] if self._is_here(each)]

    def _is_here(self, event: Report) -> bool:
        return bool(event["netns_id"] == self._namespace.inode)

    def _marks(self) -> list[int]:
        return [
            place
            for place, event in enumerate(self._tracer.events)
            if event["dst"]["port"] == MARK and self._is_here(event)
        ]

    def _marked(self) -> int:
        """Return the place of the event of a connect that is made now."""
        count = len(self._marks())
        self._namespace.connect("127.0.0.1", MARK)
        self._tracer.wait_for(
            lambda event: event["dst"]["port"] == MARK and self._is_here(event), count + 1
        )
        return self._marks()[-1]
