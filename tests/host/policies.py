"""BPF programs of the tests' own that deny or drop, and that go with the test."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ig.bpf.btf import Btf
from ig.bpf.syscalls import create_link, library, load_program
from ig.causes.places import Places
from tests.host.namespace import Namespace

_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn
_MOVE, _CALL, _SHIFT, _UNEQUAL, _EXIT = 0xB7, 0x85, 0x77, 0x55, 0x95
_PID = 14  # BPF_FUNC_get_current_pid_tgid
_FUNCTION = 12  # BTF_KIND_FUNC
CGROUP = {
    "connect4": (18, 10),
    "connect6": (18, 11),
    "ingress": (8, 0),
    "egress": (8, 1),
}
"""The type of program and of attachment of each hook of a cgroup: 0 denies there."""
_XDP, _XDP_PLACE, _XDP_DROP = 6, 37, 1
_LSM, _LSM_PLACE = 29, 27


def _code(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


def _loaded(name: str, code: bytes, kind: int, place: int, function: int = 0) -> int:
    # Before Linux 5.11 programs count as locked memory. Where that is not allowed, it is enough.
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
    return load_program(name, code, kind, place, function)


def _returns(value: int) -> bytes:
    return _code((_MOVE, 0, 0, value), (_EXIT, 0, 0, 0))


@contextmanager
def _held(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for each in descriptors:
            os.close(each)


@contextmanager
def denying(cgroup: Path, hook: str) -> Iterator[None]:
    """Deny what a hook of CGROUP decides about, for the processes of a cgroup."""
    kind, place = CGROUP[hook]
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    with _held(folder):
        program = _loaded("deny", _returns(0), kind, place)
        with _held(program, create_link(hook, program, folder, place)):
            yield


@contextmanager
def dropping_at(namespace: Namespace, device: str) -> Iterator[None]:
    """Drop all that comes in by a device, by XDP."""
    program = _loaded("drop", _returns(_XDP_DROP), _XDP, _XDP_PLACE)
    (found,) = json.loads(namespace.ip("-j", "link", "show", "dev", device))
    index = found["ifindex"]
    with _held(program):
        link = Places().inside(
            namespace.inode, lambda: create_link("xdp", program, index, _XDP_PLACE)
        )
        with _held(link):
            yield


@contextmanager
def forbidding(pid: int) -> Iterator[None]:
    """Deny each connect() of a process, by a BPF program of the security modules."""
    function = Btf().find_id("bpf_lsm_socket_connect", _FUNCTION)
    code = _code(
        (_CALL, 0, 0, _PID),
        (_SHIFT, 0, 0, 32),
        (_UNEQUAL, 0, 2, pid),
        (_MOVE, 0, 0, -1),
        (_EXIT, 0, 0, 0),
        (_MOVE, 0, 0, 0),
        (_EXIT, 0, 0, 0),
    )
    program = _loaded("forbid", code, _LSM, _LSM_PLACE, function)
    with _held(program):
        link = library().bpf_raw_tracepoint_open(None, program)
        assert link >= 0, os.strerror(ctypes.get_errno())
        with _held(link):
            yield
