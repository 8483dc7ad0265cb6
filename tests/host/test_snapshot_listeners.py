"""`ig snapshot socket -l` answers what listens where, and whose it is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ig.commands.snapshot import Notes
from tests.host.engine import Engine
from tests.host.namespace import program
from tests.host.test_snapshot_owners import Make, listed, make_cgroup, resident
from tests.host.tracer import IG
from tests.host.waiting import PATIENCE, until

__all__ = ["make_cgroup"]

PROGRAM = Path(__file__).with_name("sockets_program.py")
INSIDE = 8000


def taken(*options: object, **environment: str) -> tuple[str, str]:
    """Run the real command; give its stdout and its stderr."""
    done = subprocess.run(
        [str(IG), "snapshot", "socket", *map(str, options)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )
    return done.stdout, done.stderr


def rows(*options: object, **environment: str) -> list[dict[str, Any]]:
    return listed(taken("-o", "json", *options, **environment)[0])


def table(*options: object) -> tuple[list[dict[str, str]], str]:
    """Return a table's rows, by their headings, and what was said of what is not shown."""
    printed, said = taken(*options)
    said = "".join(line for line in said.splitlines() if "--all" in line)
    heading, *lines = (line.split() for line in printed.splitlines())
    return [dict(zip(heading, line, strict=True)) for line in lines], said


@dataclass(frozen=True)
class Town:
    """A container with sockets in every state."""

    name: str

    def rows(self, *options: object) -> list[dict[str, Any]]:
        return rows("-c", self.name, *options)

    def table(self, *options: object) -> tuple[list[dict[str, str]], str]:
        return table("-c", self.name, *options)


