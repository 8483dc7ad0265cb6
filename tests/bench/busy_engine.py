"""A socket that answers as a Docker engine with many containers does, one of which keeps changing.

`python busy_engine.py SOCKET CONTAINERS CHANGES`: so many containers, so many changes a second. A
real engine takes a processor for ten containers a second, which would be measured as well.
"""

import itertools
import json
import socketserver
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

KINDS = ("create", "start", "die", "destroy")


def identifier(number: int) -> str:
    return f"{number:064x}"


def listed(number: int) -> Mapping[str, Any]:
    network = {"bridge": {"IPAddress": f"172.17.{number >> 8 & 255}.{number & 255}"}}
    return {
        "Id": identifier(number),
        "Names": [f"/container-{number}"],
        "Image": "image:latest",
        "State": "running",
        "Labels": {"com.docker.compose.service": f"service-{number}"},
        "Ports": [],
        "NetworkSettings": {"Networks": network},
    }


class Answers(BaseHTTPRequestHandler):
    """What is asked of an engine: its list, its events, and each container's details."""

    containers = 0
    changes = 0.0

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/events":
            self._events()
        elif path == "/containers/json":
            self._send([listed(number) for number in range(self.containers)])
        elif path.endswith("/json"):
            self._send({"State": {"Running": True, "Pid": 0}, "NetworkSettings": {}})
        else:
            self._send("OK")

    def _send(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _events(self) -> None:
        self.send_response(200)
        self.end_headers()
        for number in itertools.count(self.containers * len(KINDS)):
            if not self.changes:
                time.sleep(3600)
            time.sleep(1 / self.changes)
            actor = {"ID": identifier(number // len(KINDS)), "Attributes": {"name": "short"}}
            event = {"Type": "container", "Action": KINDS[number % len(KINDS)], "Actor": actor}
            self.wfile.write(json.dumps(event).encode() + b"\n")
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingUnixStreamServer):
    """It ends without waiting for who still listens to events."""

    daemon_threads = True
    block_on_close = False

    def get_request(self) -> tuple[Any, Any]:
        return super().get_request()[0], ("client", 0)

    def handle_error(self, *_: object) -> None:
        """Say nothing of who went away while it was answered."""


def main() -> None:
    path, containers, changes = sys.argv[1:]
    Answers.containers, Answers.changes = int(containers), float(changes)
    Server(path, Answers).serve_forever()


if __name__ == "__main__":
    main()
