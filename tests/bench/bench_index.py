"""What names cost: run by `make bench` (no root), prints a table; targets are not asserted.

The index is fed by hand, as its followers feed it; what an engine takes to answer is not in it.
"""

from __future__ import annotations

import platform
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tabulate import tabulate

from ig.attribution import Attribution
from ig.containers import runtimes
from ig.containers.container import Change, Container
from ig.containers.index import Index
from ig.kernel.cgroupfs import CgroupPath, Paths
from ig.peers import Peers

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


def microseconds_each(began: float, count: int) -> str:
    return f"{(time.perf_counter() - began) / count * 1e6:.2f} us"


def resident_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure() -> Iterator[Sequence[object]]:
    """Yield (what, target, found) of each measurement."""
    index = Index(runtimes.discover(["docker"], docker_socket="/nowhere"), lambda _: None)
    known = [container(number) for number in range(CONTAINERS)]
    for each in known:
        index.apply("docker", Change("exists", each))
    attribution = Attribution(index, bool, NoKernel(), lambda _: {})
    began = time.perf_counter()
    attribution.update((place + 1, paths(each)) for place, each in enumerate(known))
    yield "a new cgroup's owner", "", microseconds_each(began, CONTAINERS)
    cgroups = [number % CONTAINERS + 1 for number in range(EVENTS)]
    began = time.perf_counter()
    attribution.undecided(set(cgroups), 1)
    attribution.wanted(set(cgroups))
    list(map(attribution.owners.__getitem__, cgroups))
    yield f"an event's owner among {CONTAINERS}", "1 us", microseconds_each(began, EVENTS)
    attribution.update(
        (number, (CgroupPath(("system.slice", f"job-{number}.service"), 2),))
        for number in range(CONTAINERS + 1, CGROUPS)
    )
    began = time.perf_counter()
    for number in range(CHANGES):
        one = replace(known[number % CONTAINERS], name=f"renamed-{number}")
        index.apply("docker", Change("renamed", one))
        attribution.update([])
    took = (time.perf_counter() - began) / CHANGES * 1e6
    yield f"a change of one container, {CGROUPS} cgroups known", "1000 us", f"{took:.1f} us"
    peers = Peers(index, host=1)
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
    yield f"a far end's name among {CONTAINERS}", "", microseconds_each(began, EVENTS)
    del cgroups, ends, fields
    before = resident_megabytes()
    for number in range(CONTAINERS, CONTAINERS + PASSING):
        each = container(number)
        for kind in ("created", "started", "removed"):
            index.apply("docker", Change(kind, each))
        attribution.update([(number + 1, paths(each))])
    more = resident_megabytes() - before
    yield f"memory more after {PASSING} containers came and went", "", f"{more:.0f} MB"


def main() -> None:
    print(f"{platform.node()}, Linux {platform.release()}, Python {platform.python_version()}")
    print(tabulate(list(measure()), ("what", "at most", "found"), tablefmt="github"))


if __name__ == "__main__":
    main()
