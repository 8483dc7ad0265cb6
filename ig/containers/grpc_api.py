"""Ask a runtime over gRPC on a unix socket, with bounded messages and bounded patience."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ig.errors import RuntimeUnavailable
from ig.privileges import is_missing

PATIENCE = 10.0
"""Seconds that an answer may take."""
BRIEF = 2.0
"""The same, while events wait."""
LARGEST_MESSAGE = 32 << 20
"""Bytes. The list of 1,000 containers with many labels is 4 MB."""

Metadata = Sequence[tuple[str, str]]


class Connection:
    """An open connection to a runtime; messages are classes that protoc generated."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def ask(
        self,
        method: str,
        request: Any,
        answer: Any,
        metadata: Metadata = (),
        timeout: float = PATIENCE,
    ) -> Any:
        """Give the answer, a message of the class `answer`, to one question."""
        call = self._channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=timeout, metadata=metadata)

    def ask_briefly(self, method: str, request: Any, answer: Any, metadata: Metadata) -> Any:
        """Give the answer, or None if it is an error or does not come soon: events wait."""
        import grpc

        try:
            return self.ask(method, request, answer, metadata, BRIEF)
        except grpc.RpcError:
            return None

    def stream(
        self,
        method: str,
        request: Any,
        answer: Any,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Any:
        """Give a stream of messages of the class `answer`: an iterator that can be cancelled."""
        call = self._channel.unary_stream(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=timeout, metadata=metadata)


@contextmanager
def connected(runtime: str, socket: str) -> Iterator[Connection]:
    """Give a connection to the runtime's socket.

    Raises RuntimeUnavailable where there is none, and for what goes wrong with it later.
    """
    if is_missing(socket):
        raise unavailable(runtime, socket, "there is no such socket")
    # gRPC's own talk on stderr would stand between the lines of ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    options = (
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        ("grpc.enable_http_proxy", 0),
        ("grpc.default_authority", "localhost"),
    )
    try:
        with grpc.insecure_channel(f"unix://{socket}", options=options) as channel:
            yield Connection(channel)
    except grpc.RpcError as error:
        code = error.code().name.lower().replace("_", " ") if hasattr(error, "code") else ""
        raise unavailable(runtime, socket, code or "the call failed") from error
    except ValueError as error:
        # What it told cannot be sent back, such as a namespace with a line break.
        raise unavailable(runtime, socket, "its answer makes no sense") from error


def unavailable(runtime: str, socket: str, found: str) -> RuntimeUnavailable:
    """Give the error that a runtime does not answer, and why."""
    return RuntimeUnavailable(
        f"{runtime} does not answer at {socket}",
        found,
        "Check that the runtime runs, and that the socket is the right one.",
    )
