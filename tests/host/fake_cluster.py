"""An API server that speaks just enough of Kubernetes' to list and watch pods and Services.

It has TLS with a certificate of its own, tokens, pages, bookmarks and a history that it can forget.
It refuses, hangs or answers nonsense where a test wants it so.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Item = dict[str, Any]
PAGE = 2
"""Objects of a page, unless the list may be old: then the API has no pages."""
_ENDED = ("Succeeded", "Failed")
_SELECTOR = "status.phase!=Succeeded,status.phase!=Failed"


def pod(name: str, *addresses: str, namespace: str = "shop", **more: Any) -> Item:
    """Return a running pod with these addresses; `more` are members of its `spec` or `status`."""
    status = {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"}
    ips = [{"ip": each} for each in addresses]
    spec = {key: more[key] for key in more if key == "hostNetwork"}
    rest = {key: more[key] for key in more if key != "hostNetwork"}
    return {
        "metadata": _metadata(name, namespace),
        "spec": spec,
        "status": {**status, **({"podIP": addresses[0], "podIPs": ips} if ips else {}), **rest},
    }


def service(name: str, address: str, *ports: int, namespace: str = "shop", **more: Any) -> Item:
    """Return a Service with a cluster IP; `more` are members of its `spec`, or `ingress`."""
    balancer = {"ingress": [{"ip": each} for each in more.pop("ingress", ())]}
    spec = {"clusterIP": address, "clusterIPs": [address], **more}
    return {
        "metadata": _metadata(name, namespace),
        "spec": {**spec, "ports": [{"port": port, "protocol": "TCP"} for port in ports]},
        "status": {"loadBalancer": balancer},
    }


def _metadata(name: str, namespace: str) -> Item:
    made = "2026-01-01T00:00:00Z"
    return {"name": name, "namespace": namespace, "uid": f"{name}-uid", "creationTimestamp": made}


class FakeCluster:
    """An API server on the loopback interface, with what was `put` there."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._folder = folder
        self.tokens = {"first"}
        """The tokens that it accepts."""
        self.forbidden: set[str] = set()
        """The kinds that nobody may list."""
        self.hangs = False
        """Whether it answers nothing."""
        self.answer: Callable[[], Iterable[bytes]] | None = None
        """What it answers to everything, instead of the truth."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        """The kinds that were asked for, and how."""
        self._objects: dict[str, dict[str, Item]] = {"pods": {}, "services": {}}
        self._history: list[tuple[int, str, str, Item]] = []
        self._version = self._oldest = 1000
        self._generation = 0
        """Grows when all watches are to end."""
        self._closed = False
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(folder))
        # The handshake is made by the thread that reads first, so that none holds up others.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def kubeconfig(self, token: str = "first", server: str = "") -> Path:
        """Write a kubeconfig; its token is in a file that can be replaced."""
        (self._folder / "token").write_text(f"{token}\n")
        cluster = {"server": server or self.url, "certificate-authority": "server.crt"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "it", "user": "me"}}],
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "me", "user": {"tokenFile": "token"}}],
        }
        path = self._folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def put(self, kind: str, *items: Item) -> None:
        """Create or change objects."""
        for item in items:
            self._set(kind, item, gone=item.get("status", {}).get("phase") in _ENDED)

    def delete(self, kind: str, name: str) -> None:
        with self._changed:
            item = self._objects[kind][name]
        self._set(kind, item, gone=True)

    def _set(self, kind: str, item: Item, gone: bool) -> None:
        with self._changed:
            objects, name = self._objects[kind], item["metadata"]["name"]
            change = "DELETED" if gone else "MODIFIED" if name in objects else "ADDED"
            self._version += 1
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}
            if not gone:
                objects[name] = item
            elif objects.pop(name, None) is None:
                return
            self._history.append((self._version, kind, change, item))
            self._changed.notify_all()

    def bookmark(self, kind: str) -> None:
        """Have watches of a kind report the present version."""
        with self._changed:
            self._version += 1
            version = {"metadata": {"resourceVersion": str(self._version)}}
            self._history.append((self._version, kind, "BOOKMARK", version))
            self._changed.notify_all()

    def forget(self) -> None:
        """Forget all changes so far: watches from before are answered with 410."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
            self._history.clear()

    def end_watches(self) -> None:
        """End all watches, as the API does from time to time."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def close(self) -> None:
        self._closed = True  # also for who connects at this moment
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

            def do_GET(self) -> None:
                cluster.respond(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        return Handler

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        kind = parts.path.rpartition("/")[2]
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self._changed:
            self.requests.append((kind, query))
            generation = self._generation
            while self.hangs and not (self._closed or generation != self._generation):
                self._changed.wait()
        if self.answer is not None:
            for piece in self.answer():
                request.wfile.write(piece)
            request.close_connection = True
        elif request.headers["Authorization"] not in {f"Bearer {each}" for each in self.tokens}:
            _error(request, 401, "Unauthorized")
        elif kind in self.forbidden:
            _error(request, 403, f'{kind} is forbidden: User "me" cannot list resource "{kind}"')
        elif query.get("fieldSelector", "") != (_SELECTOR if kind == "pods" else ""):
            _error(request, 400, "unknown selector")
        elif query.get("watch"):
            self._watch(request, kind, int(query["resourceVersion"]), generation)
        else:
            self._list(request, kind, query)

    def _list(self, request: BaseHTTPRequestHandler, kind: str, query: Mapping[str, str]) -> None:
        with self._changed:
            items, version = list(self._objects[kind].values()), self._version
        start = int(query.get("continue", "0"))
        end = len(items) if query.get("resourceVersion") == "0" else start + PAGE
        metadata = {"resourceVersion": str(version)}
        if end < len(items):
            metadata["continue"] = str(end)
        _answer(request, 200, {"kind": "List", "metadata": metadata, "items": items[start:end]})

    def _watch(
        self, request: BaseHTTPRequestHandler, kind: str, version: int, generation: int
    ) -> None:
        if version < self._oldest:
            _error(request, 410, "too old resource version")
            return
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.flush()
        while True:
            with self._changed:
                while self._version == version and not (
                    self._closed or generation != self._generation
                ):
                    self._changed.wait()
                news = [each for each in self._history if each[0] > version]
                ended = self._closed or generation != self._generation
                version = self._version
            for _, of, change, item in news:
                if of == kind:
                    line = json.dumps({"type": change, "object": item}).encode() + b"\n"
                    request.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            if ended:
                request.wfile.write(b"0\r\n\r\n")
                return


def _error(request: BaseHTTPRequestHandler, code: int, message: str) -> None:
    _answer(request, code, {"kind": "Status", "code": code, "message": message})


def _answer(request: BaseHTTPRequestHandler, code: int, content: object) -> None:
    body = json.dumps(content).encode()
    request.send_response(code)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for the loopback interface, and return it and its key."""
    made, key = folder / "server.crt", folder / "server.key"
    if not made.exists():
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=fake-cluster", "-days", "9"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-out", str(made), "-keyout", str(key)]
        subprocess.run(command, check=True, capture_output=True)
    return made, key
