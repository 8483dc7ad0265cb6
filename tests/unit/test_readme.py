"""What the README and docs/ say of the command line is what the command line says of itself.

`IG_WRITE=1 pytest tests/unit/test_readme.py` writes them anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from ig.commands.display import DisplayOptions
from ig.commands.list_containers import LIST
from ig.container import Container
from ig.gadget import Batch, Gadget
from ig.gadgets import declared
from ig.output.describe import sections
from ig.trace.summary import summarized

TOP = Path(__file__).parents[2]
README, OPTIONS, JSON = (TOP / name for name in ("README.md", "docs/options.md", "docs/json.md"))
BLOCK = re.compile(r"(    \$ (ig [a-z -]*--help)\n\n)((?:    .*\n|\n)*?)(?=\n?\S|\Z)")
SAMPLE = re.compile(r"(    \$ sudo ig trace tcpconnect (?:--failures )?-o (\S+)\n)((?:    .*\n)*)")
WEB = Container(
    id="7a1d0ba04a796d2b0c6a5d54f40a8b6d5a0a2d3f1c9e8b7a6f5e4d3c2b1a0f9e",
    name="shop-web-1",
    runtime="docker",
    image="shop/web:2.4",
)


def run(command: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("ig"), *command.split()[1:]],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"},
    )
    return "".join(f"    {line}".rstrip() + "\n" for line in done.stdout.strip().splitlines())


def attempts() -> Batch:
    """Return the attempts of the README: answered, refused, answered slowly, and unanswered."""
    rows = (
        ("nginx", "172.18.0.2", 9000, 1, 0, 84_908, 0),
        ("nginx", "172.18.0.3", 5433, 2, 111, 61_022, 0),
        ("curl", "198.51.100.7", 443, 7, 0, 0, 1),
        ("curl", "198.51.100.7", 443, 1, 0, 1_042_318_004, 1),
        ("nginx", "10.255.255.1", 80, 7, 0, 0, 1),
    )
    names = ("comm", "daddr", "dport", "outcome", "error", "latency", "retransmits")
    fields: dict[str, list[object]] = {
        name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    count = len(rows)
    same = {"type": 1, "version": 4, "netns": 4026532184, "mntns": 4026532180, "cgroup": 7}
    same |= {"pid": 3971, "tid": 3971, "uid": 33, "gid": 33, "parent_pid": 3950, "sport": 47916}
    fields |= {name: [value] * count for name, value in same.items()}
    fields["waited"] = [84_908, 61_022, 1_000_000_000, 1_042_318_004, 1_000_000_000]
    fields["update"] = [0, 0, 0, 1, 0]
    fields["timestamp"] = [1_795_206_784_123_456_789] * count
    fields["comm"] = [f"{name}\0".encode() for name, *_ in rows]
    fields["pcomm"] = fields["comm"]
    fields["parent_comm"] = [b"nginx\0"] * count
    fields["saddr"] = [bytes([172, 18, 0, 5]).ljust(16, b"\0")] * count
    fields["daddr"] = [bytes(map(int, row[1].split("."))).ljust(16, b"\0") for row in rows]
    return Batch(fields, [WEB] * count)


def shown(output: str) -> str:
    """Return what the command of a sample prints for these attempts."""
    display = DisplayOptions(declared()["trace_tcpconnect"], None, {"output": output})
    formatter = display.formatter()
    text = formatter.header() + formatter.format(attempts())
    if output == "json":
        text = "\n".join(textwrap.wrap(text.splitlines()[1].replace(",", ", "), 110))
        text = text.replace(", ", ",")
    return textwrap.indent(text.rstrip() + "\n", "    ")


def check(path: Path, now: str) -> None:
    text = path.read_text() if path.exists() else ""
    if os.environ.get("IG_WRITE") and now != text:
        path.write_text(now)
        pytest.fail(f"{path.name} was behind; it is written anew")
    assert now == text, "run IG_WRITE=1 pytest tests/unit/test_readme.py"


def test_readme_describes_every_gadget_and_view() -> None:
    text = README.read_text()
    commands = [" ".join(gadget.command) for gadget in declared().values()]
    commands += [view.command for gadget in declared().values() for view in gadget.views]
    assert [command for command in commands if f"`ig {command}`" not in text] == []


def with_summary(gadget: Gadget) -> list[Gadget]:
    """Return the gadget and, if it has one, its summary as another one."""
    if gadget.sums is None:
        return [gadget]
    summary = summarized(gadget, {"summary": 1.0})
    assert summary.stages
    verb, noun = gadget.command
    command = (verb, f"{noun} --summary")
    return [gadget, replace(summary, command=command, columns=summary.stages({})[1], views=())]


def test_json_keys_of_the_docs_are_those_of_the_objects() -> None:
    begin, end = "pytest tests/unit/test_readme.py -->\n", "<!-- keys end -->"
    text = JSON.read_text()
    before, after = text.partition(begin)[0], text.partition(end)[2]
    gadgets = [each for gadget in declared().values() for each in with_summary(gadget)]
    now = sections([*gadgets, LIST])
    check(JSON, f"{before}{begin}\n{now}\n{end}{after}")


@pytest.mark.parametrize("name", [*declared(), "list_containers"])
def test_columns_all_have_a_description(name: str) -> None:
    gadget = LIST if name == "list_containers" else declared()[name]
    views = [gadget.columns, *(view.columns for view in gadget.views)]
    views += [each.columns for each in with_summary(gadget)[1:]]
    assert [c.name for columns in views for c in columns if not c.description] == []


def test_pages_of_docs_are_all_listed() -> None:
    text = README.read_text()
    pages = [path.name for path in (TOP / "docs").glob("*.md")]
    assert [name for name in pages if f"| docs/{name} |" not in text] == []


def test_options_of_the_docs_are_those_of_the_program() -> None:
    text = OPTIONS.read_text()
    commands = [match[2] for match in BLOCK.finditer(text)]
    assert commands == ["ig trace tcpconnect --help", "ig snapshot socket --help"]
    check(OPTIONS, BLOCK.sub(lambda match: match[1] + run(match[2]), text))


def test_samples_of_the_readme_are_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ig.columns._host_name", lambda: "host1")
    monkeypatch.delenv("COLUMNS", raising=False)
    text = README.read_text()
    assert [match[2] for match in SAMPLE.finditer(text)] == [
        "columns=-pid,-ip,-src,+latency",
        "json",
    ]
    check(README, SAMPLE.sub(lambda match: match[1] + shown(match[2]), text))
