"""Events for which the kernel skipped the programs, since it had interrupted them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ig.bpf.btf import FUNCTION, Btf
from ig.bpf.syscalls import allows_perf_events
from tests.host.namespace import Namespace
from tests.host.waiting import PATIENCE

SCRIPT = """
import json, os, select, socket, sys, time
from ig.bpf.loader import Loading
from ig.bpf.session import Source

served, unserved, *defines = sys.argv[1:]
listener = socket.create_server(("127.0.0.1", int(served)), backlog=512)
probes = Loading("tcp.c", dict.fromkeys(defines, 1)).result()
source = Source(probes)
def attempt(port):
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", int(port)))
    return client
established, refused, asked, waiting = map(attempt, (served, unserved, unserved, 9))
while probes.hooks:
    os.close(probes.hooks.pop())
probes.backups_attached = False
print("hidden", flush=True)
sys.stdin.readline()
for client in (established, refused, asked):
    while not select.select([], [client], [], 1)[1]:
        pass
asked.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
places = [source.fields.index(name) for name in ("type", "outcome", "sport", "dport", "latency")]
def seen():
    found = [[record[place] for place in places] for record in source.records()]
    return [event for event in found if event[3] in (int(served), int(unserved))]
source.attach_backups()
told = seen()
many = [socket.create_connection(listener.getsockname()) for _ in range(300)]
found = [told, established.getsockname()[1], seen(), source.lost(), probes.backups_attached]
print(json.dumps(found))
source.close()
"""
CONNECT, ESTABLISHED, REFUSED = 1, 1, 2


@pytest.mark.parametrize(
    "defines", [("TRACE_CONNECT",), ("TRACE_CONNECT", "TRACE_CLOSE")], ids=["connects", "closes"]
)
def test_what_was_hidden_is_looked_for_once_and_nothing_is_reported_twice(
    namespace: Namespace, defines: tuple[str, ...]
) -> None:
    served, unserved, waiting = 4101, 4102, 9
    for port in (served, unserved, waiting):
        namespace.drop(port)
    command = namespace.command(sys.executable, "-c", SCRIPT, served, unserved, *defines)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "hidden\n"
        for port in (served, unserved):
            rule = ("OUTPUT", "-p", "tcp", "--dport", port, "-j", "DROP")
            namespace.run("iptables", "-D", *rule)
        said, _ = process.communicate("go\n", timeout=PATIENCE)
    told, own_port, later, lost, attached = json.loads(said)
    assert attached
    # When the answers came is not known; what asked.getsockopt() took away neither.
    assert sorted(event[1] for event in told) == [ESTABLISHED, REFUSED]
    assert {event[4] for event in told} == {0}
    assert [CONNECT, ESTABLISHED, own_port, served, 0] in told
    assert lost == {"connect results missed (BPF program skipped)": 1}
    assert len(later) == 300
    assert {tuple(event[:2]) for event in later} == {(CONNECT, ESTABLISHED)}
    assert len({event[2] for event in later}) == 300


ENDS = """
import json, os, socket, struct
from ig.bpf.loader import Loading
from ig.bpf.session import Source

listener = socket.create_server(("127.0.0.1", 0))
probes = Loading("tcp.c", dict.fromkeys(("TRACE_CONNECT", "TRACE_CLOSE"), 1)).result()
source = Source(probes)
clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
while probes.hooks:
    os.close(probes.hooks.pop())
probes.backups_attached = False
for client in clients[1:]:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
while len(open("/proc/net/tcp").readlines()) > 4:  # a heading, the listener, and two ends
    pass
source.attach_backups()
listener.close()
kind, netns = source.fields.index("type"), source.fields.index("netns")
own = os.stat("/proc/self/ns/net").st_ino
types = [record[kind] for record in source.records() if record[netns] == own]
print(json.dumps([types, source.lost()]))
source.close()
"""
UNKNOWN = 4


def test_ends_that_were_hidden_of_connections_that_nobody_accepted_are_counted(
    namespace: Namespace,
) -> None:
    types, lost = json.loads(namespace.run(sys.executable, "-c", ENDS))
    # the first is reset by its listener's end, which is seen
    assert sorted(each for each in types if each != CONNECT) == [CLOSE, UNKNOWN]
    missed = "closes of connections never accepted missed (upper bound)"
    assert lost == {missed: 2}


USED_AGAIN = """
import json, socket
from ig import c_text
from ig.bpf.loader import Loading
from ig.bpf.session import Source
from ig.bpf.syscalls import map_read, map_update

