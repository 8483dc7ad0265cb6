"""The few functions of libbpf that are called directly: BTF queries, maps and programs.

BCC links libbpf, so it is there wherever BCC is. Source: libbpf's btf.h and bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
import time
from collections.abc import Iterator
from typing import NoReturn

from ig.errors import KernelRefused

_BPF = 321 if platform.machine() == "x86_64" else 280  # include/uapi/asm-generic/unistd.h
_PROG_LOAD, _TRACING = 5, 26
_TRACE_FEXIT = 25  # of enum bpf_attach_type
_LOG_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
_KEY_BYTES = 8
_PER_CPU = (5, 10)  # of enum bpf_map_type: hashes, also those that evict
_MEMBARRIER = 324 if platform.machine() == "x86_64" else 283
_MEMBARRIER_GLOBAL = 1
_PERF_EVENT_OPEN = 298 if platform.machine() == "x86_64" else 241
_PERF_SOFTWARE, _PERF_DUMMY = 1, 9  # include/uapi/linux/perf_event.h
_MOMENT = 0.05  # seconds, longer than a program runs
_RECURSION_MISSES = 26  # the u64 of struct bpf_prog_info, 208 bytes in
_POINTER = ctypes.c_void_p
_SIGNATURES = {
    "btf__load_vmlinux_btf": ([], _POINTER),
    "btf__new": ([ctypes.c_char_p, ctypes.c_uint32], _POINTER),
    "libbpf_set_print": ([_POINTER], _POINTER),
    "btf__find_by_name_kind": ([_POINTER, ctypes.c_char_p, ctypes.c_uint32], ctypes.c_int32),
    "btf__type_by_id": ([_POINTER, ctypes.c_uint32], _POINTER),
    "btf__name_by_offset": ([_POINTER, ctypes.c_uint32], ctypes.c_char_p),
    "bpf_map_update_elem": ([ctypes.c_int, _POINTER, _POINTER, ctypes.c_uint64], ctypes.c_int),
    "bpf_map_delete_elem": ([ctypes.c_int, _POINTER], ctypes.c_int),
    "bpf_map_lookup_batch": ([ctypes.c_int, *[_POINTER] * 6], ctypes.c_int),
    "bpf_map_delete_batch": ([ctypes.c_int, *[_POINTER] * 3], ctypes.c_int),
    "libbpf_num_possible_cpus": ([], ctypes.c_int),
    "bpf_map_get_next_key": ([ctypes.c_int, _POINTER, _POINTER], ctypes.c_int),
    "bpf_raw_tracepoint_open": ([ctypes.c_char_p, ctypes.c_int], ctypes.c_int),
    "bpf_link_create": (
        [ctypes.c_int, ctypes.c_int, ctypes.c_uint32, _POINTER],
        ctypes.c_int,
    ),
    "bpf_prog_test_run_opts": ([ctypes.c_int, _POINTER], ctypes.c_int),
    "bpf_obj_get_info_by_fd": ([ctypes.c_int, _POINTER, _POINTER], ctypes.c_int),
}


@functools.cache
def library() -> ctypes.CDLL:
    """Load libbpf and declare what is used of it. Raises KernelRefused if it is not installed."""
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            found = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        for function, (arguments, result) in _SIGNATURES.items():
            getattr(found, function).argtypes = arguments
            getattr(found, function).restype = result
        return found
    raise KernelRefused(
        "Cannot load libbpf.",
        "Tried libbpf.so.1 and libbpf.so.0.",
        "Install it: apt-get install libbpf1 (Debian, Ubuntu 24.04), libbpf0 (Ubuntu 22.04).",
    )


def map_update(descriptor: int, key: bytes, value: bytes) -> None:
    """Set a map's element; meanwhile the kernel skips tracepoints' programs on this CPU.

    Source: bpf_disable_instrumentation() in include/linux/bpf.h. Raises KernelRefused.
    """
    if library().bpf_map_update_elem(descriptor, key, value, 0) < 0:
        _refuse("Cannot write to a BPF map")


def map_delete(descriptor: int, key: bytes) -> None:
    """Delete a map's element, if it is there; see `map_update`."""
    library().bpf_map_delete_elem(descriptor, key)


