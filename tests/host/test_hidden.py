"""What the kernel let no program see, since it skips those that it has interrupted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.host.namespace import Namespace
from tests.host.waiting import PATIENCE

SCRIPT = """
import json, os, select, socket, sys, time
from ig.kernel.probes import Loading
from ig.kernel.source import Source

served, unserved, *defines = sys.argv[1:]
listener = socket.create_server(("127.0.0.1", int(served)), backlog=512)
source = Source(Loading("tcp.c", dict.fromkeys(defines, 1)).result())
def attempt(port):
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", int(port)))
    return client
established, refused, asked, waiting = map(attempt, (served, unserved, unserved, 9))
probes = source._probes
while probes.hooks:
    os.close(probes.hooks.pop())
probes.covered = False
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
source.cover()
told = seen()
many = [socket.create_connection(listener.getsockname()) for _ in range(300)]
print(json.dumps([told, established.getsockname()[1], seen(), source.lost(), probes.covered]))
source.close()
"""
CONNECT, ESTABLISHED, REFUSED = 1, 1, 2


@pytest.mark.parametrize(
    "defines", [("TRACE_CONNECT",), ("TRACE_CONNECT", "TRACE_CLOSE")], ids=["connects", "closes"]
)
def test_what_was_hidden_is_looked_for_once_and_nothing_is_told_twice(
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
    told, own_port, later, lost, covered = json.loads(said)
    assert covered
    # When the answers came is not known; what asked.getsockopt() took away neither.
    assert sorted(event[1] for event in told) == [ESTABLISHED, REFUSED]
    assert {event[4] for event in told} == {0}
    assert [CONNECT, ESTABLISHED, own_port, served, 0] in told
    assert lost == {"the kernel let no program see the answer to an attempt": 1}
    assert len(later) == 300
    assert {tuple(event[:2]) for event in later} == {(CONNECT, ESTABLISHED)}
    assert len({event[2] for event in later}) == 300
