"""How an OpenTelemetry Collector is reached: by the SDK's OTLP over HTTP or gRPC."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ig.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

METRICS, LOGS = "metrics", "logs"
_HTTP, _GRPC = "http/protobuf", "grpc"
_MODULES = {
    (_HTTP, METRICS): ("http.metric_exporter", "OTLPMetricExporter"),
    (_HTTP, LOGS): ("http._log_exporter", "OTLPLogExporter"),
    (_GRPC, METRICS): ("grpc.metric_exporter", "OTLPMetricExporter"),
    (_GRPC, LOGS): ("grpc._log_exporter", "OTLPLogExporter"),
}
"""The SDK's exporter for each protocol and signal."""


@dataclass(frozen=True, slots=True)
class Collector:
    """A collector: its URL, and the protocol for metrics or logs."""

    url: str
    protocol: str
    signal: str

    def exporter(self) -> Any:
        """Return the SDK's exporter. Raises UsageError for variables that it does not understand.

        That of gRPC starts threads.
        """
        module, name = _MODULES[self.protocol, self.signal]
        found = getattr(
            importlib.import_module(f"opentelemetry.exporter.otlp.proto.{module}"), name
        )
        path = f"/v1/{self.signal}" if self.protocol == _HTTP else ""
        try:
            return found(endpoint=self.url + path)
        except ValueError as error:
            raise UsageError(
                "Invalid OTEL_EXPORTER_OTLP_… in the environment.", str(error)[:200]
            ) from error


def parse_collector(url: str, protocol: str | None, signal: str) -> Collector:
    """Return the collector at `http://HOST:4318`, for METRICS or LOGS.

    Where no protocol is given, that of the standard environment variables is used, else HTTP.
    Raises UsageError, and MissingDependency without the SDK.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(
            f"Invalid URL {url[:64]!r}.",
            "",
            "Use that of a collector, such as http://127.0.0.1:4318.",
        )
    return Collector(url.rstrip("/"), _protocol(protocol, signal), signal)


def _protocol(given: str | None, signal: str) -> str:
    names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = given or next(filter(None, map(os.environ.get, names)), _HTTP)
    if protocol not in (_HTTP, _GRPC):
        raise UsageError(
            f"Unknown OTLP protocol {protocol[:64]!r}.", f"Known protocols: {_HTTP}, {_GRPC}"
        )
    return protocol


def import_sdk(protocol: str) -> None:
    """Import the OpenTelemetry SDK, and silence it. Raises MissingDependency."""
    package = protocol.partition("/")[0]
    try:
        importlib.import_module(f"opentelemetry.exporter.otlp.proto.{package}")
    except ImportError as error:
        raise MissingDependency(
            "The OpenTelemetry SDK is not installed.",
            str(error),
            f"Install it: {sys.prefix}/bin/pip install opentelemetry-exporter-otlp-proto-{package}",
        ) from error
    # Its messages say less than ours, and quote what a server answers.
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def resource() -> Resource:
    """Return what describes this host and ig; OTEL_RESOURCE_ATTRIBUTES and such change it."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    host = socket.gethostname()
    ours = {
        "service.name": "ig",
        "service.version": version("ig"),
        "service.instance.id": host,
        "host.name": host,
        "os.type": "linux",
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def error_type(outcome: str) -> str:
    """Return the attribute `error.type` of an outcome, "" where that is none."""
    if outcome in ("", "established"):
        return ""
    return "_OTHER" if outcome == "failed" else outcome.replace("-", "_")
