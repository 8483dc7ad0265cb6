"""Network namespaces of the tests' own, and programs that run in them as processes of the host."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.host.reports import Report, Reports
from tests.host.waiting import PATIENCE

PROGRAMS = Path(__file__).parent / "programs"
PYTHON = ("/usr/bin/python3", "-I", "-S")


def program(name: str, *arguments: object, folder: Path | str = PROGRAMS) -> list[str]:
    """Return the command that runs a program of `programs/`; containers see these in /programs."""
    return [*PYTHON, f"{folder}/{name}.py", *map(str, arguments)]


_started: list[Program] = []


def stop_programs() -> None:
    """Stop every program that was started and not stopped."""
    while _started:
        _started.pop().stop()


class Program:
    """A running process and the lines it prints; it ends with the test at the latest."""

    def __init__(self, command: Sequence[str]) -> None:
        # A group of its own, so that Ctrl-C reaches the tests alone, who then stop it in order;
        # PDEATHSIG for when they themselves are killed.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        _started.append(self)
        assert self.process.stdout
        self.reports = Reports(self.process.stdout)

    @property
    def pid(self) -> int:
        return self.process.pid

    def finished(self, seconds: float = PATIENCE) -> list[Report]:
        """Return all that it told, once it has ended by itself and well."""
        reports = self.reports.all(seconds)
        status = self.process.wait(seconds)
        assert status == 0, f"{self.process.args!r} ended with {status}: {self.reports.lines[-20:]}"
        return [report for report in reports if "ready" not in report]

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self.reports.all()


class Namespace:
    """A network namespace: one made here, with `lo` up, or one that a process has (`of`)."""

    def __init__(self, path: str = "") -> None:
        self.name = "" if path else f"igt-{uuid.uuid4().hex[:8]}"
        self.path = path or f"/run/netns/{self.name}"
        if self.name:
            subprocess.run(["ip", "netns", "add", self.name], check=True)
            # An interface's first second: without a link-local address, a router asks no neighbour.
            settings = (f"net.ipv6.conf.{each}.accept_dad=0" for each in ("all", "default"))
            self.run("sysctl", "-e", "-q", "-w", *settings)
            self.ip("link", "set", "lo", "up")

    @classmethod
    def of(cls, pid: int) -> Namespace:
        """Return the namespace that the process has."""
        return cls(f"/proc/{pid}/ns/net")

    @property
    def inode(self) -> int:
        return os.stat(self.path).st_ino

    def command(self, *command: object) -> list[str]:
        """Return a command that runs the given one in here, in the host's mount namespace."""
        return ["nsenter", f"--net={self.path}", "--", *map(str, command)]

    def run(self, *command: object, seconds: float = PATIENCE) -> str:
        """Run to the end and give what it printed; raise CalledProcessError if it fails."""
        done = subprocess.run(
            self.command(*command), check=True, stdout=subprocess.PIPE, timeout=seconds
        )
        return done.stdout.decode()

    def ip(self, *arguments: object) -> str:
        """Run `ip ARGUMENTS` in here: `ip("route", "add", "blackhole", "192.0.2.0/24")`."""
        return self.run("ip", *arguments)

    def start(self, name: str, *arguments: object) -> Program:
        """Start a program of `programs/` in here."""
        return Program(self.command(*program(name, *arguments)))

    def connect(self, host: str, port: int, *options: object) -> list[Report]:
        """Run `connect.py` in here to its end and give what it told of each attempt."""
        return self.start("connect", host, port, *options).finished()

    def serve(self, host: str = "127.0.0.1", port: int = 0, *options: object) -> int:
        """Start a server in here and give its port, once it listens."""
        served: int = self.start("serve", host, port, *options).reports.ready()["port"]
        return served

    def peer(self, *options: object) -> Program:
        """Put a far side behind a TUN device (see peer.py): 198.51.100.0/24, 2001:db8:51::/64."""
        started = self.start("peer", *options)
        started.reports.ready()
        return started

    def drop(self, port: int) -> None:
        """Let every TCP segment to this port vanish, on IPv4 and IPv6."""
        for table in ("iptables", "ip6tables"):
            self.run(table, "-I", "OUTPUT", "-p", "tcp", "--dport", port, "-j", "DROP")

    def link(self, other: Namespace, network: str = "192.0.2") -> tuple[str, str]:
        """Join the two by a veth pair, and give the addresses: this side's, the other's."""
        here, there = (f"igt{uuid.uuid4().hex[:8]}" for _ in range(2))
        self.ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", other.path)
        for namespace, device, last in ((self, here, 1), (other, there, 2)):
            namespace.ip("addr", "add", f"{network}.{last}/24", "dev", device)
            namespace.ip("link", "set", device, "up")
        return f"{network}.1", f"{network}.2"

    def remove(self) -> None:
        """Remove the namespace if it was made here; what runs in it keeps it until it ends."""
        if self.name:
            subprocess.run(["ip", "netns", "delete", self.name], check=True)
