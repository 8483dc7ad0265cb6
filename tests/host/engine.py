"""A Docker engine for the tests: the user's if one answers, else one started for them alone."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket as socketlib
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool

from tests.host.namespace import PROGRAMS, Namespace, program
from tests.host.reports import Report, Reports
from tests.host.waiting import PATIENCE, until

LABEL = "ig.tests"
POD = {
    "io.kubernetes.pod.name": "api-0",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.container.name": "api",
    "io.kubernetes.pod.uid": "5a1f",
}
"""The labels by which a kubelet's runtime tells of a pod."""
POD_NAME = "k8s_api_api-0_shop_5a1f_0"
"""The name that cri-dockerd gives the container with those labels."""


class PrivateEngine:
    """dockerd and its containerd, with everything they own in one folder and a bridge of their own.

    They are told to leave the host's firewall and forwarding alone, so whatever engine else runs on
    this host does not notice. One rule is the exception, and it names our bridge alone: where
    another engine has set the forwarding policy to drop and br_netfilter is loaded, our containers
    could not reach each other without. They end even when the tests are killed (PDEATHSIG), though
    the folder and the bridge then stay.
    """

    def __init__(self, namespace: Namespace | None = None, storage: str = "vfs") -> None:
        """In a namespace of the tests' own it makes Docker's usual bridge and rules."""
        self._namespace, self._storage = namespace, storage
        # /var/tmp is on a disk as a rule; a tmpfs would do too, for the vfs driver works anywhere.
        self.folder = Path(tempfile.mkdtemp(prefix="ig-", dir="/var/tmp"))
        self.socket = f"unix://{self.folder}/docker.sock"
        self._bridge = f"igt{uuid.uuid4().hex[:8]}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start it, or start it again, and return when it answers."""
        network: tuple[str, ...] = ()
        if not self._namespace:
            off = ("iptables", "ip6tables", "ip-forward", "ip-masq")
            network = ("--bridge", self._bridge, *(f"--{name}=false" for name in off))
            if not self._processes:
                self._make_bridge()
        folder = self.folder
        (folder / "containerd.toml").write_text(
            f'version = 2\nroot = "{folder}/containerd"\nstate = "{folder}/containerd-state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{folder}/containerd.sock"\n'
        )
        # Not the user's /etc/docker/daemon.json.
        runtimes = {"igt": {"path": str(PROGRAMS / "runtime.py")}}
        (folder / "dockerd.json").write_text(json.dumps({"runtimes": runtimes}))
        self._processes = [
            self._daemon("containerd", "--config", f"{folder}/containerd.toml"),
            self._daemon(
                "dockerd",
                *("--host", self.socket, "--containerd", f"{folder}/containerd.sock"),
                *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
                *("--pidfile", f"{folder}/docker.pid", "--config-file", f"{folder}/dockerd.json"),
                *("--storage-driver", self._storage, *network),
            ),
        ]
        until(self._answers, f"the engine to answer; see {folder}/dockerd.log", 60)

    def _answers(self) -> bool:
        for process in self._processes:
            if process.poll() is not None:
                log = (self.folder / "dockerd.log").read_text()[-3000:]
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}:\n{log}")
        return answers(self.socket)

    def _daemon(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        within = self._namespace.command() if self._namespace else ()
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*within, "setpriv", "--pdeathsig", "TERM", name, *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _make_bridge(self) -> None:
        def ip(*arguments: str) -> str:
            return subprocess.run(
                ["ip", *arguments], check=True, capture_output=True
            ).stdout.decode()

        network = f"{unused_subnet()}."
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{network}1/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        self._forward("-I")

    def _forward(self, action: str) -> None:
        between = ("-i", self._bridge, "-o", self._bridge, "-j", "ACCEPT")
        subprocess.run(["iptables", "-w", action, "FORWARD", *between], check=True)

    def signal(self, number: int) -> None:
        """Send a signal to the engine and to its containerd."""
        for process in self._processes:
            process.send_signal(number)

    def stop(self) -> None:
        """Stop it as a user would, leaving its data and the bridge; its containers end."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE)

    def remove(self) -> None:
        """Stop it and take away everything that it made."""
        if self._processes:
            self.stop()
        if self._processes and not self._namespace:
            self._forward("-D")
            subprocess.run(["ip", "link", "delete", self._bridge], check=True)
        for mount in sorted(mounts_below(self.folder), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.folder)


def unused_subnet() -> str:
    """Return the first three parts of addresses that this host has no route to of its own."""
    routes = subprocess.run(
        ["ip", "-4", "route", "show", "table", "all"], check=True, capture_output=True
    ).stdout.decode()
    return next(net for n in range(16, 255) if f"{(net := f'10.213.{n}')}." not in routes)


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points below a folder."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [point for line in lines if (point := line.split()[1]).startswith(f"{folder}/")]


def answers(socket: str) -> bool:
    """Say whether an engine answers there."""
    with socketlib.socket(socketlib.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(socket.removeprefix("unix://"))
            client.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in client.recv(64)
        except OSError:
            return False


def users_engine() -> str | None:
    """Return the socket of the user's engine, if it answers and runs on this kernel."""
    socket = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not socket.startswith("unix://") or not answers(socket):
        return None
    client = docker.DockerClient(base_url=socket)
    try:
        info = client.info()
    finally:
        client.close()
    rootless = "name=rootless" in (info.get("SecurityOptions") or [])
    same_kernel = info.get("KernelVersion") == os.uname().release
    return socket if same_kernel and not rootless else None


def root_filesystem() -> bytes:
    """Return a tar archive of busybox and of links into /usr, where the host's is mounted."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox is needed for the image that the tests run"
    applets = subprocess.run(
        [busybox, "--list"], check=True, stdout=subprocess.PIPE
    ).stdout.decode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in ("bin", "dev", "etc", "proc", "programs", "sys", "tmp", "usr"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        links = {name: f"usr/{name}" for name in ("lib", "lib32", "lib64", "sbin")}
        links |= {f"bin/{name}": "busybox" for name in applets.split() if name != "busybox"}
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        tar.add(os.path.realpath(busybox), "bin/busybox")
    return archive.getvalue()


@dataclass
class Running:
    """A container that a test started, and what it prints."""

    container: Container
    reports: Reports

    @property
    def name(self) -> str:
        return str(self.container.name)

    @property
    def id(self) -> str:
        return str(self.container.id)

    @property
    def pid(self) -> int:
        """The first process, as the host counts; 0 when none runs."""
        self.container.reload()
        return int(self.container.attrs["State"]["Pid"])

    @property
    def address(self) -> str:
        """Its IPv4 address on the engine's bridge; the empty string when it has none."""
        self.container.reload()
        networks = self.container.attrs["NetworkSettings"]["Networks"]
        return next((str(net["IPAddress"]) for net in networks.values()), "")

    @property
    def mntns(self) -> int:
        return os.stat(f"/proc/{self.pid}/ns/mnt").st_ino

    @property
    def namespace(self) -> Namespace:
        """Its network namespace, to put a peer or a rule in."""
        return Namespace.of(self.pid)

    def signal(self, name: str = "SIGUSR1") -> None:
        """Signal its first process: SIGUSR1 begins a `connect.py --on-signal`."""
        self.container.kill(signal=name)

    def finished(self, seconds: float = PATIENCE) -> list[Report]:
        """Return all that it told, once its first process has ended well."""
        reports = self.reports.all(seconds)
        status = self.container.wait(timeout=seconds)["StatusCode"]
        assert status == 0, f"{self.name} ended with {status}: {self.reports.lines}"
        return [report for report in reports if "ready" not in report]


class Engine:
    """An engine that runs the tests' containers, and forgets all of them in the end."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.client = docker.DockerClient(base_url=socket, timeout=int(2 * PATIENCE))
        self.prefix = f"igt-{uuid.uuid4().hex[:6]}"
        self.image = f"{self.prefix}:tests"
        self.client.api.import_image_from_data(
            root_filesystem(), repository=self.prefix, tag="tests"
        )

    def name(self, name: str) -> str:
        """Return the name under which a container called so by the tests runs: a pod's as it is."""
        return name if name.startswith("k8s_") else f"{self.prefix}-{name}"

    def run(self, name: str, command: Sequence[object], **options: Any) -> Running:
        """Start a container whose name ends in `-name`; `options` are docker-py's.

        Unless they name another `image`, the host's /usr is in it, hence its Python; so is
        `programs/`, as /programs. It has IPv6 on `lo`, and goes when the test's fixture does.
        """
        image = options.pop("image", self.image)
        ours = {"/usr": "/usr", str(PROGRAMS): "/programs"} if image == self.image else {}
        network = options.get("network_mode", "bridge")
        if network in ("bridge", "none"):
            off = ("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.lo.disable_ipv6")
            options.setdefault("sysctls", dict.fromkeys(off, "0"))
        container = self.client.containers.create(
            image,
            [str(word) for word in command],
            name=self.name(name),
            labels={LABEL: self.prefix, **options.pop("labels", {})},
            volumes={
                **{path: {"bind": place, "mode": "ro"} for path, place in ours.items()},
                **options.pop("volumes", {}),
            },
            # PID 1 ignores signals that it has no handler for: stopping would take 10 s.
            stop_signal=options.pop("stop_signal", "SIGKILL"),
            **options,
        )
        return self._start(container)

    def _start(self, container: Container) -> Running:
        # Attached before the start, so no line is missed, however short it lives.
        reports = Reports(container.attach(stream=True, logs=False, stdout=True, stderr=True))
        container.start()
        return Running(container, reports)

    def program(self, container: str, name: str, *arguments: object, **options: Any) -> Running:
        """Start a container whose first process is a program of `programs/`."""
        return self.run(container, program(name, *arguments, folder="/programs"), **options)

    def idle(self, name: str, **options: Any) -> Running:
        """Start a container that does nothing, for `exec`."""
        return self.run(name, ["sleep", "infinity"], **options)

    def serve(self, name: str, **options: Any) -> tuple[Running, int]:
        """Start a container that serves TCP on all its addresses; give it and the port."""
        running = self.program(name, "serve", "0.0.0.0", **options)
        return running, int(running.reports.ready()["port"])

    def exec(self, running: Running, command: Sequence[object], **options: Any) -> Reports:
        """Run a command in a container, as `docker exec` does."""
        words = [str(word) for word in command]
        output: Any = running.container.exec_run(words, stream=True, **options).output
        return Reports(output)

    def connect(self, running: Running, host: str, port: int, *options: object) -> list[Report]:
        """Run `connect.py` by exec and give what it told of each attempt."""
        command = program("connect", host, port, *options, folder="/programs")
        return self.exec(running, command).all()

    @contextmanager
    def network(self) -> Iterator[tuple[Network, str]]:
        """Make a network, and give it and the first three parts of its addresses."""
        subnet = unused_subnet()
        pool = IPAMPool(subnet=f"{subnet}.0/24", gateway=f"{subnet}.1")
        network = self.client.networks.create(
            f"{self.prefix}-{subnet}", driver="bridge", ipam=IPAMConfig(pool_configs=[pool])
        )
        try:
            yield network, subnet
        finally:
            self.clear()
            network.remove()

    def restart(self, running: Running) -> Running:
        """Stop the container and start it again: new process, new namespaces, same id."""
        running.container.stop(timeout=5)
        running.container.wait(timeout=PATIENCE)
        return self._start(running.container)

    def rename(self, running: Running, name: str) -> str:
        """Rename the container, and give its new name in full."""
        running.container.rename(self.name(name))
        running.container.reload()
        return running.name

    def remove(self, running: Running) -> None:
        """Kill and remove the container, if it is still there."""
        _remove(running.container)

    def clear(self) -> None:
        """Remove all containers that the tests have left."""
        for container in self._ours():
            _remove(container)

    def _ours(self) -> Iterator[Container]:
        yield from self.client.containers.list(
            all=True, ignore_removed=True, filters={"label": f"{LABEL}={self.prefix}"}
        )

    def close(self) -> None:
        """Remove the containers and the image."""
        self.clear()
        self.client.images.remove(self.image, force=True)
        self.client.close()


def _remove(container: Container) -> None:
    with suppress(NotFound):  # it removed itself meanwhile
        try:
            container.remove(force=True, v=True)
        except APIError as error:
            if error.status_code != HTTPStatus.CONFLICT:
                raise
            container.wait(timeout=PATIENCE, condition="removed")  # it is just removing itself


@contextmanager
def some_engine(storage: str = "vfs") -> Iterator[Engine]:
    """Return the user's engine, or one that is started for us alone."""
    socket = users_engine()
    private = None if socket else PrivateEngine(storage=storage)
    try:
        if private:
            private.start()
        engine = Engine(socket or private.socket)  # type: ignore[union-attr]
        try:
            yield engine
        finally:
            engine.close()
    finally:
        if private:
            private.remove()
