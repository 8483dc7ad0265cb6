"""Gadgets of other packages whose rows are counted in the kernel."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.host.engine import Engine
from tests.host.gadget_package import change, install, refusal, started
from tests.host.namespace import Namespace
from tests.host.waiting import PATIENCE, until

OFFERS = "[ig.gadgets]\ntraffic = traffic:GADGET\n"
MODULE = """
from pathlib import Path
from ig.columns import TIMESTAMP, enum_names, hyphenated, integer, named, owner_columns
from ig.gadget import Column, Gadget

PROGRAM = str(Path(__file__).with_name("traffic.c"))
GADGET = Gadget(
    name="trace_traffic",
    command=("trace", "traffic"),
    summary="Count packets by port.",
    program=PROGRAM,
    source="aggregate",
    keep_counts=False,
    columns=(
        TIMESTAMP,
        *owner_columns(),
        integer("cgroup", "cgroup", description="The socket's cgroup."),
        integer("netns", "netns_id", description="Inode of the network namespace."),
        integer("port", "port", hidden=False, description="Local port."),
        Column(
            "way",
            "way",
            hidden=False,
            read=named("way", hyphenated(enum_names(PROGRAM, "way"))),
            description="Received or sent.",
        ),
        integer("packets", "packets", hidden=False, description="Their number."),
        integer("bytes", "bytes", hidden=False, description="Their bytes."),
        integer("largest", "largest", "max_length", description="Bytes of the largest."),
        Column("sizes", "sizes", read=lambda batch: [
            " ".join(map(str, sizes)) for sizes in batch.fields["sizes"]
        ], description="Packets by size: below 64 bytes, below 128, and others."),
        integer("other", "other", description="1 for all keys that there was no room for."),
    ),
)
"""
PROGRAM = """
#include "ig.h"

KERNEL_STRUCT(sk_buff, sk, len)
enum way { RECEIVED = 1, SENT };
#define SIZES 3
#define PROTOCOL 17

struct key {
	u64 cgroup;
	u32 netns;
	u16 port;
	u8 way, spare;	/* way: enum way */
};

struct value {
	u64 packets, bytes, max_length;
	u64 sizes[SIZES];
};

#include "aggregate.h"

static __always_inline void passed(struct sk_buff *skb, u32 way)
{
	struct sock *sk = (void *)READ(skb, sk);
	struct key key = { .way = way };
	struct value *value;
	u64 length = READ(skb, len);

	if (!sk || READ(sk, sk_protocol) != PROTOCOL || !socket_wanted(sk, &key.cgroup))
		return;
	key.netns = READ((struct net *)READ(sk, __sk_common.skc_net.net), ns.inum);
	key.port = NTOHS(READ((struct inet_sock *)sk, inet_sport));
	value = value_of(&key);
	if (!value)
		return;
	__sync_fetch_and_add(&value->packets, 1);
	__sync_fetch_and_add(&value->bytes, length);
	__sync_fetch_and_add(&value->sizes[length < 64 ? 0 : length < 128 ? 1 : 2], 1);
	if (length > value->max_length)
		value->max_length = length;
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
"""
SENDER = """
import socket, sys

ports = range(*map(int, sys.argv[1:3]))
receivers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in ports]
for receiver, port in zip(receivers, ports):
    receiver.bind(("127.0.0.1", port))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("127.0.0.1", 4000))
for receiver in receivers:
    for number in range(int(sys.argv[3])):
        sender.sendto(bytes(number % 101), receiver.getsockname())
        receiver.recv(200)
"""
PACKETS = 101
BYTES = sum(range(101)) + 101 * 28


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder with an installed package that offers a gadget."""
    return install(tmp_path, "traffic", OFFERS, {"__init__.py": MODULE, "traffic.c": PROGRAM})


def trace(package: Path, namespace: Namespace, *arguments: object) -> subprocess.Popen[str]:
    """Return the running command, once it is ready."""
    ready = package / "ready"
    chosen = arguments or ("--host", "-F", f"netns=={namespace.inode}")
    process = started(package, "trace", "traffic", *chosen, "-o", "json", "--ready-file", ready)
    until(lambda: ready.exists() or process.poll() is not None, "the trace to be ready")
    return process


