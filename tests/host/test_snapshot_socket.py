"""`ig snapshot socket` on this kernel: its rows are those of `ss`, and each has its true owner."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ig import query
from ig.commands.snapshot import DEFAULT_ORDER
from ig.container import HOST, Container
from ig.containers.index import Index
from ig.errors import UsageError
from ig.gadget import Batch
from ig.gadgets.snapshot_socket import GADGET
from ig.kernel import netns
from ig.kernel.mounts import mounts
from ig.sockets import sock_diag
from ig.sockets.collect import collect
from ig.sockets.owner import Find, Known
from ig.sockets.proc import ALL_STATES, STATES
from ig.sockets.reader import Reader
from tests.host.runtimes import need

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

PROGRAM = Path(__file__).with_name("sockets_program.py")
FOREST = Path(__file__).with_name("namespaces_program.py")
NEW = ("unshare", "--net")
Row = tuple[str, str, str, str]


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that says when it is ready and ends with its input."""
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("ready"), f"{words} ended"
            yield process
        finally:
            process.stdin.close()
            process.wait(30)


@pytest.fixture(scope="module")
def every_state() -> Iterator[Container]:
    need("ss", "unshare", "ip", "nsenter")
    with running(*NEW, sys.executable, str(PROGRAM)) as process:
        yield container("every-state", process.pid)


def container(name: str, pid: int = 0) -> Container:
    return Container(id=name, name=name, runtime="test", pid=pid, running=True)


def nobodys(_: Sequence[str], __: int | None = None) -> tuple[Container, bool]:
    return HOST, True


def take(
    *containers: Container,
    find: Find = nobodys,
    host: bool = False,
    said: list[str] | None = None,
    **options: Any,
) -> Batch:
    """Take a snapshot of these containers, or of all and the host."""
    names = {each.name for each in containers}
    wants = (lambda _: True) if host else (lambda owner: owner.name in names)
    say = [] if said is None else said
    batch = collect(options, Known(find, containers), wants, say.append)
    return query.sort(batch, GADGET.columns, DEFAULT_ORDER)


def shown(batch: Batch, *names: str) -> list[tuple[Any, ...]]:
    """Return the columns of these names, row by row."""
    columns = {column.name: column for column in GADGET.columns}
    return list(zip(*(batch.read(columns[name]) for name in names), strict=True))


def rows(batch: Batch) -> list[Row]:
    return sorted(shown(batch, "proto", "src", "dst", "state"))


def ss(pid: int) -> list[Row]:
    """Return what `ss -tuna` shows there, in our words."""
    words = ("nsenter", "--target", str(pid), "--net", "ss", "-tunaH")
    printed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout
    return sorted(_row(*line.split()[:6]) for line in printed.splitlines())


def _row(proto: str, state: str, _received: str, _sent: str, source: str, destination: str) -> Row:
    ends = [_end(end) for end in (source, destination)]
    if proto == "udp":
        state = {"UNCONN": "INACTIVE", "ESTAB": "ACTIVE"}[state]
    state = {"ESTAB": "ESTABLISHED", "FIN-WAIT-1": "FIN_WAIT1", "FIN-WAIT-2": "FIN_WAIT2"}.get(
        state, state.replace("-", "_")
    )
    return proto.upper(), ends[0], ends[1], state


def _end(text: str) -> str:
    address, _, port = text.rpartition(":")
    address = re.sub(r"%[^]]*", "", address)
    address = "[::]" if address == "*" else re.sub(r"^\[::ffff:([0-9.]+)\]$", r"\1", address)
    return "" if port == "*" else f"{address}:{port}"


def same_moment(pid: int, ours: Callable[[], list[Row]]) -> tuple[list[Row], list[Row]]:
    """Return our rows and those of `ss`, for a moment in which those of `ss` did not change."""
    for _ in range(20):
        before, rows_then, after = ss(pid), ours(), ss(pid)
        if before == after:
            return rows_then, after
    raise AssertionError("the sockets of `ss` changed during each of 20 attempts")


