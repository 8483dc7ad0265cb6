"""Ask an engine, or Kubernetes, by HTTP/1.1, every part of an answer within a bound of time.

A question has a connection of its own. Nothing is followed, decompressed or read ahead: what an
answer costs is what is read of it.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from ig.containers import untrusted

if TYPE_CHECKING:
    import ssl

PORT, TLS_PORT = 2375, 2376
"""Docker's ports without and with TLS."""
_LONGEST_HEADER = 1 << 16
_PIECE = 1 << 16
_STATUS = rb"HTTP/1\.[01] (\d{3})\b"
_CHUNKED = rb"(?im)^transfer-encoding:[ \t]*chunked[ \t]*\r?$"
_LENGTH = rb"(?im)^content-length:[ \t]*(\d{1,18})[ \t]*\r?$"
_BLANK_LINE = rb"\r?\n\r?\n"
_CHUNK = rb"([0-9a-fA-F]{1,15})(?:[ \t]*;.*|[ \t]*)\Z"


class Address(NamedTuple):
    """Where an engine is asked: a unix socket's path, or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False

    @property
    def authority(self) -> str:
        """The host and port, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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
def connection(
    address: Address, timeout: float, tls: ssl.SSLContext | None = None, server: str = ""
) -> Iterator[socket.socket]:
    """Connect, waiting `timeout` seconds at most for each step. Raises OSError.

    `tls` is what is used where the address has TLS, by default as Docker's client does; `server` is
    the name that its certificate must have, if not the host's.
    """
    if address.path:
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.settimeout(timeout)
            connected.connect(address.path)
        except BaseException:
            connected.close()
            raise
    else:
        connected = socket.create_connection((address.host, address.port), timeout)
    with connected:
        if not address.tls:
            yield connected
            return
        # The handshake as a whole is bounded by the socket's time-out.
        context = tls or _tls()
        with context.wrap_socket(connected, server_hostname=server or address.host) as secured:
            yield secured


def ask(
    connected: socket.socket,
    path: str,
    query: dict[str, str],
    timeout: float,
    within: float,
    *,
    headers: Mapping[str, str] = MappingProxyType({"Host": "docker"}),
) -> Reply:
    """Ask for `path` and return the answer, its header read, its body not.

    No read waits longer than `timeout` seconds, and none goes on `within` seconds after the
    question. Raises OSError (TimeoutError when it is late).
    """
    deadline = time.monotonic() + within
    words = "?" + urlencode(query) if query else ""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connected.sendall(
        f"GET {quote(path)}{words} HTTP/1.1\r\n{lines}User-Agent: ig\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("ascii")
    )
    return Reply(connected, timeout, deadline)


class Malformed(ConnectionError):
    """An answer that is not HTTP, or is incomplete."""


class Reply:
    """One answer: its status, and its body in pieces.

    Of the header only the length of the body is read: http.client takes more time over the rest
    than a container's change does altogether.
    """

    def __init__(self, connected: socket.socket, timeout: float, deadline: float) -> None:
        """Read the header. Raises OSError."""
        self._connected = connected
        self.timeout = timeout
        """Seconds that the next read waits at most."""
        self._deadline = deadline
        self._waits = -1.0
        self._waiting = True
        self._failure: OSError | None = None
        self._buffer = b""
        header = self._header()
        status = re.match(_STATUS, header)
        if status is None:
            raise Malformed("its answer is not HTTP")
        self.status = int(status[1])
        self._chunked = re.search(_CHUNKED, header) is not None
        length = None if self._chunked else re.search(_LENGTH, header)
        self._left = int(length[1]) if length else 0 if self._chunked else None
        """The bytes to come of the body, or of the present chunk; None for all until the end."""
        self._begun = False

    def read1(self, most: int) -> bytes:
        """Return the next bytes of the body, as many as are there and `most`; b"" at its end.

        Raises OSError.
        """
        if self._failure is not None:
            raise self._failure
        if self._chunked and not self._left:
            self._next_chunk()
        if self._left == 0:
            return b""
        wanted = most if self._left is None else min(most, self._left)
        if not self._buffer:
            self._buffer = self._received()
        piece, self._buffer = self._buffer[:wanted], self._buffer[wanted:]
        if self._left is not None:
            if not piece:
                raise Malformed("its answer is incomplete")
            self._left -= len(piece)
        return piece

    def received(self, most: int) -> bytes:
        """Return as `read1` does, but without waiting: b"" if nothing of the body has come.

        A failure is left to the next `read1`, so that what was read before it is not lost.
        """
        self._waiting = False
        try:
            return self.read1(most)
        except BlockingIOError:
            return b""
        except OSError as error:
            self._failure = error
            return b""
        finally:
            self._waiting = True

    def ready(self) -> bool:
        """Return whether `read1` has something to read, if only the end or a failure."""
        if self._failure is not None or self._buffer.strip():
            return True
        return readable(self._connected)

    def _next_chunk(self) -> None:
        """Read the size of the next chunk, after the line's end behind the one before it."""
        if self._begun and self._line() != b"":
            raise Malformed("its answer is not HTTP")
        self._begun = False  # the next line may not have come yet
        size = re.match(_CHUNK, self._line())
        if size is None:
            raise Malformed("its answer is not HTTP")
        self._begun = True
        self._left = int(size[1], 16)
        self._chunked = self._left > 0  # nothing is read after the last one

    def _header(self) -> bytes:
        while (end := re.search(_BLANK_LINE, self._buffer)) is None:
            self._more()
        header, self._buffer = self._buffer[: end.start() + 1], self._buffer[end.end() :]
        return header

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._more()
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.rstrip(b"\r")

    def _more(self) -> None:
        """Receive more of a line, or of the header."""
        if len(self._buffer) > _LONGEST_HEADER:
            raise Malformed("the header of its answer is too large")
        piece = self._received()
        if not piece:
            raise Malformed("it closed the connection")
        self._buffer += piece

    def _received(self) -> bytes:
        remaining = min(self.timeout, self._deadline - time.monotonic())
        if remaining <= 0:
            raise TimeoutError("timed out")
        if not self._waiting and not readable(self._connected):
            raise BlockingIOError
        if remaining != self._waits:
            self._connected.settimeout(remaining)
            self._waits = remaining
        return self._connected.recv(_PIECE)


def readable(connected: socket.socket) -> bool:
    """Return whether there is something to receive, if only the end."""
    waiting = select.poll()
    waiting.register(connected, select.POLLIN)
    return bool(waiting.poll(0))


def reason(error: BaseException) -> str:
    """Return what is at the bottom of an error, in a few printable words."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return "no such socket"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename is not None:
        words = f"{error.filename}: {words}"
    plain = "".join(each if each.isprintable() else "?" for each in untrusted.text(words, 200))
    return plain or type(error).__name__


def certificates() -> Path | None:
    """Return the folder of the certificates that the environment names, None if it names none."""
    folder = os.environ.get("DOCKER_CERT_PATH")
    if not (folder or os.environ.get("DOCKER_TLS_VERIFY")):
        return None
    return Path(folder or os.path.expanduser("~/.docker"))


def _tls() -> ssl.SSLContext:
    """Return what Docker's own client does with DOCKER_CERT_PATH and DOCKER_TLS_VERIFY."""
    import ssl  # 5 MB, which hardly any host needs

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
