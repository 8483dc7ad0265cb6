"""`--otlp` of events: each is also sent to an OpenTelemetry Collector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ig.errors import UsageError
from ig.gadget import Gadget

if TYPE_CHECKING:
    from ig.export.events import Events


def make_senders(gadget: Gadget, options: Mapping[str, Any], **rest: Any) -> Sequence[Events]:
    """Return the sink that sends a gadget's events, if the options ask for one.

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