probes = Loading("tcp.c", {"TRACE_CONNECT": 1}).result()
source = Source(probes)
sockets = probes.maps["sockets"]
def attempt():
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", 9))
    return client
client = attempt()
size = c_text.parse(probes.text, "tracked").size
keys, values = map(b"".join, zip(*map_read(sockets, 8, size)))
client.close()
for place in range(len(keys) // 8):  # as if no end of any of these had been seen
    key, value = keys[place * 8 :][:8], values[place * size :][:size]
    map_update(sockets, key, value)
made = 1
while not source.lost() and made < 30000:
    attempt().close()
    made += 1
print(json.dumps([made, source.lost()]))
source.close()
"""


def test_attempt_whose_end_was_hidden_is_counted_when_its_socket_is_used_again(
    namespace: Namespace,
) -> None:
    namespace.drop(9)
    made, lost = json.loads(namespace.run(sys.executable, "-c", USED_AGAIN))
    assert lost == {"connect results missed (BPF program skipped)": 1}, made


PAIRS = """
import json, os, socket, sys
from ig.bpf.loader import Loading
from ig.bpf.session import Source

program, hidden, pairs, *defines = sys.argv[1:]
probes = Loading(program, dict(define.split("=") for define in defines)).result()
source = Source(probes)
hooks = [hook for hook in probes.hooks if "perf" in os.readlink(f"/proc/self/fd/{hook}")]
primaries = hooks[len(hooks) - int(pairs):]  # after that of all system calls, if there is one
for hook in primaries if hidden == "hidden" else []:
    probes.hooks.remove(hook)
    os.close(hook)
for _ in range(3):
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    for call in (
        lambda: client.accept(),
        lambda: client.bind(("127.0.0.1", 4001)),
        lambda: socket.socket().connect(("255.255.255.255", 4000)),
    ):
        try:
            call()
        except OSError:
            continue
        raise SystemExit("it was to fail")
    server.close()
    client.close()
places = [source.fields.index(name) for name in ("pid", "type", "error") if name in source.fields]
own = [[record[place] for place in places] for record in source.records()]
own = [rest for pid, *rest in own if pid == os.getpid()]
print(json.dumps([len(hooks), own, source.lost()]))
source.close()
"""
ACCEPT, CLOSE, ENETUNREACH, EINVAL = 2, 3, 101, 22


@pytest.mark.parametrize("hidden", ["shown", "hidden"])
@pytest.mark.parametrize(
    ("program", "pairs", "told"),
    [
        (
            ("tcp.c", "TRACE_CONNECT=1", "TRACE_ACCEPT=1", "TRACE_CLOSE=1"),
            2,
            [[CONNECT, 0], [ACCEPT, 0], [CLOSE, 0], [CLOSE, 0], [CONNECT, ENETUNREACH]],
        ),
        (("tcp.c", "TRACE_CONNECT=1"), 1, [[CONNECT, 0], [CONNECT, ENETUNREACH]]),
        (("tcp.c", "TRACE_ACCEPT=1", "FAILURE_ONLY=1"), 0, [[ACCEPT, EINVAL]]),
        (("bind.c", "FILTER_PORTS=4001"), 0, [[EINVAL]]),
    ],
    ids=["all", "connects", "failed-accepts", "binds"],
)
def test_where_programs_can_be_preempted_pairs_report_everything_once(
    namespace: Namespace, program: tuple[str, ...], pairs: int, told: list[list[int]], hidden: str
) -> None:
    file, *defines = program
    command = (sys.executable, "-c", PAIRS, file, hidden, pairs, "PREEMPTIBLE=1", *defines)
    hooks, events, lost = json.loads(namespace.run(*command))
    assert hooks in (pairs, 1 + pairs)
    assert sorted(events) == sorted(told * 3)
    assert not lost


LOADED = """
import json, sys
from ig.bpf.loader import Loading

program, counted, *defines = sys.argv[1:]
given = {"COUNT_EVENTS": int(counted), **dict(define.split("=") for define in defines)}
probes = Loading(program, given, counted == "1").result()
print(json.dumps(list(probes.tracepoints)))
probes.close()
"""
EVERYTHING = ("TRACE_CONNECT=1", "TRACE_ACCEPT=1", "TRACE_CLOSE=1")


@pytest.mark.parametrize("counted", [0, 1], ids=["reported", "counted"])
@pytest.mark.parametrize(
    "defines",
    [(), ("PREEMPTIBLE=1",), ("PREEMPTIBLE=1", "CGROUP_LEGACY=ANY"), ("CGROUP_LEGACY=ANY",)],
    ids=["as-is", "preemptible", "preemptible-v2", "v2"],
)
def test_programs_load_in_each_way_and_in_that_which_costs_least(
    namespace: Namespace, defines: tuple[str, ...], counted: int
) -> None:
    command = (sys.executable, "-c", LOADED, "tcp.c", counted, *EVERYTHING, *defines)
    hooks = json.loads(namespace.run(*command))
    btf = Btf()
    by_functions = btf.find_id("init_srcu_struct_fast", FUNCTION)
    by_functions = by_functions and btf.find_id("bpf_preempt_disable", FUNCTION)
    if by_functions or "PREEMPTIBLE=1" not in defines:
        assert "raw_syscalls:sys_exit" not in hooks
    if by_functions:
        assert sum(hook.startswith("fexit:") for hook in hooks) == 4


DECIDE = """
import json, os
from ig.bpf.loader import Loading
from ig.bpf.session import Source

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
source = Source(Loading("bind.c", {}).result())
parent = os.getpid()
if not os.fork():
    while os.getppid() == parent:
        pass
    os._exit(0)
for cgroup in range(20_000):
    source.decide(cgroup, keep=True)
print(json.dumps(source.lost()))
source.close()
"""


def test_telling_the_kernel_what_is_wanted_hides_nothing(namespace: Namespace) -> None:
    assert json.loads(namespace.run(sys.executable, "-c", DECIDE)) == {}


OWN_MAP = """
#include "ig.h"
#include "socket_owner.h"

enum state { IDLE, BUSY };
struct event {
	u64 timestamp;
	struct owner owner;
};
struct ends {
	u64 numbers[61];
};
BPF_HASH(sockets, struct ends, u64, 16);

int raw_tp__tcp_retransmit_skb(struct { u64 sk; } *ctx)
{
	struct event event = {};

	if (socket_owner_wanted((void *)ctx->sk, &event.owner))
		events.ringbuf_output(&event, sizeof(event), 0);
	return 0;
}
"""
ATTACH_BACKUPS = """
import sys
from ig.bpf.loader import Loading
from ig.bpf.session import Source
from ig.bpf.syscalls import map_keys, map_update

probes = Loading(sys.argv[1], {}).result()
source = Source(probes)
map_update(probes.maps["sockets"], bytes(61 * 8), bytes(8))
source.attach_backups()
print(probes.backups_attached, source.lost())
try:
    map_keys(probes.maps["sockets"], 1)
except ValueError as error:
    print(error)
source.close()
"""


def test_maps_of_other_packages_are_not_taken_for_that_of_sockets(tmp_path: Path) -> None:
    program = tmp_path / "own.c"
    program.write_text(OWN_MAP)
    said = subprocess.check_output([sys.executable, "-c", ATTACH_BACKUPS, program], text=True)
    assert said.splitlines() == ["True {}", "the map has keys of 488 bytes, not 8"]


def test_event_that_is_opened_to_ask_for_permission_counts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[bytes] = []
    close = os.close

    def read_and_close(descriptor: int) -> None:
        counts.append(os.read(descriptor, 8))
        close(descriptor)

    monkeypatch.setattr(os, "close", read_and_close)
    assert allows_perf_events()
    # A clock would count, and a timer interrupt this task for each sample: the least that it does.
    assert counts == [bytes(8)]
