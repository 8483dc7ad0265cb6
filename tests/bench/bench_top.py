"""What a refresh of `ig top tcp` costs: run as root by `make bench`, prints a table."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.bench_snapshot import LOAD, running
from tests.bench.bench_trace import cpu_seconds
from tests.bench.rows import Row, show
from tests.host.terminal import Terminal
from tests.host.waiting import until

CONNECTS = (sys.executable, str(Path(__file__).with_name("connect_rate.py")))
CONNECTIONS, RATE, REFRESHES = 20_000, 5_000, 10
CLOCK = re.compile(r"\d\d:\d\d:\d\d")


def clock(terminal: Terminal) -> str:
    """Return the time of the interval that is on the screen."""
    match = CLOCK.search(terminal.screen[0]) if terminal.screen else None
    return match[0] if match else ""


def refreshed(terminal: Terminal) -> float:
    """Wait for the next interval to be shown; return the CPU seconds that were used until then."""
    before = clock(terminal)
    until(lambda: clock(terminal) not in ("", before), "a refresh")
    return cpu_seconds(terminal.process.pid)


def measure() -> Iterator[Row]:
    inside = ("unshare", "--net")
    with (
        running(*inside, *LOAD, str(2 * CONNECTIONS)),
        running(*CONNECTS, str(RATE)),
    ):
        terminal = Terminal("top", "tcp", "--host", "--interval", "2", size=(120, 40))
        try:
            refreshed(terminal)
            began, used = time.monotonic(), refreshed(terminal)
            spent = []
            for _ in range(REFRESHES):
                now = refreshed(terminal)
                spent.append(1000 * (now - used))
                used = now
            share = 100 * sum(spent) / 1000 / (time.monotonic() - began)
            status = Path(f"/proc/{terminal.process.pid}/status").read_text()
            (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        finally:
            terminal.kill()
    what = f"{CONNECTIONS} open connections, both ends here, {RATE} new a second"
    spent.sort()
    detail = f"{spent[0]:.0f} to {spent[-1]:.0f}, {share:.1f} % of a CPU"
    yield Row(f"a refresh of `ig top tcp`: {what}", "ms", [spent[len(spent) // 2]], 100, detail)
    yield Row("the same, memory", "MB", [int(peak) / 1024], 120)


def main() -> None:
    show(measure())


if __name__ == "__main__":
    main()
