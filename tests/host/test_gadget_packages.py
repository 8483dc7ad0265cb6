"""Gadgets that other packages offer, with C files of their own."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.host.gadget_package import install, refusal, started
from tests.host.namespace import Namespace
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere

MODULE = """
from pathlib import Path
from ig.columns import TIMESTAMP, enum_names, hyphenated, integer, named, owner_columns
from ig.gadget import Column, Gadget

PROGRAM = str(Path(__file__).with_name("destroyed.c"))

GADGET = Gadget(
    name="trace_destroyed",
    command=("trace", "destroyed"),
    summary="Trace the end of TCP sockets.",
    program=PROGRAM,
    columns=(
        TIMESTAMP,
        *owner_columns(),
        integer("netns", "netns_id", description="Inode of the network namespace."),
        integer("port", "port", hidden=False, description="Local port."),
        Column(
            "family",
            "family",
            read=named("family", hyphenated(enum_names(PROGRAM, "family"))),
            description="Address family.",
        ),
    ),
)
"""
HEADER = """
struct event {
	u64 timestamp;
	u64 cgroup;
	u32 netns;
	u16 port, family;	/* family: enum family */
};
"""
PROGRAM = """
#include "ig.h"
#include "destroyed.h"

LOSS(LOST_UNBOUND, "sockets that never had a port")
enum family { OTHER, IPV4, IPV6 };

int raw_tp__tcp_destroy_sock(struct { u64 sk; } *ctx)
{
	struct sock *sk = (void *)ctx->sk;
	struct event event = { .timestamp = bpf_ktime_get_ns() };

	if (!socket_wanted(sk, &event.cgroup))
		return 0;
	event.netns = READ((struct net *)READ(sk, __sk_common.skc_net.net), ns.inum);
	event.port = NTOHS(READ((struct inet_sock *)sk, inet_sport));
	event.family = READ(sk, __sk_common.skc_family) == AF_INET ? IPV4 : IPV6;
	if (!event.port)
		count_lost(LOST_UNBOUND);
	else if (events.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP))
		count_lost(LOST_RING);
	return 0;
}
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder with an installed package that offers a gadget."""
    files = {"__init__.py": MODULE, "destroyed.h": HEADER, "destroyed.c": PROGRAM}
    return install(tmp_path, "destroyed", "[ig.gadgets]\ndestroyed = destroyed:GADGET\n", files)


def test_package_brings_a_gadget_with_its_c_file_header_enum_and_cause_of_losses(
    package: Path, namespace: Namespace
) -> None:
    port = namespace.serve()
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "--max-events", 1)
    with started(package, "trace", "destroyed", *chosen, "-o", "json") as process:
        while process.poll() is None:
            socket.socket().close()
            namespace.connect("127.0.0.1", port)
        said = process.communicate(timeout=PATIENCE)
    lost = json.loads(said[1].splitlines()[-1])
    assert lost["causes"] == {"sockets that never had a port": lost["count"]}
    event = json.loads(said[0])
    assert event["netns_id"] == namespace.inode
    assert event["port"] > 0
    assert event["family"] == "ipv4"
    assert "containerName" in event["runtime"]


@pytest.mark.parametrize(
    ("given", "other", "why"),
    [
        ("u64 cgroup", "u64 other", "every event needs a time and an owner"),
        ("u64 cgroup", "u64 other", "timestamp, other, netns, port"),
        ("u32 netns", "u8 netns", "struct event has a hole before port"),
        ("LOST_UNBOUND", "LOST_RING", "LOSS(LOST_RING) is declared twice"),
    ],
)
def test_program_that_declares_less_or_wrong_is_refused_with_what_it_lacks(
    package: Path, given: str, other: str, why: str
) -> None:
    for name, text in (("destroyed.h", HEADER), ("destroyed.c", PROGRAM)):
        (package / "destroyed" / name).write_text(text.replace(given, other))
    said = refusal(package, "trace", "destroyed", "--host", "-t", 0)
    assert "destroyed.c cannot be used" in said
    assert why in said


def test_c_file_that_others_may_change_is_not_loaded(package: Path) -> None:
    (package / "destroyed" / "destroyed.c").chmod(0o666)
    said = refusal(package, "trace", "destroyed", "--host", "-t", 0)
    assert "other users can modify them" in said


def test_gadget_of_a_package_is_listed(package: Path) -> None:
    with started(package, "list-gadgets") as process:
        said = process.communicate(timeout=PATIENCE)
    assert "trace_destroyed" in said[0]
