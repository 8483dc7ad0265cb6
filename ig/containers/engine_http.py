"""Ask an engine by HTTP/1.1, every part of an answer within a bound of time.

A question has a connection of its own. Nothing is followed, decompressed or read ahead: what an
answer costs is what is read of it.
"""

from __future__ import annotations

import io
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

PORT, TLS_PORT = 2375, 2376
"""Docker's ports without and with TLS."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine is asked: a unix socket's path, or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False


def parse(address: str) -> Address:
    """Return the parts of `unix://PATH`, `tcp://HOST:PORT`, `http[s]://…`, a path or `HOST:PORT`.

    Raises ValueError, with a reason for the user, for what cannot be asked.
    """
    if "://" not in address and not address.startswith("/"):
        address = f"tcp://{address}"
    scheme, _, rest = address.partition("://")
    if address.startswith("/") or scheme == "unix":
        path = address if address.startswith("/") else f"/{rest.lstrip('/')}"
        if "\0" in path or path == "/":
            raise ValueError("expected the path of a socket")
        return Address(path)
    if scheme == "ssh":
        raise ValueError("ssh:// is not supported: expected an engine on this host")
    if scheme not in ("tcp", "http", "https"):
        raise ValueError(f"unknown scheme {scheme}://: expected unix://PATH or tcp://HOST:PORT")
    parts = urlsplit(address)
    tls = scheme == "https" or (scheme == "tcp" and certificates() is not None)
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError("expected tcp://HOST:PORT")
    parts.hostname.encode("idna")  # what it cannot encode cannot be looked up
    return Address("", parts.hostname, parts.port or (TLS_PORT if tls else PORT), tls)


@contextmanager
def connection(address: Address, patience: float) -> Iterator[socket.socket]:
    """Connect, waiting `patience` seconds at most for each step. Raises OSError."""
    if address.path:
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.settimeout(patience)
            connected.connect(address.path)
        except BaseException:
            connected.close()
            raise
    else:
        connected = socket.create_connection((address.host, address.port), patience)
    with connected:
        if not address.tls:
            yield connected
            return
        # The handshake as a whole is bounded by the socket's time-out.
        with _tls().wrap_socket(connected, server_hostname=address.host) as secured:
            yield secured


@contextmanager
def answer(
    connected: socket.socket, path: str, query: dict[str, str], patience: float, within: float
) -> Iterator[HTTPResponse]:
    """Ask for `path` and yield the answer, its header read, its body not.

    No read waits longer than `patience` seconds, and none goes on `within` seconds after the
    question. Raises OSError (TimeoutError when it is late) and http.client.HTTPException.
    """
    deadline = time.monotonic() + within
    words = "?" + urlencode(query) if query else ""
    connected.sendall(
        f"GET {quote(path)}{words} HTTP/1.1\r\nHost: docker\r\nUser-Agent: ig\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("ascii")
    )
    source = _Source(connected, patience, deadline)
    with HTTPResponse(cast(socket.socket, source), method="GET") as response:
        response.begin()
        yield response


class _Source(io.RawIOBase):
    """What comes from a socket, until a deadline; HTTPResponse takes it for the socket."""

    def __init__(self, connected: socket.socket, patience: float, deadline: float) -> None:
        self._connected = connected
        self._patience = patience
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        remaining = min(self._patience, self._deadline - time.monotonic())
        if remaining <= 0:
            raise TimeoutError("timed out")
        self._connected.settimeout(remaining)
        return self._connected.recv_into(buffer)


def certificates() -> Path | None:
    """Return the folder of the certificates that the environment names, None if it names none."""
    folder = os.environ.get("DOCKER_CERT_PATH")
    if not (folder or os.environ.get("DOCKER_TLS_VERIFY")):
        return None
    return Path(folder or os.path.expanduser("~/.docker"))


def _tls() -> ssl.SSLContext:
    """Return what Docker's own client does with DOCKER_CERT_PATH and DOCKER_TLS_VERIFY."""
    folder = certificates()
    if folder is None:
        return ssl.create_default_context()
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    # A key that wants a password must not ask for it on the terminal.
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem", password="")
    if not os.environ.get("DOCKER_TLS_VERIFY"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
