"""What tables look like on terminals: colours, outcomes, widths, headings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from ig.output.text import display_width
from tests.host.engine import Engine
from tests.host.namespace import Namespace
from tests.host.terminal import Terminal
from tests.host.together import together
from tests.host.tracer import Tracer, ordinary_user

pytestmark = pytest.mark.anywhere

Start = Callable[..., Terminal]
RED, YELLOW, PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"


def attempts(namespace: Namespace) -> None:
    """Make one attempt that is answered, one refused, and two that nobody answers."""
    port = namespace.serve()
    namespace.peer("--answer", "nothing")
    namespace.connect("127.0.0.1", port)
    namespace.connect("127.0.0.1", 9)
    for options in ([], ["--nonblocking", "--timeout", 0.1]):
        namespace.connect("198.51.100.2", 80, "--syn-count", 1, *options)


def colours(text: str) -> dict[str, str]:
    """Return the colour of the row of each outcome."""
    return {
        row.removesuffix(PLAIN).split()[-1]: next((c for c in (RED, YELLOW) if row[:5] == c), "")
        for row in text.splitlines()[1:]
    }


@pytest.mark.parametrize("command", ["tcpconnect", "tcp"])
def test_outcomes_are_shown_by_default_and_coloured_on_a_terminal_only(
    on_terminal: Start, start_ig: Callable[..., Tracer], namespace: Namespace, command: str
) -> None:
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "-F", "type==connect")
    trace = ("trace", command, *chosen)
    coloured, plain = together(
        lambda colour: on_terminal(*trace, environment=dict(colour), size=(120, 40)),
        ((), (("NO_COLOR", "1"),)),
    ).values()
    piped, always = together(
        lambda options: start_ig(*trace, *options), ((), ("--color", "always"))
    ).values()
    attempts(namespace)
    wanted = {"established": "", "refused": RED, "unanswered": YELLOW, "abandoned": YELLOW}
    wanted["timed-out"] = RED  # what the unanswered one became
    for tracer in (always, piped):
        tracer.stop()
    for terminal in (coloured, plain):
        assert terminal.stop()[1:] == ("", 0)
    assert colours(coloured.text) == wanted
    assert colours("\n".join(always.reports.lines)) == wanted
    for text in (plain.text, "\n".join(piped.reports.lines)):
        assert colours(text) == dict.fromkeys(wanted, "")
        assert "\x1b" not in text
    first = ["PID", "COMM", "IP", "SRC", "DST"] if command == "tcpconnect" else ["SRC", "DST"]
    heading = piped.reports.lines[0].split()
    assert heading[: len(first) + 1] == ["RUNTIME.CONTAINERNAME", *first]


def test_failures_alone_are_shown_by_every_trace(
    start_ig: Callable[..., Tracer], namespace: Namespace
) -> None:
    chosen = ("--host", "-o", "json", "-F", f"netns=={namespace.inode}")
    options = {"tcpconnect": "--failures", "tcp": "--failure-only", "bind": "--failures"}
    tracers = together(lambda name: start_ig("trace", name, options[name], *chosen), options)
    port = namespace.serve()
    namespace.connect("127.0.0.1", port)
    namespace.connect("127.0.0.1", 9)
    namespace.run(
        *("/usr/bin/python3", "-c"),
        f"import socket; s = socket.socket(); assert s.connect_ex(('127.0.0.1', {port})) == 0\n"
        "try:\n  socket.socket().bind(('192.0.2.1', 0))\nexcept OSError: pass",
    )
    for command, tracer in tracers.items():
        (event,) = tracer.stop()[0]
        assert event["error"] == ("EADDRNOTAVAIL" if command == "bind" else "ECONNREFUSED")


def test_trace_tcp_waits_for_the_answer_and_reports_the_latency(
    start_ig: Callable[..., Tracer], namespace: Namespace
) -> None:
    port = namespace.serve()
    tracer = start_ig("trace", "tcp", "-L", "--host", "-F", f"netns=={namespace.inode}")
    namespace.connect("127.0.0.1", port)
    tracer.stop()
    heading, *rows = (line.split() for line in tracer.reports.lines)
    assert heading[-2:] == ["OUTCOME", "LATENCY"]
    latency = {row[heading.index("TYPE")]: row[-1] for row in rows}
    assert latency["connect"].endswith("ms")
    assert latency["close"] == "-"


SIZES = ((80, 24), (120, 40), (200, 50))
NARROW = (60, 20)
LONG = "a-name-of-sixty-characters-with-its-number-at-the"
IPV6 = "fd00:dead:beef:cafe:1234:5678:9abc:2"
TRACES = (
    ("trace", "tcpconnect"),
    ("trace", "tcpconnect", "-L"),
    ("trace", "tcpconnect", "--resolve", "--time", "clock"),
    ("trace", "tcp", "-L"),
    ("trace", "bind", "-i=false"),
    ("tcptracer",),
    ("bindsnoop",),
)
LISTS = (
    ("snapshot", "socket"),
    ("snapshot", "socket", "-p", "-i"),
    ("snapshot", "socket", "--resolve"),
    ("list-containers",),
    ("list-gadgets",),
    ("doctor",),
)
LAST = {"doctor": "FOUND", "list-gadgets": "SHOWS", "list-containers": "UP"}
"""The last columns, which no terminal is too narrow for."""


BINDS = f"""
import socket
held = [socket.socket(socket.AF_INET6) for _ in range(3)]
for each in held:
    each.bind(({IPV6!r}, 0))
