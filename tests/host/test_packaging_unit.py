"""The unit of packaging/ under a real systemd."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest

from tests.features import has_fexit
from tests.host.daemonset import PACKAGING
from tests.host.namespace import PYTHON
from tests.host.systemd import Systemd, some_systemd
from tests.host.waiting import PATIENCE, until

pytestmark = pytest.mark.engine
UNIT = PACKAGING / "ig-export.service"
READ = "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1]).read().decode())"
CONNECT = """
import socket
for address in ("255.255.255.255", "127.0.0.1"):  # failing before a SYN, and refused
    for _ in range(5):
        with socket.socket() as client:
            assert client.connect_ex((address, 9))
"""


@pytest.fixture
def systemd(request: pytest.FixtureRequest) -> Iterator[Systemd]:
    with some_systemd(partial(request.getfixturevalue, "engine")) as manager:
        manager.install(UNIT)
        options = 'IG_OPTIONS="--prometheus 127.0.0.1:9435 --interval 0.2 --host"\n'
        manager.write("/etc/default/ig-export", options)
        yield manager


def page(systemd: Systemd, name: str) -> str:
    return systemd.run(*PYTHON, "-c", READ, f"http://127.0.0.1:9435/{name}")


def test_unit_starts_comes_back_when_killed_reloads_and_stops(systemd: Systemd) -> None:
    def journal() -> str:
        return systemd.run("journalctl", "--unit", UNIT.name)

    systemd.run("systemctl", "start", UNIT.name)
    assert systemd.value(UNIT.name, "ActiveState") == "active"
    assert page(systemd, "healthz") == "ok\n\n"
    until(lambda: "serving http://127.0.0.1:9435/metrics" in journal(), "its message")
    systemd.run(*PYTHON, "-c", CONNECT)
    until(lambda: 'port="9",outcome="refused"} 5\n' in page(systemd, "metrics"), "the counts")
    failed = re.findall(r'port="9",outcome="failed"} (\d+)\n', page(systemd, "metrics"))
    first = systemd.value(UNIT.name, "MainPID")
    systemd.run("systemctl", "reload", UNIT.name)
    assert page(systemd, "healthz") == "ok\n\n"
    assert systemd.value(UNIT.name, "MainPID") == first
    systemd.run("kill", "-KILL", first)
    until(
        lambda: (
            systemd.value(UNIT.name, "ActiveState") == "active"
            and systemd.value(UNIT.name, "MainPID") not in ("0", first)
        ),
        "it to run again",
        4 * PATIENCE,
    )
    assert page(systemd, "healthz") == "ok\n\n"
    systemd.run("systemctl", "stop", UNIT.name)
    assert systemd.value(UNIT.name, "Result") == "success"
    # Debian's kernels deny tracepoints of system calls then: see packaging/README.md.
    paranoid = int(systemd.run("cat", "/proc/sys/kernel/perf_event_paranoid"))
    warnings = [line for line in journal().splitlines() if "warning" in line]
    assert bool(warnings) is (paranoid > 2 and not has_fexit())
    assert failed == ([] if warnings else ["5"])
    assert all("partial coverage: connects that fail before a SYN" in line for line in warnings)


def test_unit_exposes_little(systemd: Systemd) -> None:
    printed = systemd.run("systemd-analyze", "security", UNIT.name)
    level = re.search(rf"Overall exposure level for {UNIT.name}: ([\d.]+)", printed)
    assert level, printed
    assert float(level[1]) < 4, printed
