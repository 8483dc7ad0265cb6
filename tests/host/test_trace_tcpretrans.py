"""`ig trace tcpretrans`: what TCP sends again, and on whose connection.

Rules drop segments as they arrive: before Linux 6.17 those dropped on their way out are not traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.host.attached import added, loaded
from tests.host.engine import Engine
from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import until
from tests.host.why import deny

pytestmark = pytest.mark.interrupts

Start = Callable[..., Tracer]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = loaded()
    yield
    until(lambda: not any(added(before).values()), "ig's programs to be gone")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_retransmissions_of_a_syn_its_answer_and_data_are_reported_with_their_connection(
    start_ig: Start, namespace: Namespace, address: str
) -> None:
    tracer = start_ig("trace", "tcpretrans", "--host", "-o", "json")
    ports = namespace.start("losses", address).reports.ready()

    def found(kind: str, end: str, what: str, count: int) -> list[Report]:
        return tracer.wait_for(
            lambda event: (
                (event["netns_id"], event["type"], event[end]["port"])
                == (namespace.inode, kind, ports[what])
            ),
            count,
        )

    syns = found("syn", "dst", "unheard", 2)
    assert [event["retransmits"] for event in syns[:2]] == [1, 2]
    assert {event["state"] for event in syns} == {"SYN_SENT"}
    answers = found("syn-ack", "src", "unanswered", 1)
    assert answers[0]["retransmits"] == 1
    assert {event["state"] for event in answers} == {"SYN_RECV"}
    sent = found("data", "dst", "broken", 3)
    assert [event["retransmits"] for event in sent[:3]] == [1, 2, 3]
    assert sent[0]["state"] == "ESTABLISHED"
    for event in (syns[0], answers[0], sent[0]):
        assert {event[end]["addr"] for end in ("src", "dst")} == {address}
        assert event["src"]["version"] == (6 if ":" in address else 4)
    _, said, code = tracer.stop()
    assert (said, code) == ("", 0)


def test_retransmission_is_the_sockets_containers_and_a_port_chooses(
    ig: Start, engine: Engine
) -> None:
    one = engine.idle("one")
    for port in (9, 11):
        deny(one.namespace, "4", "INPUT", port, "DROP")
    tracer = ig("trace", "tcpretrans", "-c", one.name, "--port", 11)
    for port in (9, 11):
        engine.connect(one, "127.0.0.1", port, "--syn-count", 1)
    tracer.wait_for(bool)
    events, said, code = tracer.stop()
    assert (said, code) == ("", 0)
    assert {(event["type"], event["state"]) for event in events} == {("syn", "SYN_SENT")}
    assert {event["dst"]["port"] for event in events} == {11}
    assert {event["runtime"]["containerId"] for event in events} == {one.id}


def test_retransmissions_are_shown_in_a_table_with_their_kind_and_count(
    start_ig: Start, namespace: Namespace
) -> None:
    tracer = start_ig(
        "trace", "tcpretrans", "--host", "-F", f"netns=={namespace.inode}", "--max-events", 1
    )
    deny(namespace, "4", "INPUT", 9, "DROP")
    namespace.connect("127.0.0.1", 9, "--syn-count", 1)
    tracer.finished()
    heading, line = tracer.reports.lines
    assert heading.split() == [
        "RUNTIME.CONTAINERNAME",
        *("SRC", "DST", "STATE", "TYPE", "RETRANSMITS"),
    ]
    assert line.split()[2:] == ["127.0.0.1:9", "SYN_SENT", "syn", "1"]


def test_retransmission_that_waits_for_a_neighbour_is_none(
    start_ig: Start, namespace: Namespace, new_namespace: Callable[[], Namespace]
) -> None:
    # Since July 2025 the kernel calls the tracepoint for these, too.
    _, there = namespace.link(new_namespace())
    nobody = f"{there.rpartition('.')[0]}.77"
    tracer = start_ig("trace", "tcpretrans", "--host", "-o", "json")
    # The SYN is due again after one second. After three it waits anew, which counts as sent.
    (report,) = namespace.connect(nobody, 80, "--nonblocking", "--timeout", 2)
    assert report["gave_up"]
    deny(namespace, "4", "INPUT", 9, "DROP")
    namespace.connect("127.0.0.1", 9, "--syn-count", 1)
    events, said, code = tracer.stop()
    ours = [event for event in events if event["netns_id"] == namespace.inode]
    assert {event["dst"]["port"] for event in ours} == {9}
    assert (said, code) == ("", 0)
