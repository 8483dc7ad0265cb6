"""What is installed, what it depends on, and what is taken away again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.host.tracer import IG, in_own_mounts
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere
CHECKOUT = Path(__file__).parents[2]
PACKAGES = "/usr/lib/python3/dist-packages"
TRACE = "trace tcpconnect --host -F pid==0 -t 0.1"
LOUD = "import sys\nsys.stderr.write(f'{__name__} was loaded\\n')\n"


def run(
    *command: object, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=20 * PATIENCE,
        check=False,
        cwd=folder or CHECKOUT,
        env={**os.environ, **(environment or {})},
    )


def make_package(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").write_text(text)


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONPATH": ":"},
        {"PYTHONPATH": "."},
        {"HOME": "home", "PYTHONUSERBASE": "home/.local"},
        {"PYTHONSTARTUP": "sitecustomize.py", "PYTHONINSPECT": "", "PYTHONWARNINGS": "error"},
        {"PYTHONHOME": "home", "PYTHONPLATLIBDIR": "home"},
    ],
    ids=" ".join,
)
def test_python_environment_and_working_directory_of_others_run_nothing(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    os.chmod(tmp_path, 0o777)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("ig", "typer", "encodings"):
        make_package(tmp_path, name, LOUD)
    (tmp_path / "sitecustomize.py").write_text(LOUD)
    user = tmp_path / "home" / ".local" / "lib" / version / "site-packages"
    make_package(user, "usercustomize", LOUD)
    (user / "evil.pth").write_text("import sys; sys.stderr.write('evil.pth was loaded\\n')\n")
    absolute = {
        name: str(tmp_path / value) if value.startswith("home") else value
        for name, value in variables.items()
    }
    for command in ("version", "list-gadgets", TRACE):
        done = run(IG, *command.split(), environment=absolute, folder=tmp_path)
        assert (done.stderr, done.returncode) == ("", 0)


def replaced_packages(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands where a folder is in the place of the distribution's Python packages."""
    return in_own_mounts(f"mount --bind '{folder}' {PACKAGES} || exit; {'; '.join(commands)}")


def test_packages_of_the_system_take_the_place_of_none_of_ours(tmp_path: Path) -> None:
    """Each name that we install is there as a package of the system that cannot be loaded."""
    shutil.copytree(f"{PACKAGES}/bcc", tmp_path / "bcc")
    ours = Path(next(path for path in sys.path if path.endswith("site-packages")))
    names = {each.stem for each in ours.iterdir() if (each / "__init__.py").exists()}
    assert {"grpc", "tabulate", "typer"} <= names
    for name in {*names, "docker", "google", "requests", "sitecustomize", "urllib3"} - {
        "pip",
        "setuptools",
        "bcc",
    }:
        make_package(tmp_path, name, "raise ImportError('a package of the system')")
    (tmp_path / "loud.pth").write_text("import sys; sys.stderr.write('loud.pth was loaded\\n')\n")
    commands = ("version", "list-containers", "snapshot socket -F pid==0", TRACE)
    done = replaced_packages(tmp_path, *(f"'{IG}' {command}" for command in commands))
    assert "Error" not in done.stderr
    assert "Warning" not in done.stderr
    assert "loud.pth" not in done.stderr
    assert done.returncode == 0  # the trace, with BCC's binding, went well


def test_missing_bcc_is_reported_with_the_package_to_install(tmp_path: Path) -> None:
    done = replaced_packages(tmp_path, f"'{IG}' {TRACE}")
    assert done.returncode == 1
    assert "The BCC Python binding is missing." in done.stderr
    assert "python3-bpfcc" in done.stderr
    assert "Traceback" not in done.stderr


def test_target_that_make_does_not_have_is_an_error_also_if_a_folder_is_called_so() -> None:
    for name in ("tests", "scripts", "nonsense"):
        done = run("make", name)
        assert done.returncode == 2
        assert f'Unknown target "{name}"' in done.stderr
    assert run("make").returncode == run("make", "help").returncode == 0


GO = """#!/bin/sh -e
# Leaves what a build of the collector leaves, without the minutes that it takes.
mkdir -p "$GOMODCACHE/module" "$GOCACHE"
printf '#!/bin/sh -e\\ncd "${0%%/*}"\\nmkdir build\\ncp "$0" build/otelcol\\n' >"$GOBIN/builder"
chmod +x "$GOBIN/builder"
"""


def test_installations_know_of_each_other_and_leave_nothing(tmp_path: Path) -> None:
    """One place was there, and its name has a space; the other is made, for what tests need."""
    first, second = tmp_path / "a folder", tmp_path / "made" / "here"
    (first / "bin").mkdir(parents=True)
    state = tmp_path / "state"
    calls = tmp_path / "calls"
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "apt-get").write_text(f'#!/bin/sh\necho "$@" >>{calls}\n')
    (programs / "go").write_text(GO)
    for program in programs.iterdir():
        program.chmod(0o755)

    def setup(action: str, prefix: Path) -> str:
        environment = {
            "IG_STATE": str(state),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PREFIX": str(prefix),
        }
        done = run("sh", "scripts/setup", action, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stderr

    setup("tests", second)
    collector = second / "lib" / "ig" / "otelcol"
    assert {each.name for each in collector.iterdir()} == {
        "builder.yaml",
        "log",
        "otelcol",
        "version",
    }
    setup("install", first)
    done = run(first / "bin" / "ig", *TRACE.split(), environment={"PYTHONHOME": "/nowhere"})
    assert (done.stderr, done.returncode) == ("", 0)
    # As if the first installation had brought it; nothing was missing here.
    (state / "packages").write_text("libbpfcc:amd64\npython3-bpfcc\n")
    assert str(second) in setup("uninstall", first)
    assert not calls.exists()
    assert list(first.rglob("*")) == [first / "bin"]
    assert (second / "lib" / "ig").exists()
    setup("uninstall", second)
    assert "python3-bpfcc" in calls.read_text()
    assert not (tmp_path / "made").exists()
    assert not state.exists()
    assert "nothing is installed" in setup("uninstall", second)
