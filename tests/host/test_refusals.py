"""What a kernel or a policy may refuse, refused on purpose: `ig` says what, why and what works.

The refusals are made by seccomp in the process that becomes `ig` (programs/refuse.py).
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.features import has_fexit
from tests.host.namespace import PROGRAMS, PYTHON, Namespace
from tests.host.tracer import IG, in_own_mounts
from tests.host.waiting import PATIENCE, until

MAP_CREATE, UPDATE, PROG_LOAD, RUN, OBJ_INFO, BTF_LOAD = 0, 2, 5, 10, 15, 18
RAW_TRACEPOINT_OPEN = 17
NETLINK = 16


def refused(*rules: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run `ig COMMAND` to its end, with these calls refused (see refuse.py)."""
    return subprocess.run(
        [*PYTHON, str(PROGRAMS / "refuse.py"), *rules, "--", str(IG), *command.split()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.anywhere
@pytest.mark.parametrize("gadget", ["tcpconnect", "tcp", "bind"])
@pytest.mark.parametrize(
    ("rules", "what"),
    [
        (("bpf=EPERM",), "map"),
        (("bpf=ENOSYS",), "map"),
        ((f"bpf:{MAP_CREATE}=EACCES",), "map"),
        ((f"bpf:{PROG_LOAD}=EPERM",), "Cannot load"),
        ((f"bpf:{RUN}=EPERM", f"bpf:{UPDATE}=EPERM"), "write to a BPF map"),
        ((f"bpf:{OBJ_INFO}=EPERM",), "miss count"),
    ],
)
def test_trace_that_cannot_be_says_what_was_refused_and_why(
    gadget: str, rules: tuple[str, ...], what: str
) -> None:
    done = refused(*rules, command=f"trace {gadget} --host -t 0.1")
    assert (done.returncode, done.stdout) == (1, "")
    reason = {
        "EPERM": "Operation not permitted",
        "EACCES": "Permission denied",
        "ENOSYS": "Function not implemented",
    }[rules[0].partition("=")[2]]
    first, *rest = done.stderr.splitlines()
    assert what in first
    assert reason in first
    assert "seccomp" in rest[-1] or "seccomp" in rest[-2]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("gadget", "hook"),
    [("tcpconnect", "inet_sock_set_state"), ("tcp", "inet_sock_set_state")],
)
def test_hook_that_a_gadget_cannot_do_without_is_named(gadget: str, hook: str) -> None:
    rule = f"bpf:{RAW_TRACEPOINT_OPEN}=EPERM"
    done = refused(rule, command=f"trace {gadget} --host -t 0.1")
    assert done.returncode == 1
    assert f"raw tracepoint {hook}: Operation not permitted" in done.stderr
    assert "`ig snapshot socket`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("gadget", "hook"), [("tcp", "sys_exit_accept"), ("bind", "sys_exit_bind")]
)
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_tracepoint_that_a_gadget_cannot_do_without_is_named(
    gadget: str, hook: str, error: str
) -> None:
    done = refused(f"perf_event_open={error}", command=f"trace {gadget} --host -t 0.1 -o json")
    if has_fexit():  # then the functions of these calls are traced
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 1
    assert f"tracepoint syscalls:{hook}: " in done.stderr
    assert "`ig snapshot socket`" in done.stderr
    assert "Traceback" not in done.stderr


