"""`ig trace tcp`: a connection's end is told once, when it is over, with all that it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer

Start = Callable[..., Tracer]


@pytest.fixture(scope="module")
def endings() -> tuple[list[Report], list[Report]]:
    """What `endings.py` says of its connections, and the events of its trace."""
    namespace = Namespace()
    tracer = Tracer("trace", "tcp", "--host", "-o", "json")
    try:
        program = namespace.start("endings")
        told = program.finished()
        events = [e for e in tracer.stop()[0] if e["netns_id"] == namespace.inode]
    finally:
        tracer.kill()
        namespace.remove()
    return told, [{**event, "expected_pid": program.pid} for event in events]


def test_closes_are_told_once_for_each_end_however_it_ended(
    endings: tuple[list[Report], list[Report]],
) -> None:
    told, events = endings
    closes = [event for event in events if event["type"] != "connect" and event["type"] != "accept"]
    for connection in told:
        case, client, server = connection["case"], connection["client"], connection["server"]
        ends = {"client": (client, server), "server": (server, client)}
        for side, other in (("client", "server"), ("server", "client")):
            found = [e for e in closes if (e["src"]["port"], e["dst"]["port"]) == ends[side]]
            assert [(e["type"], e["error"]) for e in found] == [
                ("close", connection["error"][side])
            ], (case, side)
            (close,) = found
            assert close["proc"]["pid"] == close["expected_pid"], (case, side)
            sent, received = connection["sent"][side], connection["sent"][other]
            assert close["sent"] == sent or sent < 0, (case, side)
            if received >= 0 and "unread" not in case:
                assert close["received"] == received, (case, side)
    assert len(closes) == 2 * len(told)


def test_closes_of_half_closed_connections_have_the_time_of_the_whole(
    endings: tuple[list[Report], list[Report]],
) -> None:
    told, events = endings
    said = {connection["case"]: connection for connection in told}
    closes = {e["src"]["port"]: e for e in events if e["type"] == "close"}

    answered = said["answered_after_half_close"]
    times, close = answered["times"], closes[answered["client"]]
    assert times["sent"] < close["timestamp_raw"] < times["reported"]
    assert close["duration_raw"] > close["half_closed_raw"] > times["sent"] - times["half-closed"]

    early = said["closed_after_half_close"]  # and the peer later
    assert closes[early["client"]]["timestamp_raw"] < early["times"]["closed"]
    for case in ("shut_down_by_both", "shut_down_both_ways"):
        assert closes[said[case]["client"]]["timestamp_raw"] < said[case]["times"]["reported"]
    whole = said["reset_while_open"]
    assert not closes[whole["client"]]["half_closed_raw"]
