"""`ig top tcp` on a terminal: keys, sizes, ways out, and what ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from xml.etree import ElementTree

import pytest

from ig.output.text import display_width
from tests.host.engine import Engine, PrivateEngine
from tests.host.namespace import Namespace, Program, program
from tests.host.terminal import Terminal
from tests.host.tracer import IG
from tests.host.waiting import until
from tests.picture import picture

Start = Callable[..., Terminal]
HOST, COUNT = "127.77.1.10", 3
TOP = ("top", "tcp", "--host", "--interval", "0.3")
KEYS = ("q", "\x1b[A", "\x1b[B")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*3[0-7][;m]")


@pytest.fixture
def load(namespace: Namespace) -> Program:
    """A program that holds COUNT connections to HOST."""
    return namespace.start("transfer", HOST, "--count", COUNT, "--send", 70_001)


@pytest.fixture
def top(on_terminal: Start, load: Program) -> Callable[..., Terminal]:
    """Start the command on the load's connections, and wait for its row."""
    port = load.reports.ready()["port"]

    def start(*options: object, **more: Any) -> Terminal:
        terminal = on_terminal(*TOP, "--port", port, *options, **more)
        terminal.see(has(f"{HOST}:{port}"))
        return terminal

    return start


def has(text: str) -> Callable[[list[str]], bool]:
    """Return whether a screen has a line with this."""
    return lambda lines: any(text in line for line in lines)


def has_rows(count: int, lines: list[str]) -> bool:
    """Return whether a screen has so many lines."""
    return len(lines) == count


def row(lines: list[str]) -> list[str]:
    """Return the words of the first row, and empty ones where there is none yet."""
    return [*(lines[2].split() if len(lines) > 2 else ()), *[""] * 6]


def test_live_rows_follow_what_connections_do(top: Start, load: Program) -> None:
    terminal = top()
    heading = terminal.see(lambda lines: row(lines)[2] == str(COUNT))[1].split()
    assert heading[:6] == ["CONTAINER", "DESTINATION", "OPEN", "NEW/S", "FAIL/S", "P50"]
    load.process.send_signal(signal.SIGUSR1)
    terminal.see(lambda lines: row(lines)[2] == str(2 * COUNT))
    terminal.see(lambda lines: row(lines)[3] != "-" and row(lines)[5].endswith("ms"))
    load.process.send_signal(signal.SIGUSR2)
    terminal.see(lambda lines: row(lines)[:1] == ["host"] and row(lines)[2] == "0")
    assert re.match(r"\x1b\[(?:\d;)*2[;m]", terminal.frame[2])  # dim
    terminal.see(lambda lines: "pairs: 0" in lines[0])
    terminal.press("q")
    assert terminal.finished()[1:] == ("", 0)


@pytest.mark.anywhere
def test_live_keys_do_what_the_help_says(top: Start) -> None:
    terminal = top()
    for keys, seen in (
        ("?", "filter as with -F"),
        ("x", "CONTAINER"),
        ("\r", f" {HOST}:"),
        ("\x1b", "? help"),
        ("g", "by container: 1"),
        ("g", "by pod: 1"),
        ("g", "by destination: 1"),
        ("g", "by process: 1"),
        ("g", "pairs: 1"),
        ("O", "open ↓"),
        ("O", "open ↑"),
        ("\x1b[C", "new ↓"),
        ("\x1b[D", "open ↓"),
        ("r", "open ↑"),
        ("f", "pairs: 0, open ↑, failures only"),
        ("f", "pairs: 1"),
        ("/colour==1\r", "Unknown column 'colour'"),
        ("\x1b", "? help"),
        ("/open>100\r", "pairs: 0, open ↑, filter open>100"),
        ("\x1b", "pairs: 1, open ↑"),
        (" ", "PAUSED"),
    ):
        terminal.press(keys)
        terminal.see(has(seen))
    terminal.press("p")
    terminal.see(lambda lines: "PAUSED" not in lines[0])
    terminal.press("q")
    assert terminal.finished()[1:] == ("", 0)


@pytest.mark.anywhere
def test_live_rows_by_process_have_the_process_on_a_narrow_terminal(
    top: Start, load: Program
) -> None:
    terminal = top("--by", "process")
    lines = terminal.see(has(f" {load.pid} "))
    assert lines[1].split()[:5] == ["CONTAINER", "DESTINATION", "PID", "COMM", "OPEN"]
    assert terminal.stop()[1:] == ("", 0)


@pytest.mark.anywhere
def test_live_processes_are_named_without_their_control_characters(
    on_terminal: Start, namespace: Namespace
) -> None:
    port = namespace.serve(HOST)
    name = "\x1b[31mx\x07"
    namespace.start("connect", HOST, port, "--hold", "--comm", name).reports.ready()
    terminal = on_terminal(*TOP, "--port", port, "--by", "process", size=(120, 24))
    terminal.see(has("\\x1b[31mx\\x07"))
    assert name not in terminal.text
    assert terminal.stop()[1:] == ("", 0)


