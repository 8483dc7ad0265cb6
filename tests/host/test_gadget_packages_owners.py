"""Gadgets of other packages whose events are of a socket, whatever task is current."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.engine import Engine
from tests.host.gadget_package import change, install, refusal, started
from tests.host.waiting import PATIENCE, until

OFFERS = "[ig.gadgets]\nsegments = segments:GADGET\n"
MODULE = """
from pathlib import Path
from ig.columns import TIMESTAMP, integer, owner_columns, process_columns
from ig.gadget import Gadget, Param

GADGET = Gadget(
    name="trace_segments",
    command=("trace", "segments"),
    summary="Trace received TCP segments.",
    program=str(Path(__file__).with_name("segments.c")),
    columns=(
        TIMESTAMP,
        *owner_columns(),
        *process_columns(),
        integer("port", "port", hidden=False, description="Local port."),
    ),
    params=(
        Param("pid", ("--pid",), "pid", "Only this process.", define="FILTER_PID"),
        Param("uid", ("--uid",), "uid", "Only this user.", define="FILTER_UID"),
    ),
)
"""
PROGRAM = """
#include "ig.h"
#include "socket_owner.h"

KERNEL_STRUCT(sk_buff, sk)

struct event {
	u64 timestamp;
	struct owner owner;
	u32 netns;
	u16 port, spare;
};

int cgroup_skb__ingress(struct sk_buff *skb)
{
	struct event event = { .timestamp = bpf_ktime_get_ns() };
	struct sock *sk = (void *)READ(skb, sk);

	if (!sk || READ(sk, sk_protocol) != IPPROTO_TCP || !socket_owner_wanted(sk, &event.owner))
		return 1;
	event.netns = READ((struct net *)READ(sk, __sk_common.skc_net.net), ns.inum);
	event.port = NTOHS(READ((struct inet_sock *)sk, inet_sport));
	if (events.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP))
		count_lost(LOST_RING);
	return 1;
}
"""
SERVER = """
import os, socket, sys

listener = socket.create_server(("127.0.0.1", 0))
os.setuid(65534)
print(listener.getsockname()[1], flush=True)
sys.stdin.readline()  # a call that waits already when the trace begins may not be seen
accepted, _ = listener.accept()
while data := accepted.recv(100):
    accepted.send(data)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder with an installed package that offers a gadget."""
    return install(tmp_path, "segments", OFFERS, {"__init__.py": MODULE, "segments.c": PROGRAM})


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Return a server of another user that waits for a line, and its port."""
    command = [sys.executable, "-c", SERVER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("chosen", ["all", "--pid", "--uid"])
def test_segments_are_of_who_connected_and_accepted_and_filters_choose_these(
    package: Path, server: tuple[subprocess.Popen[str], int], chosen: str
) -> None:
    serving, port = server
    options = {"all": (), "--pid": ("--pid", os.getpid()), "--uid": ("--uid", 65534)}[chosen]
    ready = package / "ready"
    common = ("trace", "segments", "--host", "-o", "json", "--ready-file", ready)
    owners: set[tuple[int, int, int]] = set()
    with started(package, *common, *options) as process:
        until(lambda: ready.exists() or process.poll() is not None, "the trace to be ready")
        assert process.stdout
        assert serving.stdin
        print(file=serving.stdin, flush=True)
        with socket.create_connection(("127.0.0.1", port)) as client:
            own = client.getsockname()[1]
            ends = {"all": {port, own}, "--pid": {own}, "--uid": {port}}[chosen]
            events: list[dict[str, Any]] = []
            gives_up = time.monotonic() + PATIENCE
            while {each["port"] for each in events if each["proc"]["pid"]} < ends:
                assert time.monotonic() < gives_up, events[-3:]
                client.send(b"x")
                client.recv(100)
                while select.select([process.stdout], [], [], 0.1)[0]:
                    event = json.loads(process.stdout.readline())
                    events += [event] if event["port"] in (port, own) else []
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    assert said == ""
    # what came before accept() returned has only its socket's cgroup and user
    owners = {(e["port"], e["proc"]["pid"], e["proc"]["creds"]["uid"]) for e in events}
    known = {port: (port, serving.pid, 65534), own: (own, os.getpid(), 0)}
    assert {owner for owner in owners if owner[1]} == {known[end] for end in ends}
    assert {owner[0] for owner in owners} == ends
    assert all(e["proc"]["comm"] for e in events if e["proc"]["pid"])


@pytest.mark.anywhere
def test_segments_of_a_chosen_container_are_those_that_its_sockets_receive(
    package: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.socket)
    server, port = engine.serve("server")
    client = engine.idle("client")
    with started(
        package, "trace", "segments", "-c", client.name, "-o", "json", "--max-events", 1
    ) as process:
        until(
            lambda: engine.connect(client, server.address, port) and process.poll() is not None,
            "an event",
        )
        said = process.communicate(timeout=PATIENCE)
    event = json.loads(said[0])
    assert event["runtime"]["containerId"] == client.id
    assert event["port"] != port
    assert event["proc"]["pid"] > 0


@pytest.mark.anywhere
@pytest.mark.parametrize(
    ("given", "other", "options", "why"),
    [
        (
            "socket_owner_wanted(sk, &event.owner)",
            "current_wanted(&event.owner.cgroup)",
            (),
            "cgroup_skb__ingress is not attached: it reads the current task",
        ),
        (
            "socket_owner_wanted(sk, &event.owner)",
            "socket_wanted(sk, &event.owner.cgroup)",
            ("--pid", 1),
            "segments.c cannot be used with FILTER_PID",
        ),
        ("!socket_owner_wanted(sk, &event.owner)", "0", (), "its events have no owner"),
    ],
)
def test_program_with_another_owner_than_its_hook_or_filter_has_is_refused(
    package: Path, given: str, other: str, options: tuple[object, ...], why: str
) -> None:
    change(package, "segments/segments.c", given, other)
    said = refusal(package, "trace", "segments", "--host", "-t", 0, *options)
    assert why in said
