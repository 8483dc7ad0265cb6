"""Real engines, each started for a test with folders and a socket of its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ig.container import Change, Container, Runtime
from ig.containers.index import Index
from tests.host.waiting import PATIENCE

BOUND = PATIENCE
"""Seconds that anything may take."""
IMAGE = "docker.io/library/ig-box:latest"
SLEEP = ("/bin/busybox", "sleep", "1000")
BRIEF = ("/bin/busybox", "true")


def need(*programs: str) -> None:
    """Skip the test if a program is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def command(*words: str, **environment: str) -> str:
    """Run a command and give what it printed; fails with what it said."""
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout.strip()


def archive(folder: Path) -> Path:
    """Make an image of nothing but busybox, in the form that `docker save` has."""
    need("busybox")
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, arcname=".")
    digest = "sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "config": {"Cmd": list(SLEEP)},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    members = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer.getvalue(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    made = folder / "image.tar"
    with tarfile.open(made, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made


def unmount(folder: Path) -> None:
    """Take away the mounts that engines leave behind in their folders."""
    for _ in range(3):  # Some lie beneath others, at the same place.
        lines = Path("/proc/self/mounts").read_text().splitlines()
        for mount in reversed([line.split()[1] for line in lines]):
            if mount.startswith(f"{folder}/"):
                command("umount", "-l", mount)


class Server:
    """An engine's process, which says when it is ready."""

    def __init__(self, words: Sequence[str], ready: str, **environment: str) -> None:
        self._words = list(words)
        self._ready = ready
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it serves; skip the test if this host does not let it."""
        process = subprocess.Popen(
            self._words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        self._process = process
        lines: queue.Queue[str | None] = queue.Queue()

        def drain() -> None:
            assert process.stderr is not None
            with process.stderr as said:
                for line in said:
                    lines.put(line)
            lines.put(None)

        threading.Thread(target=drain, daemon=True).start()
        said: list[str] = []
        deadline = time.monotonic() + BOUND
        while (line := lines.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
            said.append(line)
            if self._ready in line:
                return
        self.stop()
        pytest.skip(f"{self._words[0]} does not run here: {''.join(said[-3:])}")

    def stop(self) -> None:
        """End it, leaving its containers to their fate."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(BOUND)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(BOUND)


class Followed:
    """An index of runtimes under test, with what it said and what changed."""

    def __init__(self, runtimes: Sequence[Runtime], detailed: bool = False) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self._changes: queue.Queue[Change] = queue.Queue()
        asked = [runtime.name for runtime in runtimes]
        self.index = Index(runtimes, self.said.put, asked, detailed)
        self.index.subscribe(self._changes.put)

    def expect(self, kind: str, name: str) -> Container:
        """Wait for a change of that kind to a container of that name."""
        return self.until(lambda change: (change.kind, change.container.name) == (kind, name))

    def until(self, fits: Callable[[Change], bool]) -> Container:
        """Wait for a change, passing over others."""
        deadline = time.monotonic() + BOUND
        seen: list[tuple[str, str]] = []
        while True:
            try:
                change = self._changes.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"did not come; there were {seen}") from None
            if fits(change):
                return change.container
            seen.append((change.kind, change.container.name))

    def named(self, name: str) -> Container:
        """Return the running container of that name, with its details."""
        found = [each for each in self.index.containers() if each.name == name]
        assert len(found) == 1, f"{name}: {found}"
        return self.index.details(found[0])


@contextmanager
def followed(*runtimes: Runtime, detailed: bool = False) -> Iterator[Followed]:
    """Follow the runtimes, from their first answer on."""
    following = Followed(runtimes, detailed)
    following.index.start()
    following.index.wait_synced(BOUND)
    try:
        yield following
    finally:
        following.index.close()


def cgroup_of(pid: int) -> list[str]:
    """Return the names of the process's cgroup and its ancestors, from the root down."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    # With pure v1 there is no line of the unified hierarchy: any controller's path tells the id.
    line = next((line for line in lines if line.startswith("0::")), lines[0])
    return line.split(":", 2)[2].split("/")
