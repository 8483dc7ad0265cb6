"""What the README says of the command line is what the command line says of itself.

`IG_WRITE=1 pytest tests/unit/test_readme.py` writes it anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ig.gadgets import declared

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"(    \$ (ig [a-z -]*--help)\n\n)((?:    .*\n|\n)*?)(?=\n?\S|\Z)")


def said_by(command: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("ig"), *command.split()[1:]],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"},
    )
    return "".join(f"    {line}".rstrip() + "\n" for line in done.stdout.strip().splitlines())


def test_every_gadget_and_view_is_described() -> None:
    text = README.read_text()
    commands = [" ".join(gadget.command) for gadget in declared().values()]
    commands += [view.command for gadget in declared().values() for view in gadget.views]
    assert [command for command in commands if f"`ig {command}`" not in text] == []


def test_the_options_are_those_of_the_program() -> None:
    text = README.read_text()
    commands = [match[2] for match in BLOCK.finditer(text)]
    assert "ig trace tcpconnect --help" in commands
    now = BLOCK.sub(lambda match: match[1] + said_by(match[2]), text)
    if os.environ.get("IG_WRITE") and now != text:
        README.write_text(now)
        pytest.fail("the README was behind; it is written anew")
    assert now == text, "run IG_WRITE=1 pytest tests/unit/test_readme.py"
