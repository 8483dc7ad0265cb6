"""What names cost: run by `make bench` (no root), prints a table; missed targets are marked.

The index is fed by hand, as its followers feed it; what an engine takes to answer is not in it.
With `--json` it imports nothing of its own checkout: the Python of another one measures what is
installed there.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ig.container import Change, Container
from ig.containers import runtimes
from ig.containers.index import Index
from ig.containers.peers import Peers
from ig.kernel.cgroupfs import CgroupPath, Paths
from ig.trace.attribution import Attribution

CONTAINERS, EVENTS, PASSING = 500, 1_000_000, 10_000
CGROUPS, CHANGES = 16_000, 1_009


def container(number: int) -> Container:
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    name = f"container-{number}"
    return Container(f"{number:064x}", name, "docker", running=True, addresses=(address,))


def paths(container: Container) -> Paths:
    return (CgroupPath(("docker", container.id), 2),)


class NoKernel:
    """A kernel's filter that nothing goes through."""

    def decide(self, cgroup: int, keep: bool) -> None:
        pass

    def forget(self, cgroup: int) -> None:
        pass


def microseconds_each(began: float, count: int) -> float:
    return (time.perf_counter() - began) / count * 1e6


def resident_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure() -> Iterator[tuple[str, str, float, float | None]]:
    """Yield (what, unit, found, target) of each measurement."""
    index = Index(runtimes.discover(["docker"], docker_socket="/nowhere"), lambda _: None)
    peers = Peers(index, host=1)
    known = [container(number) for number in range(CONTAINERS)]
    for each in known:
        index.apply("docker", Change("exists", each))
    attribution = Attribution(index, bool, NoKernel(), lambda _: {})
    began = time.perf_counter()
    attribution.update((place + 1, paths(each)) for place, each in enumerate(known))
    yield "a new cgroup's owner", "us", microseconds_each(began, CONTAINERS), None
    cgroups = [number % CONTAINERS + 1 for number in range(EVENTS)]
    began = time.perf_counter()
    attribution.undecided(set(cgroups), 1)
    attribution.wanted(set(cgroups))
    list(map(attribution.owners.__getitem__, cgroups))
    yield f"an event's owner among {CONTAINERS}", "us", microseconds_each(began, EVENTS), 1
    attribution.update(
        (number, (CgroupPath(("system.slice", f"job-{number}.service"), 2),))
        for number in range(CONTAINERS + 1, CGROUPS)
    )
    began = time.perf_counter()
    for number in range(CHANGES):
        one = replace(known[number % CONTAINERS], name=f"renamed-{number}")
        index.apply("docker", Change("renamed", one))
        attribution.update([])
    what = f"a change of one container, {CGROUPS} cgroups known"
    yield what, "us", microseconds_each(began, CHANGES), 1000
    ends = [socket.inet_aton(each.addresses[0]) + bytes(12) for each in known]
    fields: dict[str, Sequence[object]] = {
        "timestamp": [time.time_ns()] * EVENTS,
        "version": [4] * EVENTS,
        "daddr": [ends[number % CONTAINERS] for number in range(EVENTS)],
        "dport": [80] * EVENTS,
        "netns": [1] * EVENTS,
    }
    began = time.perf_counter()
    peers.of_records(fields, [known[0]] * EVENTS)
    yield f"a far end's name among {CONTAINERS}", "us", microseconds_each(began, EVENTS), None
    del cgroups, ends, fields
    before = resident_megabytes()
    for number in range(CONTAINERS, CONTAINERS + PASSING):
        each = container(number)
        for kind in ("created", "started", "removed"):
            index.apply("docker", Change(kind, each))
        attribution.update([(number + 1, paths(each))])
    more = resident_megabytes() - before
    yield f"memory more after {PASSING} containers came and went", "MB", more, None


def main() -> None:
    if sys.argv[1:] == ["--json"]:
        print(json.dumps([(what, unit, found) for what, unit, found, _ in measure()]))
        return
    from tests.bench.rows import Row, show

    show(Row(what, unit, [found], at_most) for what, unit, found, at_most in measure())


if __name__ == "__main__":
    main()
