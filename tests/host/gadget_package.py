"""A package that offers gadgets or sinks, as it is installed, and the command that finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.host.waiting import PATIENCE

_MAIN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ig.cli import main; main()"


def install(folder: Path, name: str, offers: str, files: Mapping[str, str]) -> Path:
    """Make `folder` one in which a package is installed; `offers` are its entry points."""
    information = folder / f"{name}-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (information / "entry_points.txt").write_text(offers)
    (folder / name).mkdir()
    for file, text in files.items():
        (folder / name / file).write_text(text)
    return folder


def started(package: Path, *arguments: object, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start `ig` with these arguments where the package in this folder is installed.

    `before` is the command that starts it.
    """
    return subprocess.Popen(
        [*before, sys.executable, "-c", _MAIN, str(package), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def change(package: Path, file: str, given: str, other: str) -> None:
    """Replace a part of a file of the package in this folder."""
    path = package / file
    text = path.read_text()
    assert given in text
    path.write_text(text.replace(given, other))


def refusal(package: Path, *arguments: object, before: Sequence[str] = ()) -> str:
    """Return why `ig` refuses these arguments."""
    with started(package, *arguments, before=before) as process:
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert "Traceback" not in said
    return said
