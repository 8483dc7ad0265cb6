"""Events from a loaded program: its records, the cgroups that they name, and what was lost."""

from __future__ import annotations

import functools
import mmap
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ig import c_text
from ig.bpf.aggregates import Aggregates, Mixed
from ig.bpf.attach import EVENTS_BYTES, PATHS_BYTES
from ig.bpf.loader import Probes
from ig.bpf.ringbuf import RecordRing, Ring
from ig.bpf.syscalls import (
    call_raw_tracepoint,
    map_delete,
    map_keys,
    map_update,
    recursion_misses,
)
from ig.errors import KernelRefused
from ig.kernel.cgroupfs import Paths, decode

_MOST_SOCKETS = 131072  # the size of sockets in tcp.h
_PATH = struct.Struct("=Q8x")  # struct cgroup_path in ig.h, up to its text


_MISSES_INTERVAL = 0.5
"""Seconds between requests for the number of misses while there are no records."""
_MISSES = "BPF recursion misses (upper bound)"


@functools.cache
def ring_full() -> str:
    """Return the cause of what is lost because a ring buffer was full."""
    return c_text.losses(c_text.read("ig.h"))["LOST_RING"]


class Source:
    """The reading end of a program. Closing it detaches and unloads the program.

    Raises KernelRefused where what is lost could not be counted, or nothing be chosen.
    """

    def __init__(self, probes: Probes, keep_counts: bool = False) -> None:
        """With `keep_counts`, what is counted goes on after it was read."""
        self._probes = probes
        self._preemptible = probes.backups_attached  # then from the start
        self._refused = False  # to attach the backups
        self._next_request = 0.0  # for misses, by time.monotonic()
        self._losses = c_text.losses(probes.text)
        self._verdicts = c_text.enum(probes.text, "verdict")
        self._records = _records(probes, keep_counts)
        self.fields = self._records.fields
        self._paths = Ring(probes.maps["cgroup_paths"], PATHS_BYTES)
        self._page = mmap.mmap(probes.maps["lost"], mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._counters = memoryview(self._page).cast("Q")
        # No cgroup has the id 0; what the kernel refuses is better known now than later.
        self.decide(0, keep=True)
        self.lost()

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Unpack the records submitted since the last call; their first field is the time."""
        if self._misses_are_due() and any(map(recursion_misses, self._probes.primaries)):
            try:
                self.attach_backups()
            except KernelRefused:
                self._refused = True
        return self._records.records()

    def _misses_are_due(self) -> bool:
        """Return whether to ask for misses now. To ask takes a third of an idle step's time."""
        if self._probes.backups_attached:
            return False
        now = time.monotonic()
        quiet = isinstance(self._records, RecordRing) and self._records.empty
        if quiet and now < self._next_request:
            return False
        self._next_request = now + _MISSES_INTERVAL
        return True

    @property
    def counts(self) -> bool:
        """Whether there are records only after `collect`."""
        return self._probes.aggregate

    def collect(self) -> None:
        """Have what a program has counted until now come with the next records."""
        if not isinstance(self._records, RecordRing):
            self._records.collect()

    def warning(self) -> str:
        """Return how much was counted without its key, empty if nothing."""
        count = self._counter("OTHER_KEYS")
        return f"{count} events counted as `other` so far: no room for their keys" if count else ""

    def cgroups(self) -> Iterator[tuple[int, Paths]]:
        """Yield (id, paths) of cgroups whose paths the kernel has sent since the last call."""
        for piece in self._paths.pieces():
            (identifier,) = _PATH.unpack_from(piece)
            yield identifier, decode(piece[_PATH.size :])

    def decide(self, cgroup: int, keep: bool) -> None:
        """Write into the kernel whether a cgroup's events are wanted."""
        self._decide(cgroup, "KEEP" if keep else "DROP")

    def forget(self, cgroup: int) -> None:
        """Make the kernel send the cgroup's path again with its next event."""
        self._decide(cgroup, "FORGET")

    def _decide(self, cgroup: int, verdict: str) -> None:
        number = self._verdicts[verdict]
        try:
            call_raw_tracepoint(self._probes.decide, cgroup, number)
        except KernelRefused:
            # Linux before 5.10 runs no such program (1b4d60ec162f "bpf: Enable BPF_PROG_TEST_RUN
            # for raw_tracepoint").
            cgroups, key = self._probes.maps["cgroups"], struct.pack("=Q", cgroup)
            if verdict == "FORGET":
                map_delete(cgroups, key)
            else:
                map_update(cgroups, key, struct.pack("=I", number))

    def lost(self) -> Mapping[str, int]:
        """Return how many events could not be delivered so far, by cause; those of 0 left out."""
        counts = {words: self._counter(name) for name, words in self._losses.items() if words}
        skipped = sum(map(recursion_misses, self._probes.unpaired))
        if self._refused or self._preemptible:
            hidden = sum(map(recursion_misses, self._probes.primaries))
            skipped += max(hidden - self._counter("BACKUP_HANDLED"), 0)
        counts[_MISSES] = skipped
        return {cause: count for cause, count in counts.items() if count}

    @property
    def causes(self) -> Sequence[str]:
        """The causes by which events can be lost."""
        return [*filter(None, self._losses.values()), _MISSES]

    def missed_signals(self) -> int:
        """Return how often the kernel has skipped a program of signals (see SIGNAL_HOOK)."""
        return sum(map(recursion_misses, self._probes.signals))

    def signals_are_complete(self) -> bool:
        """Return whether the kernel gives reasons for its drops, and skipped no signal so far."""
        return self._probes.tracepoints.get("kfree_skb", False) and not self.missed_signals()

    def _counter(self, name: str) -> int:
        names = list(self._losses)
        return self._counters[names.index(name)] if name in names else 0

    def attach_backups(self) -> None:
        """See that interrupts hide nothing any more, and look for what they have hidden."""
        self._probes.attach_backups()
        program = self._probes.backups.get("inet_sock_set_state")
        sockets = self._probes.maps.get("sockets")
        states = _states(self._probes.text)
        if program and sockets and "RECHECK" in states:  # those of tcp.h, not of another package
            for socket in map_keys(sockets, _MOST_SOCKETS):
                call_raw_tracepoint(program, socket, states["SYN_SENT"], states["RECHECK"])

    def close(self) -> None:
        """Detach the program and give its memory back."""
        self._counters.release()
        self._page.close()
        self._records.close()
        self._paths.close()
        self._probes.close()


def _states(text: str) -> Mapping[str, int]:
    """Return the values of `enum state`, none if there is no such."""
    try:
        return c_text.enum(text, "state")
    except ValueError:
        return {}


def _records(probes: Probes, keep_counts: bool) -> Aggregates | RecordRing | Mixed:
    text = probes.text
    if not probes.aggregate:
        event = c_text.parse(text, c_text.event(text))
        return RecordRing(probes.maps["events"], event, EVENTS_BYTES)
    key, value = c_text.parse(text, "key"), c_text.parse(text, "value", arrays=True)
    counts = Aggregates(probes.maps, key, value, keep_counts)
    if not probes.reports:
        return counts
    event = c_text.parse(text, c_text.event(text))
    return Mixed(counts, RecordRing(probes.maps["events"], event, EVENTS_BYTES))
