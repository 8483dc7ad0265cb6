"""Answers of an engine over HTTP, as they come from a real socket."""

from __future__ import annotations

import socket

import pytest

from ig.container import Container
from ig.containers.runtimes.http_api import Malformed, Reply

BODY = b'{"Id": 1}'
WHOLE = {
    "of a told length": b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length:9\r\n\r\n" + BODY + b"more",
    "in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"4;name=value\r\n" + BODY[:4] + b"\r\n005 \r\n" + BODY[4:] + b"\r\n0\r\n\r\nmore"
    ),
    "until the end": b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    "with bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 9\n\n" + BODY,
    "with a length beside chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"9\r\n" + BODY + b"\r\n0\r\n\r\n"
    ),
    "with a header that looks like another": (
        b"HTTP/1.1 200 OK\r\nX-Content-Length: 3\r\nContent-Length: 9\r\n\r\n" + BODY
    ),
}
BROKEN = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "nothing": b"",
    "half a header": b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n{",
    "a chunk without its end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n"
    ),
}


def read(sent: bytes, at_once: int) -> tuple[int, bytes]:
    """Read an answer that comes in pieces of so many bytes, as a slow network delivers it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for place in range(0, len(sent), at_once):
            theirs.sendall(sent[place : place + at_once])
        theirs.shutdown(socket.SHUT_WR)
        reply = Reply(ours, 5.0, float("inf"))
        return reply.status, b"".join(iter(lambda: reply.read1(4), b""))


@pytest.mark.parametrize("at_once", [1, 2, 7, 4096])
@pytest.mark.parametrize("sent", WHOLE.values(), ids=WHOLE)
def test_answer_is_the_same_in_whatever_pieces_it_comes(sent: bytes, at_once: int) -> None:
    assert read(sent, at_once) == (200, BODY)


@pytest.mark.parametrize("at_once", [1, 4096])
@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_answer_that_is_not_whole_is_an_error(sent: bytes, at_once: int) -> None:
    with pytest.raises(Malformed):
        read(sent, at_once)


def test_container_copy_differs_in_the_fields_that_are_given() -> None:
    web = Container("a" * 64, "web", "docker", labels={"tier": "front"}, addresses=("10.0.0.2",))
    renamed = web.copy(name="db", running=True)
    assert (renamed.name, renamed.running) == ("db", True)
    assert renamed.copy(name="web", running=False) == web
    with pytest.raises(KeyError):
        web.copy(title="db")
