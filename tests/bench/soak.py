"""Trace containers that connect as fast as they can, and account for every connection.

`python -m tests.bench.soak --seconds 600`, as root; `make soak` calls it. Two clients and a server,
each in a container, run threads at full rate while `ig trace tcp -o json` is read by this process,
which for ten seconds in the middle reads nothing. Meanwhile a process connects from one cgroup
after another, each named like a container's. In the end the events that came out and the losses
that were counted must make up every connect, accept and close, each under its true owner. Exit
code 1 if not, or if memory or descriptors grew.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from tests.features import preempts_programs
from tests.host.cgroups import new_cgroup, unified
from tests.host.engine import Engine, Running, some_engine
from tests.host.namespace import Program, program
from tests.host.reports import lost_by_cause
from tests.host.tracer import IG
from tests.host.waiting import until

PORT, PORTS, THREADS, CLIENTS = 7000, 16, 4, 2
QUOTA = 25_000  # microseconds of each tenth of a second that a container may run: others must too
BLOCKED = 10.0  # seconds in which nobody reads
GROWTH = 8  # megabytes that a process may grow once it has run for a third of the time
TYPES = ("connect", "accept", "close")
PASSING = 2_000  # cgroups of one round
PASSING_PREFIX = "5a5a5a5a"
ALLOWED, ALLOWED_PREEMPTED = 0.001, 0.01
"""The part of all events that may be missing where only an upper bound of the losses is known, and
where the kernel may preempt BPF programs."""
FOREIGN = 10
"""Events of others that may be lost too, before the kernel knows that they are not wanted."""
AT_MOST = "upper bound"
"""What the cause of a loss says that counts hooks, of which not each need have had an event."""


@dataclass
class Reader:
    """Counts the events of each type that `ig` prints, and stops reading when told to."""

    stdout: int
    names: Sequence[str]
    counts: Counter[str] = field(default_factory=Counter)
    owners: Counter[str] = field(default_factory=Counter)
    """The events of each container of these names, in an eighth of all."""
    reading: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.reading.set()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        marks = {name: b'"type":"%s"' % name.encode() for name in TYPES}
        rest, pieces = b"", 0
        while piece := os.read(self.stdout, 1 << 20):
            whole, line_end, rest = (rest + piece).rpartition(b"\n")
            for name, mark in marks.items():
                self.counts[name] += whole.count(mark)
            self.counts["lines"] += whole.count(b"\n") + len(line_end)
            pieces += 1
            self._check_owners(whole + line_end, names=pieces % 8 == 0)
            self.reading.wait()

    def _check_owners(self, lines: bytes, names: bool) -> None:
        """Count the events of passing cgroups, and, of some pieces, those of each container.

        A process's name says in which cgroup it was.
        """
        passing = 0
        for match in _PASSING.finditer(lines):
            passing += 1
            self.counts["strange"] += match[1] != match[2]
        self.counts["passing"] += passing
        if names:
            found = [lines.count(b'"containerName":"%s"' % name.encode()) for name in self.names]
            self.owners.update(dict(zip(self.names, found, strict=True)))
            self.counts["strange"] += lines.count(b"\n") - sum(found) - passing


_PASSING = re.compile(
    rb'"containerId":"%s.{8}(.{15}).{33}"[^\n]*?"comm":"([^"]*)"' % PASSING_PREFIX.encode()
)


@dataclass
class Sample:
    """What the process held at one moment."""

    seconds: float
    megabytes: float
    descriptors: int
    cpu: float


def sample(pid: int, began: float) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(time.monotonic() - began, resident, descriptors, cpu)


def load(engine: Engine, folder: str, name: str, *words: object) -> Running:
    """Start a container that runs soak_load."""
    volumes = {folder: {"bind": "/soak", "mode": "ro"}}
    return engine.run(name, ["/soak/load", *words], volumes=volumes, cpu_quota=QUOTA)


def watch(ig: subprocess.Popen[bytes], reader: Reader, seconds: float) -> Sequence[Sample]:
    """Sample the process each second; let nobody read in the middle."""
    began, samples = time.monotonic(), []
    while (passed := time.monotonic() - began) < seconds:
        assert ig.poll() is None, "ig ended"
        samples.append(sample(ig.pid, began))
        blocked = 0 <= passed - seconds / 2 < min(BLOCKED, seconds / 4)
        (reader.reading.clear if blocked else reader.reading.set)()
        if len(samples) % 10 == 0:
            print(f"{passed:.0f} s: {reader.counts['lines']} events, ", end="", file=sys.stderr)
            print(f"{samples[-1].megabytes:.0f} MB", file=sys.stderr)
        time.sleep(1)
    reader.reading.set()
    return samples


def soak(engine: Engine, folder: str, seconds: int) -> tuple[bool, bool]:
    """Run it, print the account; say whether nothing is missing, and whether nothing grew."""
    server = load(engine, folder, "server", "serve", PORT, PORTS, PORTS)
    server.reports.ready()
    ready, stderr = Path(folder, "ready"), Path(folder, "stderr")
    names = [engine.name(name) for name in ("server", "client-*")]
    containers = ",".join([*names, PASSING_PREFIX])
    # With -L each attempt is one event, also one that is not answered at once.
    line = [str(IG), "trace", "tcp", "-L", "-o", "json", "-c", containers]
    line += ["--ready-file", str(ready)]
    environment = {**os.environ, "DOCKER_HOST": engine.socket}
    with stderr.open("wb") as said:
        ig = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=said, env=environment)
    try:
        assert ig.stdout
        each = [engine.name(name) for name in ("server", *(f"client-{n}" for n in range(CLIENTS)))]
        reader = Reader(ig.stdout.fileno(), each)
        until(ready.exists, "ig to be ready")
        arguments = ("connect", server.address, PORT, PORTS, THREADS, seconds)
        clients = [load(engine, folder, f"client-{n}", *arguments) for n in range(CLIENTS)]
        with new_cgroup(unified()) as root:
            words = (root, 9, "--count", PASSING, "--prefix", PASSING_PREFIX, "--until-signal")
            passing = Program(program("cgroups", *words))
            samples = watch(ig, reader, seconds)
            passing.process.terminate()
            passed = int(passing.finished()[-1]["made"])
        made = [client.finished(60)[-1] for client in clients]
        time.sleep(1)  # the server reads what is on the way
        server.signal("SIGTERM")
        served = server.finished(60)[-1]
        ig.terminate()
        reader.thread.join(60)
        code = ig.wait(60)
    finally:
        ig.kill()
    connects = sum(each["succeeded"] for each in made)
    failed = sum(each["failed"] for each in made)
    wanted = {
        "connect": connects + failed + passed,
        "accept": served["succeeded"],
        "close": connects + served["succeeded"],
    }
    told = stderr.read_text()
    lost = lost_by_cause(told)
    sys.stderr.writelines(line for line in told.splitlines(True) if not line.startswith("{"))
    whole = account(wanted, reader.counts, lost, seconds) and code == 0
    most = {engine.name("server"): wanted["accept"] + served["succeeded"]}
    most |= {engine.name(f"client-{n}"): 2 * each["succeeded"] for n, each in enumerate(made)}
    right = reader.counts["strange"] == 0 and reader.counts["passing"] <= passed
    right &= all(0 < reader.owners[name] <= count for name, count in most.items())
    print(f"passing cgroups' connects made, told, under another's name: {passed}, ", end="")
    print(f"{reader.counts['passing']}, {reader.counts['strange']}; owners right: {right}")
    return whole and right, is_flat(samples, reader.counts["lines"])


def account(
    wanted: Mapping[str, int],
    found: Mapping[str, int],
    lost: Mapping[str, int],
    seconds: int,
) -> bool:
    """Print what was made and what was told of it; say whether it adds up."""
    missing = {name: wanted[name] - found[name] for name in TYPES}
    counted = sum(count for cause, count in lost.items() if AT_MOST not in cause)
    possible = sum(count for cause, count in lost.items() if AT_MOST in cause)
    unaccounted = sum(missing.values()) - counted
    rows: list[Sequence[object]] = [
        (f"{name}s made, told, missing", f"{wanted[name]}, {found[name]}, {missing[name]}")
        for name in TYPES
    ]
    rows += [(f"lost: {cause}", count) for cause, count in lost.items()]
    rows.append(("unaccounted for", unaccounted))
    rows.append(("connections a second", round(wanted["connect"] / seconds)))
    print(f"{platform.node()}, {os.cpu_count()} CPUs, Linux {platform.release()}, {seconds} s")
    print(tabulate(rows, ("what", "found"), tablefmt="github"))
    share = ALLOWED_PREEMPTED if preempts_programs() else ALLOWED
    allowed = min(possible, share * sum(wanted.values()))
    return min(missing.values()) >= 0 and -FOREIGN <= unaccounted <= allowed


def is_flat(samples: Sequence[Sample], events: int) -> bool:
    """Print what the process used; say whether it used no more in the end than after a third."""
    settled = samples[len(samples) // 3 :]
    halves = settled[: len(settled) // 2], settled[len(settled) // 2 :]
    memory = [max(each.megabytes for each in half) for half in halves]
    descriptors = [max(each.descriptors for each in half) for half in halves]
    rows = [
        ("CPU an event", f"{samples[-1].cpu / max(1, events) * 1e6:.2f} us"),
        ("resident, at most", f"{max(each.megabytes for each in samples):.0f} MB"),
        ("resident, then later", f"{memory[0]:.1f}, {memory[1]:.1f} MB"),
        ("descriptors, then later", f"{descriptors[0]}, {descriptors[1]}"),
    ]
    print(tabulate(rows, tablefmt="github"))
    return memory[1] - memory[0] <= GROWTH and descriptors[1] <= descriptors[0]


def compiled(folder: str) -> str:
    """Compile the load into the folder, and give the folder. Raises CalledProcessError."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("The load is a C program: install a compiler (apt-get install gcc libc6-dev).")
    os.chmod(folder, 0o755)
    source = Path(__file__).with_name("soak_load.c")
    flags = ["-O2", "-pthread", "-static"]
    subprocess.run([compiler, *flags, "-o", f"{folder}/load", source], check=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder, some_engine() as engine:
        return 0 if all(soak(engine, compiled(folder), seconds)) else 1


if __name__ == "__main__":
    sys.exit(main())
