"""Ask a runtime over gRPC on a unix socket, with bounds on messages and on time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ig.errors import RuntimeUnavailable
from ig.kernel.capabilities import is_missing

REQUEST_TIMEOUT = 10.0
"""Seconds that an answer may take."""
EVENT_RPC_TIMEOUT = 2.0
"""The same, while events wait."""
LARGEST_MESSAGE = 16 << 20
"""Bytes, as the kubelet takes them. The list of 1,000 containers with many labels is 4 MB."""
LARGEST_RECORD = 1 << 20
"""Bytes of what is decoded at once: decoded, it may take thirty times the room."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of https://protobuf.dev/programming-guides/encoding."""

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
        timeout: float = REQUEST_TIMEOUT,
    ) -> Any:
        """Return the answer, a message of the class `answer`, to one question."""
        call = self._channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=_decoder(answer),
        )
        return call(request, timeout=timeout, metadata=metadata)

    def ask_items(
        self, method: str, request: Any, item: Any, metadata: Metadata = ()
    ) -> Iterator[Any]:
        """Yield the items of an answer that is a list: messages of the class `item`, in field 1.

        They are decoded one by one, since a list may have millions; those of more than
        `LARGEST_RECORD` are left out. Raises ValueError for what is no such list.
        """
        call = self._channel.unary_unary(method, request_serializer=type(request).SerializeToString)
        for content in _items(call(request, timeout=REQUEST_TIMEOUT, metadata=metadata)):
            if len(content) <= LARGEST_RECORD:
                yield item.FromString(content)

    def ask_briefly(self, method: str, request: Any, answer: Any, metadata: Metadata) -> Any:
        """Return the answer, or None if it is an error or does not come soon: events wait."""
        import grpc

        try:
            return self.ask(method, request, answer, metadata, EVENT_RPC_TIMEOUT)
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
        """Return a stream of messages of the class `answer`: an iterator that can be cancelled.

        An empty one stands for a message of more than `LARGEST_RECORD`.
        """
        call = self._channel.unary_stream(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=lambda content: answer.FromString(
                content if len(content) <= LARGEST_RECORD else b""
            ),
        )
        return call(request, timeout=timeout, metadata=metadata)


def _decoder(answer: Any) -> Callable[[bytes], Any]:
    def decoded(content: bytes) -> Any:
        if len(content) > LARGEST_RECORD:
            raise ValueError("answer too large")
        return answer.FromString(content)

    return decoded


def _items(content: bytes) -> Iterator[bytes]:
    """Yield what field 1 of an encoded message has, each time that it comes."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        kind, size = tag & 7, 0
        if kind == _VARINT:
            _, place = _varint(content, place)
        elif kind == _BYTES:
            size, place = _varint(content, place)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("no message")
        if place + size > len(content):
            raise ValueError("no message")
        if tag == (1 << 3 | _BYTES):
            yield content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return the number that is encoded at a place, and the place behind it."""
    number = shift = 0
    while place < len(content) and shift < 64:
        byte = content[place]
        place, number, shift = place + 1, number | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return number, place
    raise ValueError("no message")


@contextmanager
def connected(runtime: str, socket: str) -> Iterator[Connection]:
    """Return a connection to the runtime's socket.

    Raises RuntimeUnavailable where there is none, and for what goes wrong with it later.
    """
    if is_missing(socket):
        raise unavailable(runtime, socket, "no such socket")
    # gRPC's own talk on stderr would stand between the lines of ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc
    from google.protobuf.message import DecodeError

    options = (
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        ("grpc.enable_http_proxy", 0),
        # Keep windows small: else gRPC buffers what a fast runtime sends ahead of its reader.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.default_authority", "localhost"),
    )
    try:
        with grpc.insecure_channel(f"unix://{socket}", options=options) as channel:
            yield Connection(channel)
    except grpc.RpcError as error:
        code = error.code().name.lower().replace("_", " ") if hasattr(error, "code") else ""
        raise unavailable(runtime, socket, code or "the call failed") from error
    except (ValueError, DecodeError) as error:
        # It is no message, or what it reported cannot be sent back, such as a line break.
        raise unavailable(runtime, socket, "its answer is invalid") from error


def unavailable(runtime: str, socket: str, found: str) -> RuntimeUnavailable:
    """Return the error that a runtime does not answer, and why."""
    return RuntimeUnavailable(
        f"{runtime} does not answer at {socket}",
        found,
        "Check that the runtime is running and that the socket is correct.",
    )
