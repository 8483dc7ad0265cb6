"""What is sent by OTLP counts as delivered only where a collector has taken it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from ig.container import HOST, Container
from ig.errors import UsageError
from ig.export.collector import LOGS, Exporter, import_sdk, parse_collector
from ig.export.events import NOT_SENT, Events
from ig.gadgets import declared
from tests.host.serving import end_serving
from tests.host.waiting import PATIENCE, until
from tests.unit.test_export_attributes import attempt

GADGET = declared()["trace_tcpconnect"]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def answering(*answers: bytes, again: bytes = b"", pause: float = 0.0) -> Iterator[str]:
    """Yield the URL of what gives an answer to each connection, the last one to all further ones.

    After it `again` is sent, each `pause` seconds, until the other end takes no more.
    """
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            left = list(answers)
            with suppress(OSError):  # the listener is closed
                while True:
                    connected, _ = listener.accept()
                    answer = left.pop(0) if len(left) > 1 else left[0]
                    threading.Thread(target=respond, args=(connected, answer), daemon=True).start()

        def respond(connected: socket.socket, answer: bytes) -> None:
            with connected, suppress(OSError, IndexError):  # it may ask nothing
                connected.settimeout(PATIENCE)
                head, _, body = connected.recv(65536).partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                while len(body) < length:
                    body += connected.recv(65536)
                connected.sendall(answer)
                while again and not ended.wait(pause):
                    connected.sendall(again)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            end_serving(listener, thread)


def exporter(url: str) -> Exporter:
    import_sdk("http/protobuf")
    return parse_collector(url, None, LOGS).exporter()


@pytest.mark.parametrize(
    ("answer", "reason", "refused"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
            "302",
            0,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", "HTML", 0),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "HTTP 401", 0),
        (b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n", "HTTP 400", 1),
        (b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n", "HTTP 413", 1),
    ],
)
def test_export_that_no_collector_has_taken_has_failed_for_a_reason(
    answer: bytes, reason: str, refused: bool
) -> None:
    with answering(answer) as url:
        sending = exporter(url)
        assert not sending.export([])
        assert reason in sending.reason
        assert sending.refused == refused
        sending.shutdown()


def test_export_that_is_not_answered_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    for protocol, reason in (("http/protobuf", "Connection refused"), ("grpc", "UNAVAILABLE")):
        import_sdk(protocol)
        sending = parse_collector(f"http://{address}", protocol, LOGS).exporter()
        assert not sending.export([])
        assert sending.reason.startswith(reason)
        assert "StatusCode" not in sending.reason
        assert not sending.refused
        sending.shutdown()


def test_export_reads_no_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n", again=bytes(65536)) as url:
        sending = exporter(url)
        assert sending.export([])
        session = sending._session
        assert session
        assert len(session.body) == 4096
        sending.shutdown()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    header = b"HTTP/1.1 200 OK\r\nContent-"
    for slow in (header + b"Length: 4000\r\n\r\n", header, b""):
        with answering(slow, again=b"x", pause=0.1) as url:  # for 400 s at least
            sending = exporter(url)
            assert not sending.export([])
            assert sending.reason == "timed out"
            sending.shutdown()


def test_export_reads_how_many_records_were_rejected() -> None:
    import_sdk("http/protobuf")
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = 3
    body = answer.SerializeToString()
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)) as url:
        sending = exporter(url)
        assert sending.export([])
        assert sending.rejected == 3
        sending.shutdown()


def test_events_that_are_refused_are_lost_and_later_ones_are_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = b"HTTP/1.1 400 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    lost: list[int] = []
    with answering(refused, OK) as url:
        sink = Events(
            parse_collector(url, None, LOGS),
            GADGET,
            on_lost=lambda counts: lost.append(counts[NOT_SENT]),
        )
        sink.open()
        assert lost == [0]
        sink.write(attempt(HOST))
        until(lambda: sink._lost, "the refusal")
        sink.write(attempt(HOST))
        sink.finish()
    assert lost[-1] == 1
    said = capsys.readouterr().err
    assert "(HTTP 400); they are lost" in said
    assert "are sent" in said


def test_events_whose_thread_has_ended_end_the_trace() -> None:
    def destination(whose: Container, address: str) -> str:
        raise KeyError(whose, address)

    with answering(OK) as url:
        sink = Events(parse_collector(url, None, LOGS), GADGET, destination=destination)
        sink.open()
        sink.write(attempt(HOST))
        until(lambda: not sink._thread.is_alive(), "the end of the thread")
        with pytest.raises(KeyError):
            sink.write(attempt(HOST))
        with pytest.raises(KeyError):
            sink.tick(0)
        with pytest.raises(KeyError):
            sink.finish()


@pytest.mark.parametrize(
    "url", ["http://me:1234@x:4318", "http://me@x", "http://x/?a=b", "http://x/#a"]
)
def test_url_with_a_password_or_a_query_is_refused_and_no_password_is_shown(url: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_collector(url, None, LOGS)
    assert "1234" not in str(error.value)
