"""Gadgets of other packages whose programs are attached to the root of the cgroup hierarchy."""

from __future__ import annotations

import json
import os
import re
import select
from pathlib import Path
from typing import Any

import pytest

from tests.host.attached import loaded
from tests.host.gadget_package import change, install, refusal, started
from tests.host.namespace import Namespace
from tests.host.waiting import PATIENCE, until

OFFERS = "[ig.gadgets]\npackets = packets:GADGET\n"
MODULE = """
from pathlib import Path
from ig.columns import TIMESTAMP, enum_names, hyphenated, integer, named, owner_columns
from ig.gadget import Column, Gadget

PROGRAM = str(Path(__file__).with_name("packets.c"))
GADGET = Gadget(
    name="trace_packets",
    command=("trace", "packets"),
    summary="Trace packets of TCP sockets.",
    program=PROGRAM,
    columns=(
        TIMESTAMP,
        *owner_columns(),
        integer("cgroup", "cgroup", description="The socket's cgroup."),
        integer("netns", "netns_id", description="Inode of the network namespace."),
        integer("length", "length", hidden=False, description="Bytes."),
        Column(
            "way",
            "way",
            read=named("way", hyphenated(enum_names(PROGRAM, "way"))),
            description="Received or sent.",
        ),
    ),
)
"""
PROGRAM = """
#include "ig.h"

KERNEL_STRUCT(sk_buff, sk, len)
OPTIONAL_HOOK(raw_tp__no_such_event, "nothing of what is nowhere")
OPTIONAL_HOOK(cgroup_skb__egress, "packets that are sent")
enum way { NONE, RECEIVED, SENT };

struct event {
	u64 timestamp;
	u64 cgroup;
	u32 netns, length, way, spare;
};

static __always_inline void passed(struct sk_buff *skb, u32 way)
{
	struct event event = { .timestamp = bpf_ktime_get_ns(), .length = READ(skb, len), .way = way };
	struct sock *sk = (void *)READ(skb, sk);

	if (!sk || READ(sk, sk_protocol) != IPPROTO_TCP || !socket_wanted(sk, &event.cgroup))
		return;
	event.netns = READ((struct net *)READ(sk, __sk_common.skc_net.net), ns.inum);
	if (events.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP))
		count_lost(LOST_RING);
}

int cgroup_skb__ingress(struct sk_buff *skb)
{
	passed(skb, RECEIVED);
	return 1;
}

int cgroup_skb__egress(struct sk_buff *skb)
{
	passed(skb, SENT);
	return 1;
}

int raw_tp__no_such_event(void *ctx)
{
	count_lost(LOST_RING);
	return 0;
}
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder with an installed package that offers a gadget."""
    return install(tmp_path, "packets", OFFERS, {"__init__.py": MODULE, "packets.c": PROGRAM})


def links(pid: int) -> set[int]:
    """Return the ids of the BPF links to cgroups that a process holds."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        text = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
        if re.search(r"^link_type:\tcgroup$", text, re.M):
            found |= {int(number) for number in re.findall(r"^link_id:\t(\d+)$", text, re.M)}
    return found


def test_packets_of_all_cgroups_are_seen_and_a_killed_trace_leaves_nothing(
    package: Path, namespace: Namespace
) -> None:
    port = namespace.serve()
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "-o", "json")
    with started(package, "trace", "packets", *chosen) as process:
        assert process.stderr
        assert process.stdout
        assert select.select([process.stderr], [], [], PATIENCE)[0]
        warning = process.stderr.readline()
        assert "partial coverage: nothing of what is nowhere (raw tracepoint" in warning
        events: list[dict[str, Any]] = []
        for _ in range(99):
            if len({event["way"] for event in events}) == 2:
                break
            namespace.connect("127.0.0.1", port)
            while select.select([process.stdout], [], [], 0.1)[0]:
                events.append(json.loads(process.stdout.readline()))
        own = links(process.pid)
        process.kill()
    assert len(own) == 2
    until(lambda: not own & loaded()["link"], "the links to be gone")
    assert {event["netns_id"] for event in events} == {namespace.inode}
    assert min(event["length"] for event in events) >= 40
    assert all(event["cgroup"] for event in events)


@pytest.mark.anywhere
def test_hooks_that_are_refused_are_reported_by_doctor(package: Path) -> None:
    with started(package, "doctor", "-o", "json") as process:
        said = process.communicate(timeout=PATIENCE)
    found = {row["check"]: (row["result"], row["found"]) for row in json.loads(said[0])}
    assert found["gadget trace_packets"][0] == "degraded"
    assert "nothing of what is nowhere" in found["gadget trace_packets"][1]
    assert found["hook cgroup_skb/ingress"] == ("yes", "program attached")
    assert found["tracepoint no_such_event"] == ("no", "no program attached")


@pytest.mark.anywhere
@pytest.mark.parametrize(
    ("given", "other", "why"),
    [
        ("passed(skb, SENT);\n\treturn 1;", "return READ(skb, len) > 99;", "could drop packets"),
        ("passed(skb, SENT);", "*((u32 *)skb + 2) = 1; /* its mark */", "could change packets"),
        ("cgroup_skb__egress", "cgroup_skb__out", "cgroup_skb__out is named after no hook"),
    ],
)
def test_program_that_could_drop_or_change_packets_or_has_no_hook_is_refused(
    package: Path, given: str, other: str, why: str
) -> None:
    change(package, "packets/packets.c", given, other)
    said = refusal(package, "trace", "packets", "--host", "-t", 0)
    assert why in said


@pytest.mark.anywhere
def test_program_of_cgroups_without_the_capability_for_it_is_refused_with_its_name(
    package: Path,
) -> None:
    script = (
        "mount -t tracefs tracefs /sys/kernel/tracing\n"
        'exec setpriv --bounding-set=-net_admin,-sys_admin --inh-caps=-all "$0" "$@"'
    )
    without = ("unshare", "--mount", "sh", "-ec", script)
    said = refusal(package, "trace", "packets", "--host", "-t", 0, before=without)
    assert "programs of cgroups need CAP_NET_ADMIN" in said
