"""What io_uring does, which no system call's tracepoint tells of."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.host.namespace import Namespace
from tests.host.tracer import Tracer

Start = Callable[..., Tracer]

pytestmark = pytest.mark.needs("io_uring")


@pytest.mark.parametrize("outcome", ["established", "refused"])
def test_connect_by_io_uring_is_reported_once(
    start_ig: Start, namespace: Namespace, outcome: str
) -> None:
    port = namespace.serve() if outcome == "established" else 9
    tracer = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    (made,) = namespace.start("uring", "connect", "127.0.0.1", port).finished()
    tracer.wait_for(lambda event: event["proc"]["pid"] == made["pid"])
    events = [event for event in tracer.stop()[0] if event["netns_id"] == namespace.inode]
    assert [(event["outcome"], event["dst"]["port"]) for event in events] == [(outcome, port)]
    assert events[0]["proc"]["pid"] == made["pid"]


def test_connect_by_io_uring_without_a_free_port_fails_and_a_kernel_threads_is_the_processs(
    start_ig: Start, namespace: Namespace
) -> None:
    port = namespace.serve()
    tracer = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    (by_thread,) = namespace.start("uring", "connect", "127.0.0.1", port, "async").finished()
    namespace.run("sh", "-c", "echo 40000 40000 >/proc/sys/net/ipv4/ip_local_port_range")
    options = ("--hold", "--count", 1)
    holds = namespace.start("connect", "127.0.0.1", port, *options)
    holds.reports.ready()
    (failed,) = namespace.start("uring", "connect", "127.0.0.1", port).finished()
    events = [event for event in tracer.stop()[0] if event["netns_id"] == namespace.inode]
    assert (by_thread["error"], failed["error"]) == (0, 99)
    assert [(event["outcome"], event["error"]) for event in events] == [
        ("established", ""),
        ("established", ""),
        ("failed", "EADDRNOTAVAIL"),
    ]
    first = events[0]["proc"]
    assert first["comm"].startswith("iou-wrk")
    assert (first["pid"], first["pcomm"]) == (by_thread["pid"], "python3")


def test_what_io_uring_accepted_is_nobodys_at_its_close(
    start_ig: Start, namespace: Namespace
) -> None:
    tracer = start_ig("trace", "tcp", "--host", "-o", "json")
    server = namespace.start("uring", "accept", 0)
    port = server.reports.ready()["port"]
    namespace.connect("127.0.0.1", port)
    server.finished()
    tracer.wait_for(lambda event: event["src"]["port"] == port)
    events = [event for event in tracer.stop()[0] if event["src"]["port"] == port]
    assert [(event["type"], event["proc"]["pid"]) for event in events] == [("unknown", 0)]
