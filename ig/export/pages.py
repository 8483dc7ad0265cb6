"""The pages of the exporter: `/metrics` and `/healthz`."""

from __future__ import annotations

import socket
import time
from http import HTTPStatus

from ig.export.metrics import Metrics
from ig.export.prometheus import CONTENT_TYPE
from ig.export.server import Page, Server, text_page

_LATE = 30.0  # seconds between reads of the kernel's counts that are too many


class Pages:
    """Makes the pages; `/metrics` anew only when counts have been read since."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._made = 0.0
        self._page = text_page(HTTPStatus.SERVICE_UNAVAILABLE, "starting")

    def metrics(self) -> Page:
        """Return all metrics; before the start, that there are none yet."""
        updated = self._metrics.updated
        if updated > self._made:
            body = self._metrics.exposition()
            self._made, self._page = updated, Page(HTTPStatus.OK, CONTENT_TYPE, body)
        return self._page

    def health(self) -> Page:
        """Return whether the kernel's counts have been read lately."""
        updated = self._metrics.updated
        if not updated:
            return text_page(HTTPStatus.SERVICE_UNAVAILABLE, "starting")
        age = time.monotonic() - updated
        if age > self._metrics.interval + _LATE:
            return text_page(
                HTTPStatus.SERVICE_UNAVAILABLE, f"the kernel's counts were read {age:.0f} s ago"
            )
        return text_page(HTTPStatus.OK, "ok")


def make_server(listener: socket.socket, metrics: Metrics) -> Server:
    """Return a server of the pages, not started yet."""
    pages = Pages(metrics)
    return Server(listener, {"/metrics": pages.metrics, "/healthz": pages.health})
