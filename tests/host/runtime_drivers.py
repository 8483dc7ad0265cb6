"""What each engine under test is told to do, in its own command's words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ig.container import Runtime
from ig.containers.runtimes.containerd import Containerd
from ig.containers.runtimes.docker_api import Docker, Podman
from tests.host.runtimes import BRIEF, IMAGE, SLEEP, Server, command, need, unmount


class DockerEngine:
    """A dockerd without effect on the host's bridges.

    It has a network namespace of its own, unless it is given the name of a bridge to use.
    """

    renames = True

    def __init__(self, folder: Path, bridge: str = "") -> None:
        need("dockerd", "docker", "unshare")
        # Without a bridge of its own, --bridge=none too would remove another engine's docker0.
        network = [f"--bridge={bridge}"] if bridge else []
        self.socket = f"{folder}/docker.sock"
        self.containerd = f"{folder}/exec/containerd/containerd.sock"
        self.server = Server(
            (
                *(() if bridge else ("unshare", "--net")),
                "dockerd",
                f"--host=unix://{self.socket}",
                f"--data-root={folder}/data",
                f"--exec-root={folder}/exec",
                f"--pidfile={folder}/pid",
                "--iptables=false",
                *network,
            ),
            "API listen on",
        )

    def call(self, *words: str) -> str:
        return command("docker", "-H", f"unix://{self.socket}", *words)

    def load(self, image: Path) -> None:
        self.call("load", "-i", str(image))

    def runtime(self) -> Runtime:
        return Docker(self.socket)

    def run(self, name: str) -> None:
        self.call("run", "-d", "--name", name, "-l", "ig.test=1", IMAGE, *SLEEP)

    def run_briefly(self, name: str) -> None:
        self.call("run", "--rm", "--name", name, IMAGE, *BRIEF)

    def rename(self, name: str, other: str) -> None:
        self.call("rename", name, other)

    def restart(self, name: str) -> None:
        self.call("restart", "-t", "0", name)

    def remove(self, name: str) -> None:
        self.call("rm", "-f", name)


class PodmanEngine(DockerEngine):
    """Podman's service with a storage of its own: root's, or an ordinary user's."""

    def __init__(self, folder: Path, user: int = 0) -> None:
        need("podman", "runc", "setpriv")
        self.socket = f"{folder}/podman.sock"
        # Where root may not raise its limits, Podman's defaults do not start.
        configuration = folder / "containers.conf"
        configuration.write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        )
        self._environment = {"CONTAINERS_CONF": str(configuration)}
        own: dict[str, str] = {}
        if user:
            os.chown(folder, user, user)
            own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
        ids = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
        self.server = Server(
            (
                *(ids if user else ()),
                "podman",
                *(("--storage-driver=vfs",) if user else ()),
                f"--root={folder}/root",
                f"--runroot={folder}/run",
                f"--tmpdir={folder}/tmp",
                "--runtime=runc",
                "--cgroup-manager=cgroupfs",
                "--events-backend=file",
                "--log-level=info",
                "system",
                "service",
                "--time=0",
                f"unix://{self.socket}",
            ),
            "API service listening",
            **self._environment,
            **own,
        )

    def call(self, *words: str) -> str:
        return command("podman", "--url", f"unix://{self.socket}", *words, **self._environment)

    def runtime(self) -> Runtime:
        return Podman(self.socket)

    def run(self, name: str) -> None:
        labels = ("-l", "ig.test=1", "--network=none")
        self.call("run", "-d", "--name", name, *labels, IMAGE, *SLEEP)

    def run_briefly(self, name: str) -> None:
        self.call("run", "--rm", "--name", name, "--network=none", IMAGE, *BRIEF)

    def remove(self, name: str) -> None:
        self.call("rm", "-f", "-t", "0", name)


class ContainerdEngine:
    """A containerd with folders of its own, driven by `ctr` in a namespace of its own."""

    renames = False
    namespace = "ig-test"

    def __init__(self, folder: Path, configuration: str = "") -> None:
        need("containerd", "ctr", "runc")
        self.socket = f"{folder}/containerd.sock"
        written = folder / "config.toml"
        written.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
            + (configuration or 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
            + f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
        )
        self.server = Server(("containerd", "-c", str(written)), "successfully booted")

    def call(self, *words: str) -> str:
        return command("ctr", "-a", self.socket, "-n", self.namespace, *words)

    def load(self, image: Path) -> None:
        self.call("image", "import", str(image))

    def runtime(self) -> Runtime:
        return Containerd(self.socket)

    def run(self, name: str) -> None:
        self.call("run", "-d", "--label", "ig.test=1", IMAGE, name, *SLEEP)

    def run_briefly(self, name: str) -> None:
        self.call("run", "--rm", IMAGE, name, *BRIEF)

    def restart(self, name: str) -> None:
        self.call("task", "rm", "-f", name)
        self.call("task", "start", "-d", name)

    def remove(self, name: str) -> None:
        self.call("task", "rm", "-f", name)
        self.call("container", "rm", name)


Engine = DockerEngine | PodmanEngine | ContainerdEngine
Served = TypeVar("Served", DockerEngine, PodmanEngine, ContainerdEngine)


@contextmanager
def serving(engine: Served, folder: Path, image: Path) -> Iterator[Served]:
    """Start an engine whose files are in a folder, with the image; it is stopped at the end."""
    engine.server.start()
    try:
        engine.load(image)
        yield engine
    finally:
        engine.server.stop()
        unmount(folder)
