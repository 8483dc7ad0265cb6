"""The HTTP session in which OTLP is sent: what a server answers is bounded, a redirect an error.

The SDK takes a redirect for success, and reads an answer whatever its length. Its timeout, as that
of `requests`, is for each read: a server that sends a byte now and then would never be given up.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPResponse
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ig.containers.runtimes import http_api

_TIMEOUT = 10.0  # seconds for an answer, where the SDK has no limit of its own
_MOST = 4096  # bytes of a body; the answer to an export has some hundred


class Session(requests.Session):
    """A session that keeps what became of its last request, which ends in time."""

    def __init__(self) -> None:
        super().__init__()
        self._ends = 0.0
        """When the request must have been answered, by time.monotonic()."""
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(lambda: self._ends))
        self.headers["Accept-Encoding"] = "identity"
        self.status = 0
        """The status of the last answer, 0 for none."""
        self.reason = ""
        """Why the last request has failed."""
        self.body = b""
        """The body of the last answer, as far as it was read."""

    def merge_environment_settings(self, *arguments: Any, **options: Any) -> Any:
        """Return the settings of a request: a certificate of OTLP's variables comes first."""
        merged = super().merge_environment_settings(*arguments, **options)
        return {**merged, "verify": self.verify} if self.verify is not True else merged

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request, and return the answer with its body read and left out.

        Raises RequestException, also for what a collector does not answer.
        """
        before = self.reason
        self.status, self.reason, self.body = 0, "", b""
        options |= {"stream": True, "allow_redirects": False}
        timeout = options.get("timeout")
        seconds = timeout if isinstance(timeout, int | float) else _TIMEOUT
        self._ends = time.monotonic() + seconds
        try:
            with super().send(request, **options) as response:
                self.status = response.status_code
                self.body = _body(response)
            self._check(response)
        except (requests.RequestException, OSError) as error:
            self.reason = self.reason or http_api.reason(error)
            raise
        except ValueError:  # the SDK has left no time for one more attempt
            self.reason = before
            raise
        return response

    def _check(self, response: requests.Response) -> None:
        kind = response.headers.get("Content-Type", "")
        if self.status >= 300:
            self.reason = f"HTTP {self.status}"
        elif kind.lower().startswith("text/html"):
            self.reason = "an HTML page was answered"
        if self.reason and self.status < 400:
            raise requests.RequestException(self.reason)


def _body(response: requests.Response) -> bytes:
    """Return the beginning of a body; the connection is used again if that is all of it."""
    body = b""
    try:
        # Byte by byte: a read of more waits for all of it.
        while len(body) < _MOST and (piece := response.raw.read(1, decode_content=False)):
            body += piece
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error
    return body


class _Adapter(HTTPAdapter):
    """Makes connections whose answers end in time."""

    def __init__(self, ends: Callable[[], float]) -> None:
        """Take what returns when the answer must be there, by time.monotonic()."""
        self._pools = {
            scheme: _timed(pool, ends)
            for scheme, pool in (("http", HTTPConnectionPool), ("https", HTTPSConnectionPool))
        }
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _timed(pool: type[HTTPConnectionPool], ends: Callable[[], float]) -> type[HTTPConnectionPool]:
    """Return a kind of pools of which answers are read until then."""
    answer = staticmethod(partial(_Answer, ends))
    connection = type("_Connection", (pool.ConnectionCls,), {"response_class": answer})
    return type("_Pool", (pool,), {"ConnectionCls": connection})


class _Answer(HTTPResponse):
    """An answer of which no read goes on when it should have ended."""

    def __init__(self, ends: Callable[[], float], sock: socket.socket, **options: Any) -> None:
        super().__init__(sock, **options)
        self.fp = io.BufferedReader(_Timed(ends, sock, self.fp.detach()))


class _Timed(io.RawIOBase):
    """Reads from a socket until some time, by time.monotonic()."""

    def __init__(self, ends: Callable[[], float], sock: socket.socket, raw: Any) -> None:
        super().__init__()
        self._ends, self._socket, self._raw = ends, sock, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        before = self._socket.gettimeout()
        left = self._ends() - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        try:
            return self._raw.readinto(buffer)
        finally:
            self._socket.settimeout(before)

    def close(self) -> None:
        self._raw.close()
        super().close()
