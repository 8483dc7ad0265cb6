"""How an OpenTelemetry Collector is reached: by the SDK's OTLP over HTTP or gRPC."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ig.containers.runtimes import http_api
from ig.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from ig.export.session import Session

METRICS, LOGS = "metrics", "logs"
_HTTP, _GRPC = "http/protobuf", "grpc"
_PACKAGE = "opentelemetry.exporter.otlp.proto"
_REFUSED_HTTP, _REFUSED_GRPC = (400, 413), "INVALID_ARGUMENT"
"""What is answered to a request that must not be repeated."""
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

    def exporter(self) -> Exporter:
        """Return what sends. Raises UsageError for variables that the SDK does not understand.

        That of gRPC starts threads.
        """
        module, name = _MODULES[self.protocol, self.signal]
        make = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)
        try:
            if self.protocol == _GRPC:
                return Exporter(make(endpoint=self.url))
            from ig.export.session import Session  # and requests

            session = Session()
            sdk = make(endpoint=f"{self.url}/v1/{self.signal}", session=session)
            return Exporter(sdk, session, _rejections(self.signal))
        except Exception as error:  # the SDK's own have no class in common
            raise UsageError(
                "Invalid OTEL_EXPORTER_OTLP_… in the environment.",
                http_api.reason(error),
            ) from error


class Exporter:
    """The SDK's exporter, and what became of the last export. For one thread, but `shutdown`."""

    def __init__(
        self,
        sdk: Any,
        session: Session | None = None,
        rejections: Callable[[bytes], int] = lambda _: 0,
    ) -> None:
        """`session` is that of HTTP; `rejections` reads its answer."""
        self._sdk, self._session, self._rejections = sdk, session, rejections
        self.reason = ""
        """Why the last export has failed, in a few printable words; "" if it is not known."""
        self.refused = False
        """Whether that was due to what was sent, so that it would fail again."""
        self.rejected = 0
        """How many records or points of the last export the server has dropped; by HTTP alone."""

    def export(self, data: Any) -> bool:
        """Send, again and again for some seconds; return whether that was acknowledged."""
        last = _ERRORS.last
        last.code = last.details = ""
        done: bool = self._sdk.export(data).name == "SUCCESS"
        session = self._session
        self.rejected = self._rejections(session.body) if session and done else 0
        if session:
            self.reason = session.reason
            self.refused = session.status in _REFUSED_HTTP
        else:
            self.reason = ": ".join(filter(None, (last.code, last.details)))
            self.refused = last.code == _REFUSED_GRPC
        return done

    def shutdown(self) -> None:
        """End the waits of `export` between attempts. For any thread."""
        self._sdk.shutdown()


class _Last(threading.local):
    """The last error in this thread."""

    code = details = ""


class _Errors(logging.Handler):
    """Keeps what the SDK has said of errors of gRPC, and prints nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.last = _Last()

    def emit(self, record: logging.LogRecord) -> None:
        """Take the code, and the text that follows it."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        for each in arguments:
            if type(each).__name__ == "StatusCode":
                self.last.code = str(getattr(each, "name", each))
                details = arguments[-1]  # where the SDK logs them
                known = isinstance(details, str) and details
                self.last.details = http_api.reason(ValueError(details)) if known else ""


_ERRORS = _Errors()


def _rejections(signal: str) -> Callable[[bytes], int]:
    """Return what reads from an answer by HTTP how much was rejected (OTLP's partial success)."""
    package = f"opentelemetry.proto.collector.{signal}.v1.{signal}_service_pb2"
    answer = getattr(importlib.import_module(package), f"Export{signal.title()}ServiceResponse")
    field = "rejected_log_records" if signal == LOGS else "rejected_data_points"

    def read(body: bytes) -> int:
        try:
            return max(0, int(getattr(answer.FromString(body).partial_success, field)))
        except Exception:  # of protobuf: an answer in another form, as far as it was read
            return 0

    return read


def parse_collector(url: str, protocol: str | None, signal: str) -> Collector:
    """Return the collector at `http://HOST:4318`, for METRICS or LOGS.

    Where no protocol is given, that of the standard environment variables is used, else HTTP.
    Raises UsageError, and MissingDependency without the SDK.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        # A password would be printed, and what follows the path would be behind ours.
        valid = valid and not ("@" in parts.netloc or parts.query or parts.fragment)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(
            "Invalid URL of a collector." if "@" in url else f"Invalid URL {url[:64]!r}.",
            "It has a user or a password." if "@" in url else "",
            "Use one such as http://127.0.0.1:4318; OTEL_EXPORTER_OTLP_HEADERS may have secrets.",
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
        importlib.import_module(f"{_PACKAGE}.{package}")
    except ImportError as error:
        raise MissingDependency(
            "The OpenTelemetry SDK is not installed.",
            str(error),
            f"Install it: {sys.prefix}/bin/pip install opentelemetry-exporter-otlp-proto-{package}",
        ) from error
    # Its messages say less than ours, and quote what a server answers.
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(_ERRORS)
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