def test_rows_are_those_of_ss_in_all_states(every_state: Container) -> None:
    ours, theirs = same_moment(every_state.pid, lambda: rows(take(every_state)))
    assert ours == theirs
    states = {(proto, state) for proto, _, _, state in ours}
    everything = {("TCP", name) for name in STATES.values() if name != "CLOSE"}
    assert states == everything | {("UDP", "ACTIVE"), ("UDP", "INACTIVE")}


def test_tables_of_proc_give_the_same_rows(
    every_state: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A netlink family that no kernel has: refused as where the module is missing.
    monkeypatch.setattr(sock_diag, "_NETLINK_SOCK_DIAG", 31)
    said: list[str] = []
    ours, theirs = same_moment(every_state.pid, lambda: rows(take(every_state, said=said)))
    assert ours == theirs
    assert "sock_diag" in said[0]
    assert "/proc/PID/net/tcp" in said[0]


def test_namespace_that_may_not_be_entered_is_read_from_proc(every_state: Container) -> None:
    def act(namespace: netns.Namespace, _entered: bool) -> set[str]:
        _, fields = reader.read(namespace, False)
        return set(fields["state"])

    reader = Reader({"TCP": ALL_STATES, "UDP": ALL_STATES})
    theirs = netns.Namespace(namespace_of(every_state.pid), tasks=(str(every_state.pid),))
    (states,) = netns.visit([theirs], act)
    assert {"LISTEN", "TIME_WAIT", "SYN_RECV", "ACTIVE"} <= states
    assert reader.warnings()


def test_listeners_of_one_and_of_both_families_are_distinguished(every_state: Container) -> None:
    listeners = [(src, dst) for _, src, dst, state in rows(take(every_state)) if state == "LISTEN"]
    assert ("0.0.0.0:8004", "") in listeners
    assert listeners.count(("[::]:8004", "")) == 1
    assert listeners.count(("[::]:8006", "")) == 1
    assert listeners.count(("[::]:8046", "")) == 1
    assert ("0.0.0.0:8046", "") not in listeners


def test_mark_interface_and_user_are_known(every_state: Container) -> None:
    batch = take(every_state, state=["listen"])
    known = {
        port: rest for port, *rest in shown(batch, "src.port", "mark", "interface", "uid", "user")
    }
    assert known[8013] == [42, "", 0, "root"]
    assert known[8014] == [0, "lo", 0, "root"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"proto": "tcp"}, lambda row: row[0] == "TCP"),
        ({"proto": "udp"}, lambda row: row[0] == "UDP"),
        ({"state": ["listen", "SYN-RECV"]}, lambda row: row[3] in ("LISTEN", "SYN_RECV")),
        ({"state": ["syn_recv"]}, lambda row: row[3] == "SYN_RECV"),
        ({"state": ["time-wait", "active"]}, lambda row: row[3] in ("TIME_WAIT", "ACTIVE")),
        ({"state": ["estab"]}, lambda row: row[3] == "ESTABLISHED"),
        ({"state": ["inactive"], "proto": "tcp"}, lambda _: False),
    ],
)
def test_protocols_and_states_are_chosen(
    every_state: Container, options: Mapping[str, Any], wanted: Callable[[Row], bool]
) -> None:
    chosen, theirs = same_moment(every_state.pid, lambda: rows(take(every_state, **options)))
    assert chosen == list(filter(wanted, theirs))


@pytest.mark.parametrize("options", [{"state": ["listning"]}, {"proto": "sctp"}])
def test_what_does_not_exist_is_refused(options: Mapping[str, Any]) -> None:
    with pytest.raises(UsageError):
        take(**options)


def test_processes_that_hold_a_socket_are_named(every_state: Container) -> None:
    batch = take(every_state, processes=True)
    comm = Path(f"/proc/{every_state.pid}/comm").read_text().strip()
    for ino, pid, name, holders in shown(batch, "ino", "pid", "comm", "processes"):
        expected = (every_state.pid, comm, f"{comm}/{every_state.pid}") if ino else (0, "", "")
        assert (pid, name, holders) == expected or (ino, pid) == (ino, 0)
    assert (every_state.pid, comm) in shown(batch, "pid", "comm")


