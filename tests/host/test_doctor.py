"""`ig doctor`: the truth, on a host where all works, and where little or nothing does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from ig.causes.signals import SEEN_BY
from tests.features import has_drop_reasons
from tests.host.engine import Engine
from tests.host.fake_engine import FakeEngine
from tests.host.namespace import PROGRAMS, PYTHON
from tests.host.tracer import IG, ordinary_user
from tests.host.waiting import PATIENCE, until

CHECKOUT = Path(__file__).parents[2]
TRACES = (
    "gadget trace_bind",
    "gadget trace_tcp",
    "gadget trace_tcpconnect",
    "gadget trace_tcpretrans",
)
SELF_TEST = ("reading kernel memory", "ring buffer", "101 own connects seen")
RAW = (
    "inet_sock_set_state",
    "tcp_destroy_sock",
    "tcp_retransmit_skb",
    "tcp_retransmit_synack",
)
CALLS = ("accept", "accept4", "bind", "connect")

Findings = Mapping[str, tuple[str, str]]


def findings(lines: Iterable[str]) -> Findings:
    each = map(json.loads, lines)
    return {finding["check"]: (finding["result"], finding["found"]) for finding in each}


def doctor(*arguments: object, within: Sequence[str] = ()) -> tuple[Findings, str, int]:
    """Return what it found (result and words, by check), what it said besides, its exit code."""
    done = subprocess.run(
        [*within, str(IG), "doctor", "-o", "jsonl", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    return findings(done.stdout.splitlines()), done.stderr, done.returncode


def refused(*rules: str) -> list[str]:
    return [*PYTHON, str(PROGRAMS / "refuse.py"), *rules, "--"]


def results(found: Findings, *checks: str) -> set[str]:
    return {found[check][0] for check in checks}


def what_shows_no_causes() -> set[str]:
    """Return the checks that fail because this kernel has no such signal of a failure's cause."""
    functions = {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines()}
    missing = {name for name in SEEN_BY if f"__traceiter_{name}" not in functions}
    if not has_drop_reasons():
        missing.add("kfree_skb")
    checks = {f"tracepoint {name}" for name in missing}
    return {*checks, "causes of failures (--why)"} if missing else set()


def test_doctor_says_yes_to_all_but_missing_runtimes_where_all_works(tmp_path: Path) -> None:
    found, said, code = doctor("--docker-socketpath", tmp_path / "none")
    assert (said, code) == ("", 0)
    assert {check for check, (result, _) in found.items() if result != "yes"} <= {
        *(f"runtime {name}" for name in ("docker", "containerd", "podman", "cri-o")),
        *what_shows_no_causes(),
    }
    assert found["runtime docker"] == ("no", f"{tmp_path}/none: No such file or directory")
    assert found["101 own connects seen"] == ("yes", "101 seen, 0 lost")
    calls = {f"tracepoint syscalls:sys_exit_{name}" for name in CALLS}
    all_calls = {"tracepoint raw_syscalls:sys_exit"} & set(found)
    all_calls |= {check for check in found if check.startswith("tracepoint fexit:")}
    assert set(found) >= {
        *SELF_TEST,
        *TRACES,
        *(f"tracepoint {name}" for name in RAW),
        *(all_calls or calls),  # where tracepoints can be preempted, or elsewhere
        "gadget snapshot_socket",
        "kernel's types (BTF)",
        "BCC",
        "tracefs",
        "sock_diag",
        "cgroups",
    }
    assert list(found.items())[-1] == ("verdict", ("yes", "all gadgets work"))
    assert found["containers' cgroups"][0] == "yes"


def test_runtime_is_absent_missing_or_slow(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "docker.sock", mute="*")
    try:
        missing = ("--podman-socketpath", tmp_path / "none")
        found, said, code = doctor("--docker-socketpath", engine.socket, *missing)
    finally:
        engine.close()
    assert (said, code) == ("", 0)
    assert found["runtime docker"] == ("slow", f"{engine.socket}: no answer in 2 s")
    assert found["runtime podman"][0] == "no"
    usual = Path("/run/crio/crio.sock")
    assert (found["runtime cri-o"][0] == "absent") is not usual.exists()


def test_findings_are_reported_at_once_and_go_on_below_where_they_do_not_fit() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    with subprocess.Popen([IG, "doctor"], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        early = [process.stdout.readline() for _ in range(3)]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert until(children.read_text, "a program to be loaded")  # the rest is still to come
        lines = process.stdout.read().decode().splitlines()
        assert process.wait(PATIENCE) == 0
    assert early[0].startswith(b"CHECK")
    assert early[2].startswith(b"BCC")
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(" " * 40) for line in lines)
    assert not any("…" in line for line in lines)


def test_runtime_that_answers_is_reported_with_its_version_and_containers(engine: Engine) -> None:
    engine.idle("one")
    found, _, code = doctor("--docker-socketpath", engine.socket)
    result, words = found["runtime docker"]
    assert (result, code) == ("yes", 0)
    version = engine.client.version()["Version"]
    running = len(engine.client.containers.list())
    path = engine.socket.removeprefix("unix://")
    assert words.startswith(f"{version} at {path}, {running} containers running; ")


@pytest.mark.anywhere
@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    ("rule", "bad", "degraded"),
    [
        ("bpf=EPERM", {*SELF_TEST, *TRACES}, set()),
        ("bpf=ENOSYS", {*SELF_TEST, *TRACES}, set()),
        (
            "perf_event_open=EPERM",
            {"gadget trace_bind", "gadget trace_tcp"},
            {"gadget trace_tcpconnect"},
        ),
        ("socket:16=EPERM", {"sock_diag"}, {"gadget snapshot_socket"}),
        ("setns=EPERM", set(), {"gadget snapshot_socket"}),
    ],
)
def test_refused_calls_are_reported_and_the_rest_works(
    rule: str, bad: set[str], degraded: set[str]
) -> None:
    found, said, code = doctor(within=refused(rule))
    assert (said, code) == ("", 1)
    checks = {*SELF_TEST, *TRACES, "sock_diag", "gadget snapshot_socket"}
    assert {check for check in checks if found[check][0] == "no"} == bad
    assert {check for check in checks if found[check][0] == "degraded"} == degraded


def test_ordinary_user_learns_what_works_and_what_needs_root() -> None:
    found, said, code = doctor(within=ordinary_user())
    assert (said, code) == ("", 1)
    assert results(found, *SELF_TEST, *TRACES) == {"no"}
    assert all("needs root" in found[check][1] for check in (*SELF_TEST, *TRACES))
    assert found["gadget snapshot_socket"] == (
        "degraded",
        "only its own network namespace is visible",
    )
    assert results(found, "kernel's types (BTF)", "BCC", "sock_diag", "cgroups") == {"yes"}


def test_doctor_reports_the_truth_in_a_container_without_privileges(engine: Engine) -> None:
    folders = {str(CHECKOUT), sys.prefix}
    container = engine.run(
        "doctor",
        [IG, "doctor", "-o", "jsonl"],
        volumes={folder: {"bind": folder, "mode": "ro"} for folder in folders},
    )
    container.reports.all()
    code = container.container.wait(timeout=PATIENCE)["StatusCode"]
    found = findings(container.reports.lines)
    assert code == 1
    assert results(found, *SELF_TEST, *TRACES) == {"no"}
    result, words = found["gadget snapshot_socket"]
    assert result == "degraded"
    assert "PID namespace" in words
    assert results(found, "BCC", "sock_diag") == {"yes"}