def test_hook_that_is_optional_is_reported_if_refused(
    namespace: Namespace,
) -> None:
    command = f"trace tcpconnect --host -o json -F netns=={namespace.inode} --max-events 1 -t 5"
    refuse = [*PYTHON, str(PROGRAMS / "refuse.py"), "perf_event_open=EPERM", "--"]
    ig = subprocess.Popen(
        [*refuse, str(IG), *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ig:
        while ig.poll() is None:
            namespace.connect("127.0.0.1", 9)
        printed, said = ig.communicate(timeout=PATIENCE)
    assert json.loads(printed)["outcome"] == "refused"
    if has_fexit():
        assert said == ""
        return
    assert "warning: partial coverage: connects that fail before a SYN" in said
    assert "tracepoint syscalls:sys_exit_connect: Operation not permitted" in said


@pytest.mark.needs("fexit")
@pytest.mark.parametrize("error", ["EACCES", "ENOSYS"])
def test_calls_are_traced_by_their_functions_where_their_tracepoints_are_refused(
    namespace: Namespace, tmp_path: Path, error: str
) -> None:
    namespace.ip("route", "add", "prohibit", "10.239.17.0/24")
    ready = tmp_path / "ready"
    port = namespace.serve()
    command = [
        *(*PYTHON, str(PROGRAMS / "refuse.py"), f"perf_event_open={error}", "--"),
        *(str(IG), "trace", "tcp", "--host", "-o", "json", "-F", f"netns=={namespace.inode}"),
        *("--max-events", "9", "--ready-file", str(ready)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ig:
        until(lambda: ready.exists() or ig.poll() is not None, "ig to be ready")
        namespace.connect("10.239.17.7", 443)
        namespace.connect("127.0.0.1", port, "--count", 2)
        printed, said = ig.communicate(timeout=PATIENCE)
    assert (said, ig.returncode) == (b"", 0)
    events = Counter(
        (event["type"], event["outcome"]) for event in map(json.loads, printed.splitlines())
    )
    assert events == {
        ("connect", "failed"): 1,
        ("connect", "established"): 2,
        ("accept", "established"): 2,
        ("close", ""): 4,
    }


@pytest.mark.parametrize(
    "rule",
    [
        "memfd_create=ENOSYS",
        "pwritev2=ENOSYS",
        f"bpf:{BTF_LOAD}=EPERM",
        f"bpf:{RUN}=EPERM",
        f"bpf:{UPDATE}=EPERM",
    ],
)
def test_hooks_that_tracing_can_do_without_are_not_worth_a_word(rule: str) -> None:
    done = refused(rule, command="trace tcpconnect --host -F comm==nobody -t 0.1 -o json")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_privileges_that_cannot_be_given_up_are_reported_with_what_to_do() -> None:
    done = refused("capset=EPERM", command="trace tcpconnect --host -t 0.1")
    assert done.returncode == 1
    assert "--keep-privileges" in done.stderr
    done = refused(
        "capset=EPERM",
        command="trace tcpconnect --host -F dst.port==1 -t 0.1 --keep-privileges -o json",
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.anywhere
@pytest.mark.parametrize("error", ["EPERM", "EAFNOSUPPORT"])
def test_sockets_are_read_from_proc_where_netlink_is_refused(
    namespace: Namespace, error: str
) -> None:
    port = namespace.serve()
    command = f"snapshot socket --host -o json -F netns=={namespace.inode}"
    done = refused(f"socket:{NETLINK}={error}", command=command)
    assert done.returncode == 0
    assert "/proc/PID/net/tcp" in done.stderr
    assert [each["src"]["port"] for each in json.loads(done.stdout)] == [port]


@pytest.mark.anywhere
def test_namespaces_that_may_not_be_entered_are_read_from_proc(
    namespace: Namespace,
) -> None:
    port = namespace.serve()
    command = f"snapshot socket --host -o json -F netns=={namespace.inode}"
    done = refused("setns=EPERM", command=command)
    assert done.returncode == 0
    assert [each["src"]["port"] for each in json.loads(done.stdout)] == [port]
    assert "no permission to enter a network namespace" in done.stderr


@pytest.mark.anywhere
def test_kernel_without_types_is_reported_with_what_would_help() -> None:
    trace = f"env IG_DEBUG= {IG} trace tcpconnect --host -t 0.1"
    done = in_own_mounts(f"mount -t tmpfs none /sys/kernel/btf && exec {trace}")
    assert done.returncode == 1
    assert "CONFIG_DEBUG_INFO_BTF" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.anywhere
@pytest.mark.parametrize("call", ["mount", "unshare"])
def test_tracepoints_that_cannot_be_reached_are_reported_with_what_would_help(call: str) -> None:
    refuse = f"{PYTHON[0]} {PROGRAMS}/refuse.py {call}=EPERM --"
    script = (
        "for point in /sys/kernel/tracing /sys/kernel/debug; do"
        " while umount $point 2>/dev/null; do :; done; done;"
        f"exec {refuse} {IG} trace bind --host -t 0.1"
    )
    done = in_own_mounts(script)
    assert (done.returncode, done.stdout) == (1, "")
    assert "tracefs" in done.stderr
    assert "mount -t tracefs" in done.stderr
    assert "`ig snapshot socket`" in done.stderr
    assert "Traceback" not in done.stderr
