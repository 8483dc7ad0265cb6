"""What a kernel may lack without being wrong: features that `@pytest.mark.needs(…)` names."""

import ctypes
import errno
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from ig.bpf.attach import PREEMPTED, import_bcc
from ig.bpf.btf import FUNCTION, STRUCT, Btf
from ig.bpf.syscalls import attach_raw_tracepoint, library, load_fexit
from ig.errors import KernelRefused

IPPROTO_MPTCP = 262
_ENOUGH, _SEEN_WITHIN = 5, 3.0  # switches of tasks, and seconds in which they happen
IO_URING_SETUP = 425  # the same on every architecture since Linux 5.1


@cache
def has_netem() -> bool:
    """Say whether packets can be delayed (root only), by delaying them in a namespace."""
    name = f"igt-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        tc = ["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        return subprocess.run(tc, capture_output=True, check=False).returncode == 0
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@cache
def has_tc() -> bool:
    """Say whether packets can be dropped by a filter of traffic control (root only)."""
    name = f"igt-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        match = ("ingress", "protocol", "ip", "u32", "match", "ip", "protocol", "6", "0xff")
        commands = (
            ("tc", "-n", name, "qdisc", "add", "dev", "lo", "clsact"),
            ("tc", "-n", name, "filter", "add", "dev", "lo", *match, "action", "drop"),
        )
        return not any(
            subprocess.run(each, capture_output=True, check=False).returncode for each in commands
        )
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def has_bpf_lsm() -> bool:
    """Say whether BPF programs may deny as security modules do."""
    try:
        return "bpf" in Path("/sys/kernel/security/lsm").read_text().split(",")
    except OSError:
        return False


@cache
def has_io_uring() -> bool:
    """Say whether io_uring exists and is allowed; asked with no parameters, it answers EFAULT."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(IO_URING_SETUP, 1, None)
    return ctypes.get_errno() == errno.EFAULT


def is_locked_down(level: str) -> bool:
    """Say whether the kernel is locked down at this level."""
    try:
        return f"[{level}]" in Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return False


def has_mounted(kind: str) -> bool:
    """Say whether a file system of this kind is mounted."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[2] == kind for line in lines)


@cache
def has_mptcp() -> bool:
    """Say whether there are MPTCP sockets."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError:
        return False
    return True


def counts_mptcp() -> bool:
    """Say whether an MPTCP socket counts the bytes of all its subflows: since Linux 6.5."""
    btf = Btf()
    found = btf.find("mptcp_sock", STRUCT)
    return found is not None and any(name == "bytes_sent" for name, *_ in btf.members(found))


def collector() -> Path:
    """Return the OpenTelemetry Collector that scripts/setup builds where Go is."""
    return Path(os.environ.get("PREFIX", "/usr/local")) / "lib" / "ig" / "otelcol" / "otelcol"


def apiserver() -> Path:
    """Return the kube-apiserver that `make apiserver` builds."""
    return Path(os.environ.get("PREFIX", "/usr/local")) / "lib" / "ig" / "apiserver" / "apiserver"


def has_drop_reasons() -> bool:
    """Say whether the kernel says why it drops a segment: since Linux 5.17."""
    with suppress(KernelRefused):
        return bool(Btf().enum("skb_drop_reason"))
    return False  # it has no types (BTF)


@cache
def preempts_programs() -> bool:
    """Say whether a task may be preempted in a BPF program of ours: since Linux 7.0.

    The kernel skips the same program for other tasks on that processor meanwhile, and counts that.
    """
    return Btf().find_id(PREEMPTED, FUNCTION) > 0


@cache
def has_fexit() -> bool:
    """Say whether programs at the ends of functions may be attached (root only): since 5.12."""
    btf = Btf()
    if not btf.find_id("bpf_tramp_image", STRUCT):
        return False  # where tasks sleep in the function, it may not be detached
    nothing = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)  # r0 = 0; exit
    try:
        program = load_fexit("nothing", nothing, btf.find_id("security_sock_graft", FUNCTION))
    except OSError:
        return False
    link = int(library().bpf_raw_tracepoint_open(None, program))
    os.close(program)
    if link >= 0:
        os.close(link)
    return link >= 0


_SWITCHES = b"""
typedef unsigned int u32;
typedef unsigned long long u64;
BPF_HASH(switches, u32, u64);
int raw_tp__sched_switch(void *ctx)
{
	u32 process = bpf_get_current_pid_tgid() >> 32;

	switches.increment(process);
	return 0;
}
"""


@cache
def sees_every_task() -> bool:
    """Say whether BPF programs are run whatever the current task is (root only).

    A kernel may be built to run none while it runs a task that it protects, such as the first
    process. What an interrupt of such a task does is seen by no program then.
    """
    with suppress(Exception):  # of BCC's own: that BPF is refused, the tests themselves show
        return _sees_first_process()
    return True


def _sees_first_process() -> bool:
    program = import_bcc().BPF(text=_SWITCHES, cflags=["-Wno-everything"])
    loaded = program.load_func(b"raw_tp__sched_switch", program.RAW_TRACEPOINT)
    hook = attach_raw_tracepoint("sched_switch", loaded.fd)
    begin, deadline = _switches(1), time.monotonic() + _SEEN_WITHIN
    happened = 0
    while happened < _ENOUGH and time.monotonic() < deadline:
        time.sleep(0.05)
        happened = sum(count - begin.get(thread, count) for thread, count in _switches(1).items())
    seen = {process.value for process, _ in program[b"switches"].items()}
    os.close(hook)
    program.cleanup()
    return 1 in seen or happened < _ENOUGH


def _switches(process: int) -> Mapping[str, int]:
    """Return how often each thread of a process was switched from."""
    found = {}
    for path in Path(f"/proc/{process}/task").glob("*/status"):
        with suppress(OSError):  # it has ended
            counts = re.findall(r"ctxt_switches:\s+(\d+)", path.read_text())
            found[path.parent.name] = sum(map(int, counts))
    return found


def is_since(*version: int) -> bool:
    """Say whether the kernel's version is at least this one."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= version


FEATURES: Mapping[str, Callable[[], bool]] = {
    "netem": has_netem,
    "tc": has_tc,
    "BPF LSM": has_bpf_lsm,
    "io_uring": has_io_uring,
    "MPTCP": has_mptcp,
    "MPTCP that counts bytes": counts_mptcp,
    "drop reasons": has_drop_reasons,
    "fexit": has_fexit,
    # By docs/limitations.md.
    "traced ICMP errors": partial(is_since, 5, 14),
    "traced repeats of a dropped SYN": partial(is_since, 5, 19),
    "confidentiality": partial(is_locked_down, "confidentiality"),
    "integrity": partial(is_locked_down, "integrity"),
    "OpenTelemetry Collector": lambda: collector().exists(),  # no Go, or no modules
    # It takes ten minutes to build, so that CI has it only where somebody has done so.
    "kube-apiserver": lambda: apiserver().exists() and bool(shutil.which("etcd")),
    "hidden BTF": lambda: not Path("/sys/kernel/btf/vmlinux").exists(),
    "unmounted tracefs": lambda: not has_mounted("tracefs"),
    "clock to set": lambda: Path("/run/second-init").exists(),  # a guest's (see tests/kernels)
    "two cgroup hierarchies": lambda: has_mounted("cgroup") and has_mounted("cgroup2"),
    "cgroup v1 alone": lambda: has_mounted("cgroup") and not has_mounted("cgroup2"),
}
