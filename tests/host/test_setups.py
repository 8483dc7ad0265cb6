"""Kernels that are set up in another way than most; each test needs one such set-up.

`make kernels` boots each of them (see tests/kernels/setups.py).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.features import has_mounted
from tests.host.namespace import Namespace
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE

Start = Callable[..., Tracer]
GADGETS = ("trace tcpconnect", "trace tcp", "trace bind")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(IG), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def refusal(gadget: str) -> str:
    """Start a gadget that cannot work here, and give what it said of that."""
    done = run(*gadget.split(), "--host", "-t", 1)
    assert (done.stdout, done.returncode) == ("", 1)
    assert "Traceback" not in done.stderr
    return done.stderr


def findings() -> tuple[dict[str, str], str]:
    """Return what `ig doctor` found by what it checked, and what it said besides."""
    done = run("doctor", "-o", "json")
    return {each["check"]: each["result"] for each in json.loads(done.stdout)}, done.stderr


def sockets_are_shown(namespace: Namespace) -> bool:
    """Say whether `ig snapshot socket` shows a listener of the namespace, and nothing else."""
    port = namespace.serve()
    only = ("-F", f"netns=={namespace.inode}", "-F", "state==LISTEN")
    done = run("snapshot", "socket", "--host", "-o", "json", *only)
    assert (done.stderr, done.returncode) == ("", 0)
    return [socket["src"]["port"] for socket in json.loads(done.stdout)] == [port]


def connects_are_traced(start_ig: Start, namespace: Namespace) -> bool:
    """Say whether `ig trace tcpconnect` tells all of a few connects."""
    only = ("-F", f"netns=={namespace.inode}")
    tracer = start_ig("trace", "tcpconnect", "--host", "-o", "json", *only)
    namespace.connect("127.0.0.1", 9, "--count", 11)
    events, said, code = tracer.stop()
    assert (said, code) == ("", 0)
    return [event["outcome"] for event in events] == ["refused"] * 11


@pytest.mark.needs("confidentiality")
@pytest.mark.parametrize("gadget", GADGETS)
def test_kernel_that_lets_nobody_trace_is_named_as_the_reason(gadget: str) -> None:
    said = refusal(gadget)
    assert "locked down for confidentiality" in said
    assert "ig snapshot socket" in said
    assert "mount -t tracefs" not in said


@pytest.mark.needs("confidentiality")
def test_doctor_says_that_nobody_may_trace_and_sockets_are_shown(namespace: Namespace) -> None:
    found, said = findings()
    assert said == ""
    traced = {check: result for check, result in found.items() if check.startswith("gadget trace")}
    assert set(traced.values()) == {"no"}
    assert found["gadget snapshot_socket"] == "yes"
    assert sockets_are_shown(namespace)


@pytest.mark.needs("integrity")
def test_kernel_locked_down_for_integrity_is_traced_as_any(
    start_ig: Start, namespace: Namespace
) -> None:
    found, _ = findings()
    assert {found[check] for check in found if check.startswith("gadget ")} == {"yes"}
    assert connects_are_traced(start_ig, namespace)


@pytest.mark.needs("hidden BTF")
@pytest.mark.parametrize("gadget", GADGETS)
def test_kernel_without_types_is_reported_with_what_would_help(gadget: str) -> None:
    said = refusal(gadget)
    assert "BTF" in said
    assert "CONFIG_DEBUG_INFO_BTF" in said
    assert "libbpf:" not in said


@pytest.mark.needs("hidden BTF")
def test_doctor_says_that_types_are_missing_in_its_own_words_and_sockets_are_shown(
    namespace: Namespace,
) -> None:
    found, said = findings()
    assert said == ""
    assert found["kernel's types (BTF)"] == "no"
    assert sockets_are_shown(namespace)


@pytest.mark.needs("unmounted tracefs")
def test_tracefs_that_is_not_mounted_is_not_needed_and_nothing_is_mounted(
    start_ig: Start, namespace: Namespace
) -> None:
    assert connects_are_traced(start_ig, namespace)
    assert not has_mounted("tracefs")


@pytest.mark.needs("cgroup v1 alone")
def test_cgroup_v1_alone_is_found_by_doctor_and_tracing_works(
    start_ig: Start, namespace: Namespace
) -> None:
    assert findings()[0]["cgroups"] == "yes"
    assert connects_are_traced(start_ig, namespace)
