"""What tables look like on terminals: colours, outcomes, widths, headings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.host.namespace import Namespace
from tests.host.terminal import Terminal
from tests.host.tracer import Tracer

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
    coloured = on_terminal("trace", command, *chosen, size=(120, 40))
    plain = on_terminal("trace", command, *chosen, environment={"NO_COLOR": "1"}, size=(120, 40))
    piped = start_ig("trace", command, *chosen)
    always = start_ig("trace", command, *chosen, "--color", "always")
    attempts(namespace)
    wanted = {"established": "", "refused": RED, "unanswered": YELLOW, "abandoned": YELLOW}
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
    tracers = {
        command: start_ig("trace", command, option, *chosen)
        for command, option in (
            ("tcpconnect", "--failures"),
            ("tcp", "--failure-only"),
            ("bind", "--failures"),
        )
    }
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


def test_trace_tcp_waits_for_the_answer_and_tells_the_latency(
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