def map_keys(descriptor: int, most: int) -> list[int]:
    """Return the keys of a map that are 8 bytes each; where it changes meanwhile, some of them.

    Raises ValueError for keys of another size, and KernelRefused.
    """
    size = _information(descriptor, "the key size of a BPF map")[1] & 0xFFFFFFFF
    if size != _KEY_BYTES:
        raise ValueError(f"the map has keys of {size} bytes, not {_KEY_BYTES}")
    keys: list[int] = []
    last, key = None, ctypes.c_uint64()
    while len(keys) < most:
        if library().bpf_map_get_next_key(descriptor, last, ctypes.byref(key)) < 0:
            break
        keys.append(key.value)
        last = ctypes.byref(ctypes.c_uint64(key.value))
    return keys


def is_per_cpu(descriptor: int) -> bool:
    """Return whether a map has a value for each processor. Raises KernelRefused."""
    return _information(descriptor, "the type of a BPF map")[0] & 0xFFFFFFFF in _PER_CPU


def possible_cpus() -> int:
    """Return how many values an element of a per-CPU map has."""
    return int(library().libbpf_num_possible_cpus())


def map_read(descriptor: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and the values of a hash, many at a time. Raises KernelRefused.

    What is there all the time is read once; of what is added meanwhile, some.
    """
    most = max(_BATCH_BYTES // (key_size + value_size), 1)
    begin, end, failed = None, ctypes.c_uint32(), 0
    while not failed:
        keys = ctypes.create_string_buffer(most * key_size)
        values = ctypes.create_string_buffer(most * value_size)
        count = ctypes.c_uint32(most)
        places = begin, ctypes.byref(end), keys, values, ctypes.byref(count)
        failed = library().bpf_map_lookup_batch(descriptor, *places, None)
        if failed and ctypes.get_errno() == errno.ENOSPC:  # a bucket does not fit
            most, failed = most * 2, 0
            continue
        if failed and ctypes.get_errno() != errno.ENOENT:  # that is the end
            _refuse("Cannot read a BPF map")
        yield keys.raw[: count.value * key_size], values.raw[: count.value * value_size]
        begin = ctypes.byref(ctypes.c_uint32(end.value))


def map_delete_keys(descriptor: int, keys: bytes, key_size: int) -> None:
    """Delete the elements of a hash with these keys, all of which are there."""
    if keys:
        count = ctypes.c_uint32(len(keys) // key_size)
        if library().bpf_map_delete_batch(descriptor, keys, ctypes.byref(count), None) < 0:
            _refuse("Cannot delete from a BPF map")


class _PerfEvent(ctypes.Structure):
    """struct perf_event_attr as it was at first: PERF_ATTR_SIZE_VER0."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 6),
    ]


