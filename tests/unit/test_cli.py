"""How a command reads its arguments: the forms of Go's commands, and what is no option of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from typer import TyperException

from ig.errors import UsageError
from ig.gadget import Param
from ig.typer_command import Command

PARAMS = (
    Param("host", ("--host",), "flag", ""),
    Param("ignore_errors", ("-i", "--ignore-errors"), "flag", "", default=True),
    Param("names", ("-c", "--containername"), "strings", ""),
    Param("ports", ("-P", "--ports"), "ports", ""),
    Param("pid", ("--pid",), "pid", ""),
    Param("rows", ("-m", "--max-rows"), "count", ""),
    Param("watch", ("-w", "--watch"), "interval", ""),
)
UNSET = {
    "host": False,
    "ignore_errors": True,
    "names": None,
    "ports": None,
    "pid": None,
    "rows": None,
    "watch": None,
}


def parsed(*arguments: str) -> dict[str, Any]:
    got: list[dict[str, Any]] = []
    Command("probe", "", PARAMS, got.append).main(list(arguments), standalone_mode=False)
    return {name: value for name, value in got[0].items() if value != UNSET[name]}


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("", {}),
        ("--host", {"host": True}),
        ("--host=true", {"host": True}),
        ("--host=FALSE", {}),
        ("--no-host", {}),
        ("-i=false", {"ignore_errors": False}),
        ("-i=true", {}),
        ("-P=80,443", {"ports": [80, 443]}),
        ("-P 80", {"ports": [80]}),
        ("--pid=42", {"pid": 42}),
        ("-c web -c db", {"names": ["web", "db"]}),
        ("-c=web", {"names": ["web"]}),
        ("-c --host", {"names": ["--host"]}),
        ("-m 7", {"rows": 7}),
        ("-w", {"watch": 2.0}),
        ("-w --host", {"watch": 2.0, "host": True}),
        ("-w 500ms", {"watch": 0.5}),
        ("--watch=3", {"watch": 3.0}),
    ],
)
def test_arguments_are_read_in_all_usual_forms(arguments: str, options: dict[str, Any]) -> None:
    assert parsed(*arguments.split()) == options


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--fields=pid", "(?s)Unknown option --fields.*-o columns="),
        ("--pid=0", "Invalid PID 0"),
        ("-m=0", "Invalid count 0"),
        ("-w=10ms", "too short"),
        ("-P=none", "Invalid port"),
    ],
)
def test_arguments_that_are_invalid_are_refused(argument: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parsed(argument)


def test_argument_that_is_missing_is_a_usage_error() -> None:
    command = Command("probe", "", (Param("file", (), "string", ""),), lambda _: None)
    with pytest.raises(TyperException, match="Missing parameter: file"):
        command.main([], standalone_mode=False)


@pytest.mark.parametrize("arguments", ["--help", "trace tcpconnect --help", "snapshot --help"])
def test_help_imports_only_what_it_prints(arguments: str) -> None:
    code = (
        "import os, sys\n"
        "os._exit = lambda code: print(*sys.modules, file=sys.stderr)\n"
        "from ig.cli import main\n"
        "main()"
    )
    command = (sys.executable, "-c", code, *arguments.split())
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert "ig.cli" in imported
    others = {"importlib.metadata", "ctypes", "logging", "csv", "ig.commands"}
    assert not imported & {*others, "ig.output.json", "ig.output.table", "ig.containers.index"}
