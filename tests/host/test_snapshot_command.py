"""`ig snapshot socket` through the real command, on a real engine's containers."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import select
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.host.engine import Engine, Running
from tests.host.test_snapshot_socket import same_moment
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere

Start = Callable[..., Tracer]
CONNECTIONS = 3


@dataclass(frozen=True)
class Pair:
    """A server, and a client that holds connections to it."""

    engine: Engine
    server: Running
    client: Running
    port: int

    def run(self, *arguments: object, gadget: tuple[str, ...] = ("snapshot", "socket")) -> str:
        """Run the command on the server's container; give its stdout. It must have no complaint."""
        command = [str(IG), *gadget, "-c", self.server.name, *map(str, arguments)]
        environment = {**os.environ, "DOCKER_HOST": self.engine.socket}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def rows(self, *arguments: object, **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("-o", "json", *arguments, **options))
        return found

    def printed(self, *arguments: object) -> list[list[str]]:
        return [line.split() for line in self.run(*arguments).splitlines()]


@pytest.fixture
def pair(engine: Engine) -> Pair:
    server, port = engine.serve("server")
    options = ("--count", CONNECTIONS, "--hold")
    client = engine.program("client", "connect", server.address, port, *options)
    client.reports.ready()
    return Pair(engine, server, client, port)


def test_rows_of_a_container_are_those_of_ss_inside_it(pair: Pair) -> None:
    def ours() -> list[Any]:
        lines = pair.printed("-o", "columns=proto,src,dst,state")[1:]
        return sorted(tuple("" if word == "-" else word for word in line) for line in lines)

    found, expected = same_moment(pair.server.pid, ours)
    assert found == expected
    assert len(found) == 1 + CONNECTIONS


def test_json_is_one_array_and_jsonl_one_object_a_line(pair: Pair) -> None:
    rows = pair.rows("--state", "established")
    assert [row["src"]["port"] for row in rows] == [pair.port] * CONNECTIONS
    lines = pair.run("-o", "jsonl", "--state", "established").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_yaml_and_csv_have_the_same_rows(pair: Pair) -> None:
    wanted = [row["dst"]["port"] for row in pair.rows()]
    documents = yaml.safe_load_all(pair.run("-o", "yaml"))
    assert [row["dst"]["port"] for row in documents if row] == wanted
    table = csv.DictReader(io.StringIO(pair.run("-o", "csv")))
    assert [int(row["dst"].rpartition(":")[2] or 0) for row in table] == wanted


def test_run_by_the_gadgets_name_is_the_same(pair: Pair) -> None:
    assert pair.rows(gadget=("run", "snapshot_socket")) == pair.rows()


def test_default_order_is_by_state_and_another_can_be_asked_for(pair: Pair) -> None:
    states = [row["state"] for row in pair.rows()]
    assert states == ["ESTABLISHED"] * CONNECTIONS + ["LISTEN"]
    ports = [row["dst"]["port"] for row in pair.rows("--sort", "-dst")]
    assert ports == sorted(ports, reverse=True)
    assert len(set(ports)) == 1 + CONNECTIONS


def test_filter_holds_for_columns_that_are_not_shown(pair: Pair) -> None:
    inode = pair.rows("--state", "listen")[0]["ino"]
    rows = pair.printed("-F", f"ino=={inode}", "-o", "columns=src,state")[1:]
    assert rows == [[f"0.0.0.0:{pair.port}", "LISTEN"]]


def test_processes_show_who_holds_a_socket_and_only_then(pair: Pair) -> None:
    assert "proc" not in pair.rows()[0]
    holders = {row["proc"]["pid"] for row in pair.rows("-p")}
    assert holders == {pair.server.pid}
    header, row = pair.printed("--processes", "--state", "listen")
    assert {"PID", "COMM"} <= set(header)
    assert str(pair.server.pid) in row


def test_info_shows_what_the_kernel_measured(pair: Pair) -> None:
    assert "rtt" not in pair.rows()[0]
    established = pair.rows("-i", "--state", "established")
    assert all(row["rtt_raw"] > 0 and row["cwnd"] > 0 for row in established)


def test_two_containers_are_ordered_by_name(pair: Pair) -> None:
    rows = pair.rows("-c", pair.client.name, "--state", "established")
    names = [row["runtime"]["containerName"] for row in rows]
    assert names == sorted([pair.server.name, pair.client.name] * CONNECTIONS)


def test_watch_repeats_in_a_pipe_until_it_is_stopped(pair: Pair, start_ig: Start) -> None:
    options = ("-c", pair.server.name, "-o", "jsonl", "-w", "0.2")
    environment = {"DOCKER_HOST": pair.engine.socket}
    tracer = start_ig("snapshot", "socket", *options, environment=environment)
    tracer.wait_for(lambda row: row["state"] == "LISTEN", 3)
    _, said, code = tracer.stop()
    assert (said, code) == ("", 0)


def test_watch_redraws_on_a_terminal(pair: Pair) -> None:
    ours, theirs = pty.openpty()
    command = [str(IG), "snapshot", "socket", "-c", pair.server.name, "--watch"]
    environment = {**os.environ, "DOCKER_HOST": pair.engine.socket}
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        drawn = b""
        while drawn.count(b"LISTEN") < 2:
            assert select.select([ours], [], [], PATIENCE)[0], drawn
            drawn += os.read(ours, 4096)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert drawn.count(b"\x1b[H\x1b[2J") >= 2
