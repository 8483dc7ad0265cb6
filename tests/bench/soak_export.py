"""Export the counts of 5,000 connections a second: `python -m tests.bench.soak_export`, as root.

`make soak` calls it. The counts are read by HTTP every fifteen seconds, as Prometheus does, and
must be those that the load has made; the process's CPU time and memory must stay within bounds.
Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.bench.bench_trace import IG, cpu_seconds
from tests.bench.rows import Row, show
from tests.bench.soak import GROWTH, Sample, sample
from tests.host.waiting import PATIENCE, until

RATE, EVERY = 5_000, 15
PORT = 17_432
"""At which the load listens: the label of its series. No other test uses it."""
LOAD = (sys.executable, str(Path(__file__).with_name("connect_rate.py")), str(RATE), str(PORT))
_SERVING = re.compile(r"serving (http://\S+)")
_CONNECTS = re.compile(rf'^ig_tcp_connects_total{{[^}}]*port="{PORT}"[^}}]*}} ([\d.e+]+)$', re.M)


def counted(address: str) -> int:
    """Return how many attempts to connect to the load's port the exporter has counted."""
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        return sum(int(float(each)) for each in _CONNECTS.findall(answer.read().decode()))


def address_of(exporter: subprocess.Popen[str]) -> str:
    """Wait for the exporter's address. Raises AssertionError if it ends."""
    assert exporter.stderr
    for line in exporter.stderr:
        if found := _SERVING.search(line):
            return found[1]
        print(line, end="", file=sys.stderr)
    raise AssertionError("ig export ended")


def watch(exporter: subprocess.Popen[str], address: str, seconds: int) -> Sequence[Sample]:
    """Sample the exporter each second, and read its counts every fifteen."""
    began, samples = time.monotonic(), []
    while (passed := time.monotonic() - began) < seconds:
        assert exporter.poll() is None, "ig export ended"
        samples.append(sample(exporter.pid, began))
        if len(samples) % EVERY == 0:
            print(f"{passed:.0f} s: {counted(address)} connections, ", end="", file=sys.stderr)
            print(f"{samples[-1].megabytes:.0f} MB", file=sys.stderr)
        time.sleep(1)
    return samples


def soak(seconds: int) -> bool:
    """Run it, and print what was found; return whether all is within bounds."""
    line = [str(IG), "export", "--host", "--prometheus", "127.0.0.1:0"]
    exporter = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    try:
        address = address_of(exporter)
        load = subprocess.Popen(LOAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        before, began = cpu_seconds(exporter.pid), time.monotonic()
        try:
            samples = watch(exporter, address, seconds)
            percent = (cpu_seconds(exporter.pid) - before) / (time.monotonic() - began) * 100
            said, _ = load.communicate("", timeout=PATIENCE)
        finally:
            load.kill()
        made = int(said.split()[-1])
        with suppress(AssertionError):
            until(lambda: counted(address) >= made, "the last connections to be counted")
        found = counted(address)
    finally:
        exporter.terminate()
        exporter.wait(PATIENCE)
    settled = [each.megabytes for each in samples[len(samples) // 3 :]]
    half = len(settled) // 2
    growth = max(settled[half:]) - max(settled[:half])
    rows = [
        Row(f"connections in {seconds} s, one each", "", [made]),
        Row("not counted, or counted twice", "", [abs(made - found)], 0),
        Row("CPU of `ig export`", "%", [percent], 2),
        Row("resident, at most", "MB", [max(each.megabytes for each in samples)], 60),
        Row("resident, growth in the last third", "MB", [growth], GROWTH),
    ]
    show(rows)
    return not any("MISSED" in row.cells()[2] for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    return 0 if soak(parser.parse_args().seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
