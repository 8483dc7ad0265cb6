"""Connects that end in odd ways, and sockets that several cgroups share: each told as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.cgroups import new_cgroup, unified
from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer

pytestmark = [pytest.mark.anywhere, pytest.mark.interrupts]
Start = Callable[..., Tracer]
UNANSWERED, RESET = 81, 82
OUTCOMES = {
    "user_timeout": ["timed-out"],
    "destroyed": ["failed"],
    "shut_down_by_a_thread": ["abandoned"],
    "disconnected": ["abandoned"],
    "closed_by_exec": ["abandoned"],
    "reset_by_a_firewall": ["refused"],
    "to_port_0": ["refused"],
    "broadcast": ["failed"],
    "multicast": ["failed"],
    "malformed": ["failed"] * 7,
    "answered_before_data": ["established"] * 2,
}


def test_attempts_that_end_in_odd_ways_are_reported_once_with_what_the_caller_saw(
    start_ig: Start, namespace: Namespace
) -> None:
    namespace.drop(UNANSWERED)
    reset = ("-p", "tcp", "--dport", RESET, "-j", "REJECT", "--reject-with", "tcp-reset")
    namespace.run("iptables", "-I", "INPUT", *reset)
    only = ("--host", "-L", "-o", "json", "-F", f"netns=={namespace.inode}")
    tracer = start_ig("trace", "tcp", *only)
    cases = namespace.start("attempts", UNANSWERED, RESET).finished()
    events, said, code = tracer.stop()
    assert (said, code) == ("", 0)
    attempts = [event for event in events if event["type"] == "connect"]
    for case in cases:
        its = [event for event in attempts if event["proc"]["comm"] == case["comm"]]
        assert [event["outcome"] for event in its] == OUTCOMES[case["case"]], case
        assert {event["dst"]["port"] for event in its} <= {case["port"], 0}
        for event, error in zip(its, case["errors"], strict=False):
            assert event["error"] == (error if event["outcome"] != "abandoned" else ""), case
    types = Counter(event["type"] for event in events)
    assert (types["accept"], types["close"]) == (2, 4)


MOVE = """
import os, select, signal, socket, sys
def move(folder):
    with open(folder + "/cgroup.procs", "w") as file:
        file.write("0")
"""
SHARED = """
port, *folders = sys.argv[1:]
address = ("127.0.0.1", int(port))
children = []
for folder in folders:
    ready, tell = os.pipe()
    children.append(os.fork())
    if not children[-1]:
        move(folder)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen()
        os.write(tell, b"x")
        while True:
            listener.accept()[0].close()
    os.read(ready, 1)
for _ in range(101):
    with socket.create_connection(address) as client:
        assert client.recv(1) == b""
for child in children:
    os.kill(child, signal.SIGKILL)
print(*children)
"""
MOVED = """
before, after = sys.argv[1:]
move(before)
with socket.socket() as client:
    client.setblocking(False)
    client.connect_ex(("198.51.100.2", 80))
    move(after)
    select.select([], [client], [])
    assert not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
"""
NO_RUNTIME = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


@pytest.fixture
def containers() -> Iterator[list[Path]]:
    """Two cgroups that are called as those of containers are."""
    with new_cgroup(unified()) as root:
        folders = [root / (digit * 64) for digit in "ab"]
        for folder in folders:
            folder.mkdir()
        yield folders


def traced(
    start_ig: Start, namespace: Namespace, script: str, *words: object
) -> tuple[str, list[Report]]:
    """Return what the script printed, and the events of both containers."""
    only = ("-r", "docker", "-o", "json", "-F", f"netns=={namespace.inode}")
    tracer = start_ig("trace", "tcp", *only, environment=NO_RUNTIME)
    printed = namespace.run("/usr/bin/python3", "-c", MOVE + script, *words)
    return printed, tracer.stop()[0]


def test_port_that_two_containers_share_is_whose_socket_took_the_connection(
    start_ig: Start, namespace: Namespace, containers: list[Path]
) -> None:
    printed, events = traced(start_ig, namespace, SHARED, 8080, *containers)
    names = [folder.name for folder in containers]
    wanted = set(zip(map(int, printed.split()), names, strict=True))
    owners = {(event["proc"]["pid"], event["runtime"]["containerId"]) for event in events}
    assert owners == wanted
    assert Counter(event["type"] for event in events) == {"accept": 101, "close": 101}


def test_attempt_belongs_to_the_container_that_it_began_in(
    start_ig: Start, namespace: Namespace, containers: list[Path]
) -> None:
    namespace.peer("--delay", 100)
    _, events = traced(start_ig, namespace, MOVED, *containers)
    ends = [(event["type"], event["outcome"]) for event in events]
    assert ends[0] == ("connect", "established")
    assert {event["runtime"]["containerId"] for event in events} == {containers[0].name}
    assert [kind for kind, _ in ends] == ["connect", "close"]
