"""An OpenTelemetry Collector of the test's own, on loopback, and what it passes on, as JSON."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.features import collector
from tests.host.waiting import PATIENCE, until

CONFIGURATION = """
receivers:
  otlp: {{protocols: {{http: {{endpoint: '{address}'}}, grpc: {{endpoint: '{grpc}'}}}}}}
exporters:
  otlphttp:
    endpoint: '{target}'
    encoding: json
    compression: none
    sending_queue: {{enabled: false}} # so that it acknowledges nothing that dies with it
service:
  telemetry: {{metrics: {{level: none}}, logs: {{level: error}}}}
  pipelines:
    metrics: {{receivers: [otlp], exporters: [otlphttp]}}
    logs: {{receivers: [otlp], exporters: [otlphttp]}}
"""
Attributes = tuple[tuple[str, str], ...]


class Collector:
    """A real collector, started and stopped at will, at one address; and all that came of it."""

    def __init__(self, folder: Path) -> None:
        local = ("127.0.0.1", 0)
        with socket.create_server(local) as http, socket.create_server(local) as grpc:
            self.address, rpc = (f"127.0.0.1:{each.getsockname()[1]}" for each in (http, grpc))
        self.url, self.grpc = f"http://{self.address}", f"http://{rpc}"
        self.requests: list[dict[str, Any]] = []
        """The bodies that it passed on, as OTLP's JSON."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._configuration = folder / "otelcol.yaml"
        target = f"http://127.0.0.1:{self._server.server_address[1]}"
        text = CONFIGURATION.format(address=self.address, grpc=rpc, target=target)
        self._configuration.write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests.append(json.loads(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [str(collector()), f"--config={self._configuration}"]
        self.process = subprocess.Popen(command, start_new_session=True)
        ports = [urlsplit(url).port for url in (self.url, self.grpc)]

        def listens() -> bool:
            assert self.process
            assert self.process.poll() is None, "the collector has ended"
            with socket.socket() as http, socket.socket() as grpc:
                pairs = zip((http, grpc), ports, strict=True)
                return not any(each.connect_ex(("127.0.0.1", port)) for each, port in pairs)

        until(listens, "the collector to listen")

    def stop(self) -> None:
        """Kill it, if it runs."""
        if self.process:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None

    def close(self) -> None:
        """End all of it."""
        self.stop()
        self._server.shutdown()
        self._server.server_close()

    def resources(self) -> list[Mapping[str, str]]:
        """Return the attributes of each resource that came."""
        found = [*self._of("resourceMetrics"), *self._of("resourceLogs")]
        return [dict(_attributes(each["resource"])) for each in found]

    def _of(self, signal: str) -> Iterator[dict[str, Any]]:
        for body in list(self.requests):
            yield from body.get(signal, ())

    def records(self) -> list[tuple[dict[str, Any], dict[str, str]]]:
        """Return the log records, and the attributes of each."""
        scopes = (scope for each in self._of("resourceLogs") for scope in each["scopeLogs"])
        records = (record for scope in scopes for record in scope["logRecords"])
        return [(record, dict(_attributes(record))) for record in records]

    def points(self, name: str) -> dict[Attributes, dict[str, Any]]:
        """Return the last point of each series of a metric."""
        found = {}
        for resource in self._of("resourceMetrics"):
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    kinds = ("sum", "histogram", "exponentialHistogram")
                    data: dict[str, Any] = next(filter(None, map(metric.get, kinds)), {})
                    if metric["name"] == name:
                        assert data["aggregationTemporality"] == 2  # cumulative
                        points = {_attributes(each): each for each in data["dataPoints"]}
                        found.update(points)
        return found


def _attributes(holder: Mapping[str, Any]) -> Attributes:
    pairs = [(each["key"], each["value"]) for each in holder.get("attributes", ())]
    return tuple(sorted((key, str(next(iter(value.values())))) for key, value in pairs))