def ended(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """Stop the command and return its rows and what it said."""
    process.send_signal(signal.SIGINT)
    rows, said = process.communicate(timeout=PATIENCE)
    decoder, found, at = json.JSONDecoder(), [], 0
    while rows[at:].strip():
        at += len(rows[at:]) - len(rows[at:].lstrip())
        value, at = decoder.raw_decode(rows, at)
        found += value if isinstance(value, list) else [value]
    return found, said


def send(namespace: Namespace, ports: tuple[int, int] = (4001, 4003), count: int = PACKETS) -> None:
    namespace.run(sys.executable, "-c", SENDER, *ports, count)


@pytest.mark.parametrize("kind", ["hash", "percpu_hash"])
def test_counts_are_exact_and_have_their_owner(
    package: Path, namespace: Namespace, kind: str
) -> None:
    change(
        package,
        "traffic/traffic.c",
        "#define SIZES",
        f'#define AGGREGATE_TYPE "{kind}"\n#define SIZES',
    )
    process = trace(package, namespace)
    send(namespace)
    rows, said = ended(process)
    assert said == ""
    found = {(row["port"], row["way"]): row for row in rows}
    assert len(rows) == len(found)
    assert set(found) == {(4000, "sent"), (4001, "received"), (4002, "received")}
    assert found[4000, "sent"]["packets"] == 2 * PACKETS
    assert found[4000, "sent"]["bytes"] == 2 * BYTES
    for port in (4001, 4002):
        row = found[port, "received"]
        assert (row["packets"], row["bytes"], row["largest"]) == (PACKETS, BYTES, 128)
        assert (row["sizes"], row["other"]) == ("36 64 1", 0)
    assert {row["netns_id"] for row in rows} == {namespace.inode}
    assert all(row["cgroup"] and row["timestamp"] for row in rows)
    assert "containerName" in rows[0]["runtime"]


@pytest.mark.parametrize("keep", [False, True])
def test_counts_of_intervals_add_up_and_kept_ones_grow_while_packets_are_sent(
    package: Path, namespace: Namespace, keep: bool
) -> None:
    change(package, "traffic/__init__.py", "keep_counts=False", f"keep_counts={keep}")
    process = trace(
        package, namespace, "--host", "-F", f"netns=={namespace.inode}", "--interval", 0.1
    )
    send(namespace, (4001, 4002), 1000 * PACKETS)
    rows, said = ended(process)
    assert said == ""
    received = [row for row in rows if row["port"] == 4001]
    packets = [row["packets"] for row in received]
    assert len(packets) > 1
    assert (max(packets) if keep else sum(packets)) == 1000 * PACKETS
    assert packets == sorted(packets) or not keep
    times = [row["timestamp"] for row in received]
    assert times == sorted(set(times))
    # An interval at the beginning or the end may have fewer than one packet of each size.
    assert {row["largest"] for row in received if row["packets"] >= PACKETS} == {128}


def test_keys_without_room_are_counted_as_other_and_that_is_reported(
    package: Path, namespace: Namespace
) -> None:
    change(package, "traffic/traffic.c", "#define SIZES", "#define MOST_KEYS 16\n#define SIZES")
    # filters of columns omit what has no key
    chosen = f"if (key.netns != {namespace.inode}u)\n\t\treturn;\n\tvalue = value_of"
    change(package, "traffic/traffic.c", "value = value_of", chosen)
    process = trace(package, namespace, "--host")
    send(namespace, (4001, 4042))
    rows, said = ended(process)
    kept = [row for row in rows if not row["other"]]
    others = [row for row in rows if row["other"]]
    assert len(kept) <= 16
    assert sum(row["packets"] for row in rows) == 2 * 41 * PACKETS
    assert [(row["port"], row["way"]) for row in others] == [(0, "")]
    assert others[0]["runtime"] == kept[0]["runtime"]
    count = others[0]["packets"]
    *_, last = said.splitlines()  # each interval of reports may say so
    assert last == f"ig: warning: {count} events counted as `other` so far: no room for their keys"


@pytest.mark.anywhere
def test_counts_of_chosen_containers_have_their_names(
    package: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = engine.idle("one"), engine.idle("other")
    change(package, "traffic/traffic.c", "#define PROTOCOL 17", "#define PROTOCOL IPPROTO_TCP")
    monkeypatch.setenv("DOCKER_HOST", engine.socket)
    process = trace(package, one.namespace, "-c", one.name)
    for each in (one, other):
        engine.connect(each, "127.0.0.1", 9)
    rows, said = ended(process)
    assert said == ""
    assert {row["runtime"]["containerId"] for row in rows} == {one.id}
    assert {row["way"] for row in rows} == {"sent", "received"}


@pytest.mark.anywhere
@pytest.mark.parametrize(
    ("given", "other", "why"),
    [
        ("u64 cgroup", "u64 group", "every count needs an owner"),
        ("u64 sizes[SIZES]", "char sizes[8]", "struct value has bytes, which cannot be added up"),
        ("struct value {", "struct amount {", "no struct value in the program"),
        ("#define SIZES", '#define AGGREGATE_TYPE "lru_hash"\n#define SIZES', "evicts elements"),
    ],
)
def test_program_that_counts_what_has_no_owner_or_sum_is_refused(
    package: Path, given: str, other: str, why: str
) -> None:
    change(package, "traffic/traffic.c", given, other)
    said = refusal(package, "trace", "traffic", "--host", "-t", 0)
    assert "traffic.c cannot be used" in said
    assert why in said