def allows_perf_events() -> bool:
    """Return whether perf_event_open() is allowed, which tracepoints but raw ones need.

    Debian's and Ubuntu's kernels allow it with CAP_SYS_ADMIN alone where kernel.perf_event_paranoid
    is above 2; seccomp may refuse it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    event = _PerfEvent(type=_PERF_SOFTWARE, size=ctypes.sizeof(_PerfEvent), config=_PERF_DUMMY)
    descriptor = int(libc.syscall(_PERF_EVENT_OPEN, ctypes.byref(event), 0, -1, -1, 0))
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


def wait_for_programs() -> None:
    """Return once all programs that run now have ended, unless one is preempted for long."""
    libc = ctypes.CDLL(None, use_errno=True)
    # It waits for RCU, in whose read side programs run; it is refused with nohz_full, and does not
    # wait with one CPU online, where a program may be preempted, too: kernel/sched/membarrier.c.
    failed = libc.syscall(_MEMBARRIER, _MEMBARRIER_GLOBAL, 0, 0) < 0
    if failed or os.sysconf("SC_NPROCESSORS_ONLN") == 1:
        time.sleep(_MOMENT)


def attach_raw_tracepoint(event: str, program: int) -> int:
    """Return a descriptor that keeps the program attached. Raises KernelRefused."""
    descriptor = int(library().bpf_raw_tracepoint_open(event.encode(), program))
    if descriptor < 0:
        _refuse(f"Cannot attach a BPF program to {event}")
    return descriptor


def create_link(hook: str, program: int, target: int, place: int) -> int:
    """Return a descriptor that keeps a program attached to a cgroup, at a place (bpf_attach_type).

    Raises OSError.
    """
    descriptor = int(library().bpf_link_create(program, target, place, None))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{hook}: {os.strerror(number)}")
    return descriptor


def load_fexit(name: str, instructions: bytes, function: int) -> int:
    """Return a descriptor of a program for the end of the kernel's function with this BTF id.

    Raises OSError.
    """
    return load_program(name, instructions, _TRACING, _TRACE_FEXIT, function)


def load_program(name: str, instructions: bytes, kind: int, place: int, function: int = 0) -> int:
    """Return a descriptor of a program of this bpf_prog_type, for this bpf_attach_type.

    The verifier's words go to stderr. Source: bpf_prog_load() in kernel/bpf/syscall.c, which
    libbpf's versions each wrap in another way. Raises OSError.
    """
    code, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    number = 0
    for level in (0, 1):  # with a log only once it is refused: a log that is full refuses, too
        attributes = ctypes.create_string_buffer(
            struct.pack(
                "=IIQQIIQ8x16s4xI36xI",
                kind,
                len(instructions) // 8,
                ctypes.addressof(code),
                ctypes.addressof(licence),
                level,
                len(log) if level else 0,
                ctypes.addressof(log) if level else 0,
                name.encode()[:15],
                place,
                function,
            )
        )
        descriptor = int(libc.syscall(_BPF, _PROG_LOAD, attributes, len(attributes)))
        if descriptor >= 0:
            return descriptor
        number = number or ctypes.get_errno()
    os.write(2, log.value)
    raise OSError(number, f"BPF program {name}: {os.strerror(number)}")


class _TestRun(ctypes.Structure):
    """The beginning of struct bpf_test_run_opts."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data", _POINTER * 2),
        ("data_sizes", ctypes.c_uint32 * 2),
        ("ctx_in", _POINTER),
        ("ctx_out", _POINTER),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 6),
    ]


def call_raw_tracepoint(program: int, *arguments: int) -> None:
    """Run a raw tracepoint's program once, here, as if the tracepoint had these arguments.

    Source: bpf_prog_test_run_raw_tp() in net/bpf/test_run.c. Raises KernelRefused.
    """
    context = (ctypes.c_uint64 * len(arguments))(*arguments)
    options = _TestRun(sz=ctypes.sizeof(_TestRun), ctx_size_in=ctypes.sizeof(context))
    options.ctx_in = ctypes.addressof(context)
    if library().bpf_prog_test_run_opts(program, ctypes.byref(options)) < 0:
        _refuse("Cannot run a BPF program")


def recursion_misses(program: int) -> int:
    """Return how often the kernel skipped a program because of recursion.

    0 before 5.12 (9ed9e9ba2337 "bpf: Count the number of times recursion was prevented").
    Source: struct bpf_prog_info in include/uapi/linux/bpf.h. Raises KernelRefused.
    """
    return int(_information(program, "the miss count of a BPF program")[_RECURSION_MISSES])


def _information(descriptor: int, what: str) -> ctypes.Array[ctypes.c_uint64]:
    """Return the beginning of what the kernel reports about a program or a map."""
    found = (ctypes.c_uint64 * 32)()
    size = ctypes.c_uint32(ctypes.sizeof(found))
    if library().bpf_obj_get_info_by_fd(descriptor, found, ctypes.byref(size)) < 0:
        _refuse(f"Cannot read {what}")
    return found


def _refuse(failed: str) -> NoReturn:
    raise KernelRefused(
        f"{failed}: {os.strerror(ctypes.get_errno())}.",
        "The program was loaded, so a policy (seccomp, SELinux, AppArmor) denies only this call.",
        "Allow all of bpf(), or run ig on the host.",
    )
