"""The README's questions: each command answers with what happened in containers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host.engine import Engine
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE

README = Path(__file__).parents[2] / "README.md"
QUESTION = re.compile(r"^\| [^|`]+\? \| `ig ([^`]+)` \|$", re.M)
REFUSED_BIND = "import socket\ntry: socket.socket().bind(('192.0.2.1', 0))\nexcept OSError: pass"


@pytest.mark.anywhere
def test_questions_all_have_an_answer(start_ig: Callable[..., Tracer], engine: Engine) -> None:
    commands = [
        command
        for command in QUESTION.findall(README.read_text())
        # These answer over HTTP, or ask over HTTPS: test_export.py, test_kubernetes.py.
        if not command.startswith("export") and "--kubernetes" not in command
    ]
    assert len(commands) == 14
    database = engine.program("db", "serve", "0.0.0.0", 5432)
    database.reports.ready()
    web = engine.idle("web")
    web.namespace.peer("--delay", 100)
    environment = {"DOCKER_HOST": engine.socket}

    def start(command: str) -> Tracer:
        words = [web.name if word == "web" else word for word in shlex.split(command)]
        return start_ig(*words, environment=environment)

    traces = {command: start(command) for command in commands if command.startswith("trace")}
    engine.connect(web, database.address, 5432)
    engine.connect(web, database.address, 5433)
    engine.connect(web, "198.51.100.2", 80)
    engine.exec(web, ["/usr/bin/python3", "-c", REFUSED_BIND]).all()
    web.namespace.run("iptables", "-I", "INPUT", "-p", "tcp", "--dport", 9, "-j", "DROP")
    engine.connect(web, "127.0.0.1", 9, "--timeout", 1.5)
    held = web.namespace.start("connect", database.address, 5432, "--hold")
    held.reports.ready()
    answers = {}
    explain = commands.pop(next(n for n, c in enumerate(commands) if c.startswith("explain")))
    words = [web.name if word == "web" else word for word in shlex.split(explain)]
    words[-1] = f"{database.address}:5433"
    explained = subprocess.run(
        [IG, *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert explained.returncode == 1
    assert "no-listener" in explained.stdout
    for command in commands:
        tracer = traces.get(command) or start(command)
        assert (tracer.stop() if command in traces else tracer.finished())[2] == 0
        answers[command] = tracer.reports.lines
    for command, (heading, *rows) in answers.items():
        assert rows, f"ig {command} shows nothing under {heading}"
    failures, one, summary, slow, of_database, needs, volumes, again, binds, *others = (
        "\n".join(lines[1:]) for lines in answers.values()
    )
    listeners, connections, pairs, containers = others
    assert "refused" in failures
    assert "established" not in failures
    assert "refused" in one
    assert "listens on 5432" in one
    assert f"{database.address}:5432" in summary or f"{database.name}:5432" in summary
    assert "198.51.100.2:80" in slow
    assert "5432" in of_database
    assert f"{database.address},5432" in needs
    assert f"{database.address}:5432" in volumes
    assert "SYN_SENT" in again
    assert "EADDRNOTAVAIL" in binds
    assert "5432" in listeners
    assert f"{database.address}:5432" in connections
    assert f"c/{database.name}:5432" in pairs
    assert {web.name, database.name} <= set(containers.split())