@pytest.fixture
def town(make_cgroup: Make) -> Iterator[Town]:
    group = make_cgroup()
    words = ["unshare", "--net", sys.executable, "-u", str(PROGRAM)]
    say_so = 'sleep infinity | "$@" | sed -u "s/ready/{\\"ready\\":true}/"'
    with resident(group, command=["sh", "-c", say_so, "sh", *words]) as started:
        started.reports.ready()
        yield Town(group.name[:12])
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def told(found: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    return sorted(
        (row["src"]["proto"], row["state"], row["src"]["port"], row["dst"]["port"]) for row in found
    )


def test_what_listens_is_chosen_by_options(town: Town) -> None:
    everything = told(town.rows())
    listening = [row for row in everything if row[1] in ("LISTEN", "INACTIVE")]
    assert told(town.rows("-l")) == listening
    assert told(town.rows("-lt")) == [row for row in listening if row[0] == "TCP"]
    assert told(town.rows("--listening", "-u")) == [row for row in listening if row[0] == "UDP"]
    assert told(town.rows("-t", "-u")) == everything
    ports = [row for row in everything if {8046, 9001} & set(row[2:])]
    assert told(town.rows("--port", "8046,9001")) == ports
    assert len({row[1] for row in ports}) > 2


def test_table_of_sockets_counts_time_wait_below(town: Town) -> None:
    everything = town.rows()
    waiting = [row for row in everything if row["state"] == "TIME_WAIT"]
    shown, said = town.table()
    assert said == f"ig: Not shown: {len(waiting)} TIME_WAIT. Use --all to show them."
    assert len(shown) == len(everything) - len(waiting)
    assert {row["STATE"] for row in shown} == {row["state"] for row in everything} - {"TIME_WAIT"}
    shown, said = town.table("--all")
    assert (len(shown), said) == (len(everything), "")
    shown, said = town.table("--state", "time-wait")
    assert (len(shown), said) == (len(waiting), "")


def test_table_of_listeners_has_their_queue_and_a_dash_for_nothing(town: Town) -> None:
    shown, _ = town.table("-lt", "--port", "8004")
    assert [(row["SRC"], row["QUEUE"], row["FOR"]) for row in shown] == [
        ("0.0.0.0:8004", "0/16", "-"),
        ("[::]:8004", "0/16", "-"),
    ]
    assert "DST" not in shown[0]
    shown, _ = town.table("-p", "--state", "listen,time-wait")
    listeners = [row for row in shown if row["STATE"] == "LISTEN"]
    assert {row["DST"] for row in listeners} == {"-"}
    waiting = [row for row in shown if row["STATE"] == "TIME_WAIT"]
    assert {(row["PID"], row["COMM"], row["PROCESSES"]) for row in waiting} == {("-", "-", "-")}


def test_resolving_keeps_the_address_that_is_bound(town: Town) -> None:
    shown, _ = town.table("-l", "--resolve", "--port", "8010,9000")
    assert [row["SRC"] for row in shown] == [
        f"127.0.0.1:8010(c/{town.name})",
        f"127.0.0.1:9000(c/{town.name})",
        f"[::1]:9000(c/{town.name})",
    ]


def test_table_of_sockets_counts_the_dns_resolver_below(make_cgroup: Make) -> None:
    group = make_cgroup()
    server = " ".join(program("serve", "127.0.0.11", 0))
    inside = ["unshare", "--net", "sh", "-c", f"ip link set lo up; exec {server}"]
    with resident(group, command=inside) as started:
        port = started.reports.ready()["port"]
        shown, said = table("-c", group.name[:12])
        assert shown == []
        assert (
            said
            == "ig: Not shown: 1 of Docker's DNS resolver (127.0.0.11). Use --all to show them."
        )
        assert [row["SRC"] for row in table("-c", group.name[:12], "--all")[0]] == [
            f"127.0.0.11:{port}"
        ]
        assert [row["src"]["port"] for row in rows("-c", group.name[:12])] == [port]


def test_listeners_of_the_host_are_shown_unless_containers_are_chosen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert [row["src"]["port"] for row in rows("-l", "--port", port)] == [port]
        assert rows("-l", "-c", "web", "--port", port) == []
        assert rows("--port", port) == []


def test_listening_and_states_are_mutually_exclusive() -> None:
    words = [str(IG), "snapshot", "socket", "-l", "--state", "established"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, "mutually exclusive" in done.stderr) == (2, True)


def test_published_port_names_the_container_behind_it(engine: Engine) -> None:
    ports = {f"{INSIDE}/tcp": ("127.0.0.1", None)}
    web = engine.program("web", "serve", "0.0.0.0", INSIDE, ports=ports)
    web.reports.ready()
    web.container.reload()
    (binding,) = web.container.attrs["NetworkSettings"]["Ports"][f"{INSIDE}/tcp"]
    port = int(binding["HostPort"])

    def ask(*options: str) -> list[dict[str, Any]]:
        return rows("-lp", "--port", port, *options, DOCKER_HOST=engine.socket)

    expected = {"name": web.name, "namespace": "", "kind": "container", "port": INSIDE}
    (proxy,) = ask()
    assert (proxy["runtime"]["containerName"], proxy["src"]["port"]) == ("", port)
    assert (proxy["state"], proxy["for"]) == ("LISTEN", expected)
    words = taken("-l", "--port", port, DOCKER_HOST=engine.socket)[0].splitlines()[1].split()
    assert words[:4] == ["host", "TCP", f"127.0.0.1:{port}", f"c/{web.name}:{INSIDE}"]
    # As where the engine has no proxy process: what comes is forwarded by the firewall alone.
    os.kill(proxy["proc"]["pid"], signal.SIGKILL)
    (silent,) = until(lambda: [row for row in ask() if not row["ino"]], "its socket to be closed")
    assert (silent["state"], silent["for"], silent["src"]["addr"]) == (
        "PUBLISHED",
        expected,
        "127.0.0.1",
    )
    assert ask("-u") == []
    with socket.create_server(("127.0.0.1", port)):
        assert [(row["state"], row["for"]["port"]) for row in ask()] == [
            ("LISTEN", 0),
            ("PUBLISHED", INSIDE),
        ]


def test_notes_are_not_repeated_below_each_snapshot_in_a_file() -> None:
    for again, expected in ((True, ["1 a", "b", "1 a", "27 a"]), (False, ["1 a", "b"])):
        said: list[str] = []
        notes = Notes(said.append, again)
        for lines in (["1 a", ""], ["b"], ["1 a"], ["27 a"]):
            for line in lines:
                notes.append(line)
            notes.report()
        assert said == expected