"""


def has(count: int, lines: list[str]) -> bool:
    return len(lines) >= count


def widest(lines: list[str]) -> int:
    return max(map(display_width, lines))


def test_traces_fit_terminals_of_every_size_and_follow_a_resize(
    on_terminal: Start, engine: Engine
) -> None:
    container = engine.program(f"{LONG}-3", "serve", "::")
    port = container.reports.ready()["port"]
    container.namespace.ip("addr", "add", f"{IPV6}/128", "dev", "lo", "nodad")
    environment = {"DOCKER_HOST": engine.socket, "TZ": "UTC"}
    chosen = ("-c", container.name)
    start = partial(on_terminal, environment=environment, size=SIZES[0])
    traces = together(lambda words: start(*words, *chosen), TRACES)
    marks = dict.fromkeys(traces, 0)
    for size in SIZES:
        for terminal in traces.values():
            terminal.resize(*size)
        connect = (IPV6, port, "--kind", "6", "--comm", "数据库客户", "--count", 3)
        engine.connect(container, *connect)
        engine.exec(container, ["/usr/bin/python3", "-c", BINDS]).all()
        for words, terminal in traces.items():
            begin = marks[words]
            # Three rows at least, after the heading of the new width.
            lines = terminal.wait_for(partial(has, begin + 4))[begin:]
            assert widest(lines) <= size[0], (words, size, lines)
            assert any(IPV6 in line for line in lines), (words, lines)
            if "CONT" in lines[0]:
                assert any("…" in line or container.name in line for line in lines), (words, lines)
            marks[words] = begin + len(lines)
    for terminal in traces.values():
        assert terminal.stop()[2] == 0


def test_lists_fit_terminals_of_every_size(on_terminal: Start, engine: Engine) -> None:
    container = engine.program(f"{LONG}-3", "serve", "::")
    port = container.reports.ready()["port"]
    container.namespace.ip("addr", "add", f"{IPV6}/128", "dev", "lo", "nodad")
    hold = ("--comm", "数据库客户", "--hold")
    program = container.namespace.start("connect", IPV6, port, "--kind", "6", *hold)
    program.reports.ready()
    environment = {"DOCKER_HOST": engine.socket}
    for words in LISTS:
        # Without privileges doctor has the longest findings, and loads nothing, which takes long.
        within = ordinary_user() if words[0] == "doctor" else ()
        start = partial(on_terminal, environment=environment, ready=False, within=within)
        terminals = [start(*words, size=size) for size in (NARROW, *SIZES)]
        for (width, _), terminal in zip((NARROW, *SIZES), terminals, strict=True):
            lines, said, code = terminal.finished()
            assert "Traceback" not in said, words
            assert code == 0 or words[0] == "doctor"
            assert len(lines) > 1
            assert widest(lines) <= width, (words, width, lines)
            assert not any("1970" in line for line in lines)
            assert lines[0].split()[-1] == LAST.get(words[0], lines[0].split()[-1])
            if words[0] == "snapshot":
                assert any(f"[::]:{port}" in line or f":{port} " in line for line in lines)
    heading, *rows = on_terminal(
        "list-containers", environment=environment, size=(80, 24), ready=False
    ).finished()[0]
    assert heading.split()[-1] == "UP"
    assert all("…" in row and row.split()[-1].endswith(("s", "m", "h")) for row in rows)


def test_heading_comes_again_after_each_screenful(on_terminal: Start, namespace: Namespace) -> None:
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "--max-events", 30)
    terminal = on_terminal("trace", "tcpconnect", *chosen, size=(120, 10))
    bare = on_terminal("trace", "tcpconnect", *chosen, "--no-header", "--time", "delta")
    namespace.connect("127.0.0.1", 9, "--count", 30)
    lines, _, _ = terminal.finished()
    assert [place for place, line in enumerate(lines) if "OUTCOME" in line] == [0, 9, 18, 27]
    lines, _, _ = bare.finished()
    assert len(lines) == 30
    assert all(line.split()[0].startswith("+") for line in lines)


def test_columns_of_a_pipe_is_a_width_too(
    start_ig: Callable[..., Tracer], namespace: Namespace
) -> None:
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "--max-events", 1)
    environment = {"COLUMNS": "60"}
    start = partial(start_ig, "trace", "tcpconnect", *chosen, environment=environment)
    narrow, wide = together(lambda options: start(*options), ((), ("--wide",))).values()
    namespace.connect("127.0.0.1", 9)
    for tracer, least, most in ((narrow, 0, 60), (wide, 90, 999)):
        tracer.finished()
        assert least < widest(tracer.reports.lines) <= most
