"""`ig trace tcpconnect`: whose each event is, with a real engine."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.host.attached import added, loaded
from tests.host.engine import Engine, PrivateEngine
from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.together import together
from tests.host.tracer import Tracer
from tests.host.waiting import EMULATED, until

Start = Callable[..., Tracer]
NOBODY = ("127.0.0.1", 9)
TIMES = 11 if EMULATED else 101


def names(events: list[Report]) -> list[str]:
    return [str(event["runtime"]["containerName"]) for event in events]


def test_containers_that_were_there_come_later_or_start_again_are_named(
    ig: Start, engine: Engine
) -> None:
    old = engine.idle("old")
    tracer = ig("trace", "tcpconnect")
    engine.connect(old, *NOBODY, "--count", 3)
    new = engine.idle("new")
    engine.connect(new, *NOBODY, "--children", 2)
    again = engine.restart(old)
    engine.connect(again, *NOBODY)
    tracer.wait_for(bool, 6)
    events, _, code = tracer.stop()
    assert names(events) == [old.name] * 3 + [new.name] * 2 + [old.name]
    assert {event["runtime"]["runtimeName"] for event in events} == {"docker"}
    assert {event["runtime"]["containerId"] for event in events} == {old.id, new.id}
    assert code == 0


def test_container_that_runs_milliseconds_is_named_every_time(ig: Start, engine: Engine) -> None:
    tracer = ig("trace", "tcpconnect")
    shorties = [f"shorty-{number}" for number in range(TIMES)]

    def run(name: str) -> None:
        command = ("nc", "-w", 1, *NOBODY)
        engine.run(name, command, auto_remove=True, tty=False).reports.all()

    together(run, shorties, at_once=4)
    tracer.wait_for(bool, TIMES)
    assert sorted(names(tracer.stop()[0])) == sorted(map(engine.name, shorties))


def test_shared_network_does_not_change_the_owner(ig: Start, engine: Engine) -> None:
    holder = engine.idle("holder")
    guest = engine.idle("guest", network_mode=f"container:{holder.id}")
    hosts = engine.idle("hosts", network_mode="host")
    tracer = ig("trace", "tcpconnect")
    for each in (guest, holder, hosts):
        engine.connect(each, *NOBODY)
    tracer.wait_for(bool, 3)
    events = tracer.stop()[0]
    assert names(events) == [guest.name, holder.name, hosts.name]
    guests, holders, of_host = (event["netns_id"] for event in events)
    assert guests == holders != of_host


def test_rename_is_followed(ig: Start, engine: Engine) -> None:
    box = engine.idle("before")
    tracer = ig("trace", "tcpconnect")
    engine.connect(box, *NOBODY)
    tracer.wait_for(lambda event: event["runtime"]["containerName"] == engine.name("before"))
    after = engine.rename(box, "after")
    engine.connect(box, *NOBODY)
    tracer.wait_for(lambda event: event["runtime"]["containerName"] == after)
    assert len(tracer.stop()[0]) == 2


def test_containers_are_chosen_by_name_also_before_they_exist(ig: Start, engine: Engine) -> None:
    full = {name: engine.name(name) for name in ("one", "two", "three")}
    patterns = {
        "{one}": ["one"],
        "*-one,*-two": ["one", "two"],
        "!{one}": ["two", "three"],
        "/{three}": ["three"],
    }
    everybody = ig("trace", "tcpconnect")
    tracers = together(
        lambda pattern: ig("trace", "tcpconnect", "-c", pattern.format(**full)), patterns
    )
    for name in full:
        engine.connect(engine.idle(name), *NOBODY, "--count", 2)
    everybody.wait_for(bool, 6)
    shown = {pattern: names(tracer.stop()[0]) for pattern, tracer in tracers.items()}
    assert shown == {
        pattern: [full[name] for name in wanted for _ in range(2)]
        for pattern, wanted in patterns.items()
    }


def test_hosts_own_processes_are_shown_if_asked(
    ig: Start, engine: Engine, namespace: Namespace
) -> None:
    box = engine.idle("box")
    tracers = together(
        lambda option: ig("trace", "tcpconnect", *option.split()), ("", "--host", "--host-only")
    )
    namespace.connect(*NOBODY)
    engine.connect(box, *NOBODY)
    tracers["--host"].wait_for(lambda event: event["runtime"]["containerName"] == box.name)
    ours = {namespace.inode, box.namespace.inode}
    shown = {
        option: names([e for e in tracer.stop()[0] if e["netns_id"] in ours])
        for option, tracer in tracers.items()
    }
    assert shown == {"": [box.name], "--host": ["", box.name], "--host-only": [""]}


def test_without_a_container_it_says_how_to_see_the_host(start_ig: Start) -> None:
    absent = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    tracer = start_ig("trace", "tcpconnect", "-r", "docker", environment=absent)
    _, said, code = tracer.stop()
    assert "--host" in said
    assert "Traceback" not in said
    assert code == 0


def test_engine_may_stop_and_come_back(start_ig: Start, private_engine: PrivateEngine) -> None:
    private_engine.start()
    engine = Engine(private_engine.socket)
    try:
        environment = {"DOCKER_HOST": private_engine.socket}
        tracer = start_ig("trace", "tcpconnect", "-o", "json", environment=environment)
        engine.connect(engine.idle("first"), *NOBODY)
        tracer.wait_for(lambda event: event["runtime"]["containerName"] == engine.name("first"))
        private_engine.stop()
        tracer.says("docker")
        private_engine.start()
        engine.connect(engine.idle("second"), *NOBODY)
        tracer.wait_for(lambda event: event["runtime"]["containerName"] == engine.name("second"))
        assert tracer.stop()[2] == 0
    finally:
        engine.close()


@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_stays_attached(start_ig: Start, end: str) -> None:
    before = loaded()
    tracer = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    assert added(before)
    if end == "SIGKILL":
        tracer.kill()
    else:
        assert tracer.stop(getattr(signal, end))[2] == 0
    until(lambda: not added(before), "the kernel to let go of the programs")