def test_tcp_info_is_given_when_asked(every_state: Container) -> None:
    batch = take(every_state, info=True, state=["established", "fin-wait-1"])
    stuck = dict(shown(batch, "state", "bytes_sent"))["FIN_WAIT1"]
    assert stuck > 50_000  # how much fits into the buffers and the window is the kernel's choice
    assert all(rtt > 0 and cwnd > 0 for rtt, cwnd in shown(batch, "rtt", "cwnd"))


def test_order_is_by_container_protocol_state_and_source_as_numbers(
    every_state: Container,
) -> None:
    batch = take(every_state, state=["listen"], proto="tcp")
    assert [src for (src,) in shown(batch, "src")][:5] == [
        "0.0.0.0:8004",
        "127.0.0.1:8010",
        "127.0.0.1:8012",
        "127.0.0.1:8013",
        "127.0.0.1:8014",
    ]
    turned = query.sort(batch, GADGET.columns, ["-src.port", "src"])
    assert [src for (src,) in shown(turned, "src")][:2] == ["[::]:8046", "127.0.0.1:8014"]


def namespace_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def test_namespace_that_has_vanished_is_left_out() -> None:
    with running(*NEW, sys.executable, str(PROGRAM), "udp") as process:
        gone = netns.Namespace(namespace_of(process.pid), tasks=(str(process.pid),))
    mine = netns.Namespace(netns.own(), tasks=(str(os.getpid()),))
    swapped = netns.Namespace(gone.id, tasks=(str(os.getpid()),))
    seen = list(netns.visit([gone, mine, swapped], lambda each, entered: (each.id, entered)))
    assert seen == [(mine.id, True)]
    assert namespace_of(os.getpid()) == mine.id


UNPRIVILEGED = """
import json, os, sys
from ig.sockets.collect import collect
from ig.container import HOST
from ig.sockets.owner import Known
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
said = []
batch = collect({}, Known(lambda *_: (HOST, True)), lambda _: True, said.append)
json.dump([said, sorted(set(batch.fields["netns_id"])), batch.fields["sport"]], sys.stdout)
"""


def test_without_root_only_the_own_namespace_is_shown_and_that_is_said() -> None:
    root = Path(__file__).parents[2]
    with socket.socket() as mine, running(*NEW, sys.executable, str(PROGRAM), "udp"):
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        port = mine.getsockname()[1]
        words = (sys.executable, "-c", UNPRIVILEGED)
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, namespaces, ports = json.loads(done.stdout)
    assert said[0].startswith("warning: not running as root: ")
    assert namespaces == [netns.own()]
    assert port in ports


def test_thousand_namespaces_are_each_asked_once() -> None:
    with running(sys.executable, str(FOREST), "1000", "3") as process:
        pids = children(process.pid)
        many = [container(f"c{pid}", pid) for pid in pids]
        batch = take(*many, state=["listen"])
    assert Counter(owner.name for owner in batch.owners) == {each.name: 3 for each in many}
    assert len(set(batch.fields["netns_id"])) == 1000


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def groups() -> Iterator[tuple[str, str]]:
    """Make two cgroups that look like containers; give their ids."""
    point = next((mount.point for mount in mounts() if mount.kind == "cgroup2"), None)
    if point is None:
        pytest.skip("needs cgroup2")
    folders = [Path(point, uuid.uuid4().hex + uuid.uuid4().hex) for _ in range(2)]
    for folder in folders:
        folder.mkdir()
    yield folders[0].name, folders[1].name
    for folder in folders:
        folder.rmdir()


NAMED = """
import os, sys
from ig.kernel.cgroupfs import Cgroups
os.setgroups([])
os.setgid(65534)
os.setuid(int(sys.argv[1]))
with Cgroups() as cgroups:
    sys.stdout.write(str([cgroups.path(int(word)) for word in sys.argv[2:]]))
"""


