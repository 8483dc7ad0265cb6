"""An engine that speaks just enough of Docker's API, late or never where a test wants it so.

As a program, `fake_engine.py SOCKET RECORDS`, it serves from where it is run, until SIGTERM.
"""

from __future__ import annotations

import json
import signal
import socketserver
import sys
import threading
from collections.abc import Collection, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


class FakeEngine:
    """Lists running containers of these names; no inspection is answered, but those of `records`.

    Each answer comes `delay` seconds late; requests for a path of `mute` get none at all. `asked`
    is set with the first request that waits for that.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str] = (),
        *,
        delay: float = 0.0,
        mute: Collection[str] = ("json",),
        records: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.socket = path
        self.asked = threading.Event()
        self._closing = threading.Event()
        self._delay = delay
        self._mute = mute
        self._list = [
            {"Id": f"{place:064x}", "Names": [f"/{name}"], "Image": "image", "State": "running"}
            for place, name in enumerate(names, 1)
        ] + [{**each, "State": "running"} for each in records]
        self._inspected = {f"/containers/{each['Id']}/json": each for each in records}
        self._server = _Server(str(path), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            client_address = ("", 0)

            def do_GET(self) -> None:
                engine.answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request, or hold it until the engine is closed."""
        path = request.path.partition("?")[0]
        inspected = self._inspected.get(path)
        if "*" in self._mute or (
            not inspected and path.endswith("/json") and path != "/containers/json"
        ):
            self.asked.set()
            self._closing.wait()
            return
        self._closing.wait(self._delay)
        request.send_response(200)
        if path == "/events":
            request.end_headers()
            self._closing.wait()
            return
        answer = self._list if path == "/containers/json" else inspected or {"Version": "1"}
        body = json.dumps(answer).encode()
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


if __name__ == "__main__":
    FakeEngine(Path(sys.argv[1]), records=json.loads(sys.argv[2]))
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    signal.pause()
