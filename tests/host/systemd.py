"""A real systemd: this machine's, where the tests run below it alone, or one in a container."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.capable import run_with
from tests.host.engine import Engine
from tests.host.tracer import IG
from tests.host.waiting import EMULATED, PATIENCE, until

SYSTEMD = "/lib/systemd/systemd"
CHECKOUT = Path(__file__).parents[2]
_INSTALLED = "/usr/local/bin/ig"
_BOOT = f"""
mount -o remount,rw /sys && mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
mount -t tracefs tracefs /sys/kernel/tracing &&
exec env container=docker {SYSTEMD} --unit=sysinit.target
"""
_OPTIONS = {
    # Not privileged: these tests themselves may be in a container that is not.
    "cap_add": ["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "NET_ADMIN", "BPF", "PERFMON"],
    "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
}


class Systemd:
    """A service manager, and commands that run beside its units."""

    def __init__(self, entering: Sequence[str] = ()) -> None:
        self._entering = entering

    def run(self, *words: object, given: str = "") -> str:
        """Run a command to its end and return what it prints; it must end well."""
        done = subprocess.run(
            [*self._entering, *map(str, words)],
            input=given,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file, in a folder that is made if it is missing."""
        words = f"mkdir -p {shlex.quote(os.path.dirname(path))} && cat >{shlex.quote(path)}"
        self.run("sh", "-c", words, given=text)

    def value(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def install(self, unit: Path) -> None:
        """Install a unit of ours; its command is the checkout's, wherever that is."""
        self.write(f"/etc/systemd/system/{unit.name}", unit.read_text())
        lines = ["[Service]", f"BindReadOnlyPaths={CHECKOUT}"]
        if EMULATED:  # where loading a program may take minutes
            lines.append("TimeoutStartSec=infinity")
        self.write(f"/etc/systemd/system/{unit.name}.d/checkout.conf", "\n".join([*lines, ""]))
        self.run("systemctl", "daemon-reload")


@contextmanager
def some_systemd(engine: Callable[[], Engine]) -> Iterator[Systemd]:
    """Return this guest's systemd (see tests/kernels), or one in a container of an engine's."""
    if not os.path.exists(SYSTEMD):
        pytest.skip("needs systemd")
    command = f"mkdir -p /usr/local/bin && ln -sfn {IG} {_INSTALLED}"
    if "ig.init=systemd" in Path("/proc/cmdline").read_text().split():
        manager = Systemd()
        manager.run("sh", "-c", command)
        yield manager
        return
    if EMULATED:
        pytest.skip("a guest of its own has systemd: ig.init=systemd in tests/kernels/setups.py")
    running = run_with(
        engine(),
        "systemd",
        ["unshare", "--cgroup", "sh", "-c", _BOOT],
        **_OPTIONS,
        tmpfs=dict.fromkeys(("/run", "/usr/local/bin"), "exec"),
        volumes={str(CHECKOUT): {"bind": str(CHECKOUT), "mode": "ro"}},
    )
    manager = Systemd(("nsenter", "--all", f"--target={running.pid}", "--"))

    def booted() -> bool:
        state = manager.run("sh", "-c", "systemctl is-active sysinit.target 2>&1 || :")
        return state == "active\n"

    try:
        until(booted, f"systemd to boot: {running.reports.lines}")
    except TimeoutError:
        raise AssertionError(running.reports.lines) from None
    manager.run("sh", "-c", command)
    yield manager
