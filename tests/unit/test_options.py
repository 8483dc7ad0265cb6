"""How options are read, listed, and answered where they are another command's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ig import typer_command
from ig.gadget import Column
from ig.gadgets import declared
from ig.output.describe import keys
from ig.query import find_column

IG = Path(sys.executable).with_name("ig")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        [IG, *words], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("name", typer_command.FOREIGN)
def test_options_of_other_commands_are_refused_with_ours(name: str) -> None:
    done = run("trace", "tcpconnect", f"{name}=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Unknown option {name}" in done.stderr
    assert typer_command.FOREIGN[name] in done.stderr


@pytest.mark.parametrize("name", declared())
def test_columns_are_listed_with_their_keys_and_meanings(name: str) -> None:
    done = run("run", name, "--columns")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "JSON", "KEY", "KIND", "MEANING"]
    columns = declared()[name].columns
    listed = {line.split()[0].rstrip("*"): line.split()[1] for line in lines[1:]}
    assert list(listed) == [column.name for column in columns]
    ends = {column.path for column in columns if column.end}
    documented = {key for key, _, _ in keys(columns)}
    assert set(listed.values()) - ends - {"-"} <= documented
    assert {key for key in documented if key in listed} <= set(listed.values())


def test_help_lists_what_is_used_most_first() -> None:
    listed = run("--help").stdout.partition("Commands:\n")[2].splitlines()
    first = ["trace", "snapshot", "top", "explain", "export"]
    assert [line.split()[0] for line in listed][: len(first)] == first


def test_help_has_headings_and_no_negations() -> None:
    text = run("trace", "tcp", "--help").stdout
    headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == [*("Options:", "Containers:", "Runtimes:", "Output:", "Summary:", "Limits:")]
    assert "--no-host" not in text
    assert "--all-namespaces" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--color", "sometimes"), "auto, always, never"),
        (("--time", "noon"), "none, clock, delta, iso"),
        (("-o", "columns=-nothing"), "Known columns"),
    ],
)
def test_choices_that_are_none_are_refused_with_those_that_are(
    words: tuple[str, ...], message: str
) -> None:
    done = run("trace", "tcpconnect", *words)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("name", ["containername", "container", "runtime.containerName"])
def test_containers_name_is_called_alike_in_every_command(name: str) -> None:
    assert find_column(name, declared()["trace_tcp"].columns).name == "containername"
    assert find_column(name, [Column("id"), Column("name")]).name == "name"
