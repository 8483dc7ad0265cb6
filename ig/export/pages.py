"""The pages of the exporter: `/metrics` and `/healthz`."""

from __future__ import annotations

import socket
import time
from http import HTTPStatus
from ipaddress import ip_address

from ig.export.metrics import Metrics
from ig.export.prometheus import CONTENT_TYPE
from ig.export.server import Address, Page, Server, text_page
from ig.output.stream import say

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


def report(listener: socket.socket) -> None:
    """Say where metrics are served; warn if other hosts can reach that."""
    host, port, *_ = listener.getsockname()
    bound = Address(ip_address(host), port)
    say(f"serving http://{bound}/metrics")
    if not bound.ip.is_loopback:
        say(f"warning: {bound} can be reached from other hosts, without encryption or password")