@pytest.mark.anywhere
def test_live_screen_fits_every_size(top: Start) -> None:
    terminal = top()
    for columns, rows in ((40, 10), (80, 24), (132, 5), (20, 3), (80, 24)):
        for key in "?x":
            terminal.resize(columns, rows)
            terminal.press(key)
            lines = terminal.see(partial(has_rows, rows))
            assert max(map(display_width, lines)) <= columns
    terminal.resize(40, 10)
    assert terminal.see(partial(has_rows, 10))[-1] == "? help  q quit  / filter  g group"
    terminal.resize(80, 24)
    assert f"{HOST}:" in terminal.see(lambda lines: len(lines) == 24 and "CONT" in lines[1])[2]
    assert terminal.stop()[1:] == ("", 0)


@pytest.mark.anywhere
def test_live_screen_of_a_terminal_of_unknown_size_is_of_80_columns_and_24_rows(
    top: Start,
) -> None:
    terminal = top(size=(0, 0))
    for key, seen in (("?", "filter as with -F"), ("x", "CONTAINER")):
        terminal.press(key)
        lines = terminal.see(has(seen))
        assert (len(lines), max(map(display_width, lines)) <= 80) == (24, True)
    assert terminal.stop()[1:] == ("", 0)


@pytest.mark.anywhere
@pytest.mark.parametrize("way", ["q", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_live_terminal_is_as_before_on_every_way_out(top: Start, way: str | int) -> None:
    terminal = top()
    assert not terminal.is_as_before()
    if isinstance(way, str):
        terminal.press(way)
    else:
        terminal.process.send_signal(way)
    terminal.process.wait()
    assert terminal.is_as_before()
    assert terminal.finished()[1:] == ("", 0)
    assert terminal.text.endswith("\x1b[?25h\x1b[?1049l")


@pytest.mark.anywhere
def test_live_terminal_is_as_before_after_an_exception(on_terminal: Start) -> None:
    failing = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from ig.top.screen import Screen\n"
        "def fail(*_): raise ZeroDivisionError\n"
        "Screen.frame = fail\n"
        "from ig.cli import main; main()"
    )
    terminal = on_terminal(*TOP, ready=False, within=(sys.executable, "-c", failing))
    _, said, code = terminal.finished() if terminal.process.wait() else ([], "", 0)
    assert code == 1
    assert "ZeroDivisionError" in said
    assert terminal.text.endswith("\x1b[?25h\x1b[?1049l")


@pytest.mark.anywhere
def test_live_terminal_is_given_back_while_stopped(top: Start) -> None:
    terminal = top(within=program("job"))
    terminal.press("\x1a")  # Ctrl-Z
    assert terminal.process.stderr
    assert json.loads(terminal.process.stderr.readline()) == {"stopped": True, "echoes": True}
    until(lambda: terminal.text.endswith("\x1b[?25h\x1b[?1049l"), "the usual screen")
    terminal.process.send_signal(signal.SIGUSR1)
    until(lambda: not terminal.is_as_before(), "the terminal to be taken again")
    terminal.press("g")
    terminal.see(lambda lines: "by container: 1" in lines[0])
    terminal.press("\x03")  # Ctrl-C
    assert terminal.process.wait() == 0
    assert terminal.is_as_before()
    terminal.finished()


@pytest.mark.anywhere
def test_live_colours_are_those_of_16_and_none_if_so_asked(
    on_terminal: Start, namespace: Namespace
) -> None:
    coloured, plain = (
        on_terminal(*TOP, "-F", "dst.addr==127.77.1.11", environment=environment)
        for environment in ({}, {"NO_COLOR": "1"})
    )
    for terminal in (coloured, plain):
        namespace.connect("127.77.1.11", 9)
        terminal.see(has("127.77.1.11:9"))
    assert COLOUR.search(coloured.frame[2])
    assert not COLOUR.search(plain.text)
    assert "38;" not in coloured.text
    for terminal in (coloured, plain):
        assert terminal.stop()[1:] == ("", 0)


@pytest.mark.anywhere
def test_live_container_comes_and_goes(on_terminal: Start, engine: Engine) -> None:
    server, port = engine.serve("server")
    terminal = on_terminal(
        *("top", "tcp", "--interval", "0.3", "--port", port),
        environment={"DOCKER_HOST": engine.socket},
        size=(120, 24),
    )
    client = engine.program("client", "connect", server.address, port, "--count", 5, "--hold")
    lines = terminal.see(lambda lines: len(row(lines)) > 2 and row(lines)[2] == "5")
    assert row(lines)[:2] == [client.name, f"c/{server.name}:{port}"]
    engine.remove(client)
    terminal.see(lambda lines: "pairs: 0" in lines[0])
    assert terminal.stop()[1:] == ("", 0)


@pytest.mark.anywhere
def test_live_screen_needs_a_terminal_to_type_on(load: Program) -> None:
    port = load.reports.ready()["port"]
    command = f"{IG} {' '.join(TOP)} --port {port} --count 1 </dev/null"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert f"{HOST}:{port}" in done.stdout


@pytest.mark.anywhere
def test_live_picture_of_the_readme_can_be_drawn_again(
    private_engine: PrivateEngine,
) -> None:
    private_engine.start()
    engine = Engine(private_engine.socket)
    try:
        text = "".join(ElementTree.fromstring(picture(engine)).itertext()).replace("\xa0", " ")
    finally:
        engine.close()
    assert re.search(r"shop-web +c/shop-api:8081 +0 +- ", text)
    assert re.search(r"shop-worker +c/shop-db:5432 +24 ", text)
