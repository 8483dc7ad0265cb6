"""Much at once: processes, threads, names, traces; each event is reported once, and rightly."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from tests.host.namespace import Namespace
from tests.host.tracer import IG, Tracer, in_own_mounts

pytestmark = pytest.mark.anywhere
Start = Callable[..., Tracer]
NOBODY = ("127.0.0.1", 9)

STORM = """
import os, socket, sys, threading
count = int(sys.argv[1])
def connect():
    with socket.socket() as client:
        client.connect_ex(("127.0.0.1", 9))
def fork():
    pid = os.fork()
    if not pid:
        connect()
        os._exit(0)
    return pid
running, pids = set(), []
for _ in range(count):
    pids.append(fork())
    running.add(pids[-1])
    while len(running) > 50:
        running.discard(os.wait()[0])
while running:
    running.discard(os.wait()[0])
for _ in range(count // 50):
    threads = [threading.Thread(target=connect) for _ in range(50)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(os.getpid(), *pids)
"""


def test_storms_of_processes_and_threads_are_reported_one_by_one(
    start_ig: Start, namespace: Namespace
) -> None:
    tracer = start_ig(
        "trace", "tcpconnect", "--host", "-o", "json", "-F", f"netns=={namespace.inode}"
    )
    first, *pids = map(int, namespace.run("/usr/bin/python3", "-c", STORM, 2_003).split())
    events, said, code = tracer.stop()
    assert (said, code) == ("", 0)
    processes = [event["proc"] for event in events]
    children = [each for each in processes if each["pid"] != first]
    threads = {each["tid"] for each in processes if each["pid"] == first}
    assert sorted(each["pid"] for each in children) == sorted(pids)
    assert {each["parent"]["pid"] for each in children} == {first}
    assert len(threads) == len(processes) - len(children) == 2_000


def test_ten_traces_at_once_have_each_event(start_ig: Start, namespace: Namespace) -> None:
    words = ("trace", "tcpconnect", "--host", "-o", "json", "-F", f"netns=={namespace.inode}")
    with ThreadPoolExecutor(10) as several:
        tracers = list(several.map(lambda _: start_ig(*words), range(10)))
    namespace.connect(*NOBODY, "--count", 1_009)
    for tracer in tracers:
        events, said, code = tracer.stop()
        assert (len(events), said, code) == (1_009, "", 0)


NAMES = """
import socket, sys
for name in bytes.fromhex(sys.argv[1]).split(b"/"):
    with open("/proc/self/comm", "wb") as comm:
        comm.write(name)
    with socket.socket() as client:
        client.connect_ex(("127.0.0.1", 9))
"""
PIECES = [bytes([each]) for each in range(1, 256) if each != ord("/")]
PIECES += [each.encode() for each in ("\u202e", "\u2028", "\u009b", "\ufeff", "=1+1", ",", "\x1b[")]


@pytest.mark.parametrize("mode", ["columns", "json", "yaml", "csv"])
def test_names_of_random_bytes_break_no_format(
    start_ig: Start, namespace: Namespace, mode: str
) -> None:
    seed, count = random.randrange(1 << 32), 1_009
    choose = random.Random(seed)
    names = [b"".join(choose.choices(PIECES, k=8))[:15] for _ in range(count)]
    tracer = start_ig(
        "trace", "tcpconnect", "--host", "-o", mode, "-F", f"netns=={namespace.inode}"
    )
    namespace.run("/usr/bin/python3", "-c", NAMES, b"/".join(names).hex())
    _, said, code = tracer.stop()
    text = "\n".join([*tracer.reports.lines, ""])
    assert (said, code) == ("", 0), seed
    assert text.replace("\r\n", "").replace("\n", "").isprintable(), seed
    read: dict[str, Callable[[], int]] = {
        "columns": lambda: len(text.splitlines()) - 1,
        "json": lambda: len([json.loads(line) for line in text.splitlines()]),
        "yaml": lambda: len([each for each in yaml.load_all(text, yaml.CSafeLoader) if each]),
        "csv": lambda: len(list(csv.reader(io.StringIO(text)))) - 1,
    }
    assert read[mode]() == count, seed


def test_sockets_have_their_processes_where_proc_hides_those_of_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        only = f"--state listen --port {port} -F netns=={os.stat('/proc/self/ns/net').st_ino}"
        shown = f"{IG} snapshot socket --host -t {only} -p -o json"
        hidden = f"mount -t proc -o hidepid=2 proc /proc && exec {shown}"
        done = in_own_mounts(f"{hidden} --docker-socketpath /nonexistent")
    (row,) = json.loads(done.stdout)
    assert row["proc"]["pid"] == os.getpid(), done.stderr