@pytest.mark.parametrize("user", [0, 65534])
def test_cgroup_is_named_by_its_id_also_without_root(groups: tuple[str, str], user: int) -> None:
    point = next(mount.point for mount in mounts() if mount.kind == "cgroup2")
    ids = [str(os.stat(f"{point}/{group}").st_ino) for group in groups]
    words = (sys.executable, "-c", NAMED, str(user), *ids, "1234567890")
    root = Path(__file__).parents[2]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == str([f"/{groups[0]}", f"/{groups[1]}", None]), done.stderr


@contextmanager
def tenant(group: str, *words: str) -> Iterator[int]:
    """Run the program as if in a container: in this cgroup."""
    point = next(mount.point for mount in mounts() if mount.kind == "cgroup2")
    join = f'echo $$ > {point}/{group}/cgroup.procs && exec "$@"'
    with running("sh", "-c", join, "sh", *words) as process:
        yield process.pid


def owned(batch: Batch, namespace: int = 0) -> dict[tuple[str, int], set[tuple[str, bool]]]:
    if namespace:
        batch = batch.select([each == namespace for each in batch.fields["netns_id"]])
    found: dict[tuple[str, int], set[tuple[str, bool]]] = {}
    for owner, state, port, shared in zip(
        batch.owners,
        batch.fields["state"],
        batch.fields["sport"],
        batch.fields["shared"],
        strict=True,
    ):
        found.setdefault((state, port), set()).add((owner.id, shared))
    return found


def test_in_a_shared_namespace_a_socket_is_shown_once_under_its_true_owner(
    groups: tuple[str, str],
) -> None:
    one, two = groups
    index = Index([], lambda _: None)
    with ExitStack() as stack:
        first = stack.enter_context(tenant(one, *NEW, sys.executable, str(PROGRAM), "tcp"))
        enter = ("nsenter", "--target", str(first), "--net")
        stack.enter_context(tenant(two, *enter, sys.executable, str(PROGRAM), "udp"))
        known = Known(index.find)
        batch = collect({}, known, lambda owner: owner.id in groups, lambda _: None)
        only = collect({}, known, lambda owner: owner.id == two, lambda _: None)
    whose = owned(batch)
    assert whose["LISTEN", 8004] == {(one, False)}
    assert whose["INACTIVE", 9001] == {(two, False)}
    assert whose["SYN_RECV", 8010] == {(one, False)}, "a half-open connection is its listener's"
    waiting = [names for (state, _), names in whose.items() if state == "TIME_WAIT"]
    assert waiting
    assert all(names == {("", True)} for names in waiting)
    assert {owner.id for owner in only.owners} == {two}
    assert {"TIME_WAIT", "LISTEN"} & set(only.fields["state"]) == set()


def test_where_cgroups_do_not_identify_the_process_that_holds_a_socket_does() -> None:
    with ExitStack() as stack:
        start = (sys.executable, str(PROGRAM))
        first = stack.enter_context(running(*NEW, *start, "tcp")).pid
        enter = ("nsenter", "--target", str(first), "--net")
        second = stack.enter_context(running(*enter, *start, "udp")).pid
        whose = owned(take(container("one", first), container("two", second)))
    assert whose["LISTEN", 8004] == {("one", False)}
    assert whose["INACTIVE", 9001] == {("two", False)}
    assert {("", True)} in whose.values()


def test_on_the_hosts_network_only_the_containers_own_sockets_are_shown(
    groups: tuple[str, str],
) -> None:
    index = Index([], lambda _: None)
    with socket.socket() as hosts, tenant(groups[0], sys.executable, str(PROGRAM), "2") as pid:
        hosts.bind(("127.0.0.1", 0))
        hosts.listen()
        known, port = Known(index.find), hosts.getsockname()[1]
        batch = collect({}, known, lambda owner: owner is not HOST, lambda _: None)
        mine = owned(batch, namespace_of(pid))
        batch = collect({}, known, lambda _: True, lambda _: None)
        everything = owned(batch, namespace_of(pid))
        assert namespace_of(pid) == netns.host()
    assert mine["LISTEN", 8000] == {(groups[0], False)}
    assert ("LISTEN", port) not in mine
    assert everything["LISTEN", port] == {("", False)}
    assert everything["LISTEN", 8000] == {(groups[0], False)}
