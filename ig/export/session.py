"""The HTTP session in which OTLP is sent: what a server answers is bounded, a redirect an error.

The SDK takes a redirect for success, and reads an answer whatever its length.
"""

from __future__ import annotations

import time
from typing import Any

import requests
import urllib3

from ig.containers.runtimes import http_api

_TIMEOUT = 10.0  # seconds for an answer's body, where the SDK has no limit of its own
_MOST = 4096  # bytes of a body; the answer to an export has some hundred


class Session(requests.Session):
    """A session that keeps what became of its last request."""

    def __init__(self) -> None:
        super().__init__()
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
        try:
            with super().send(request, **options) as response:
                self.status = response.status_code
                self.body = _body(response, options.get("timeout"))
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


def _body(response: requests.Response, timeout: object) -> bytes:
    """Return the beginning of a body; the connection is used again if that is all of it."""
    seconds = timeout if isinstance(timeout, int | float) else _TIMEOUT
    ends = time.monotonic() + seconds
    body = b""
    try:
        # Byte by byte: a read of more waits for all of it.
        while len(body) < _MOST and (piece := response.raw.read(1, decode_content=False)):
            body += piece
            if time.monotonic() > ends:
                raise requests.Timeout("timed out")
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error
    return body
