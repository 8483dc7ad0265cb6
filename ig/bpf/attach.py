"""Compile a BPF program and attach its hooks: the only importer of BCC."""

from __future__ import annotations

import ctypes
import errno
import functools
import glob
import importlib.util
import os
import platform
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ig import c_text
from ig.bpf.btf import FUNCTION, KERNEL_CALL, STRUCT, Btf
from ig.bpf.contract import CGROUP_HOOKS, check_allows, check_owner, event_of, hook_of, hooks_of
from ig.bpf.instructions import calls, does_nothing, with_kernel_calls, with_number
from ig.bpf.syscalls import allows_perf_events, create_link, load_fexit, load_program, map_update
from ig.errors import KernelRefused, MissingDependency
from ig.kernel import processes
from ig.kernel.cgroupfs import open_root
from ig.kernel.mounts import legacy_cgroup_controller, reach_tracefs

EVENTS_BYTES = 8 << 20
PATHS_BYTES = 1 << 20
_BACKUP = "__backup"  # of a function that is loaded twice: see recursion.h
_IS_BACKUP = 1 << 29
"""Called where a program asks which of the two it is: no number of a helper."""
_FEXIT = "fexit__"
_RAW = "raw_tp__"
_GIVEN = "fexit__security_sock_graft"  # see tcp_accept.h
_DECIDE = "decide"  # called by user space, see ig.h
_MACHINES = ("x86_64", "aarch64")
_ACCEPTS = {"43", "288"} if platform.machine() == "x86_64" else {"202", "242"}
"""The numbers of accept() and accept4(): NR_ACCEPT and NR_ACCEPT4 of ig.h."""
PREEMPTED = "init_srcu_struct_fast"
"""A function of the kernels whose tracepoints may be preempted: since 7.0 (a46023d5616e "tracing:
Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast"), which needs it."""
_LASTING = "bpf_tramp_image"
"""A struct of the kernels where a program at a function's end may be detached while tasks sleep in
the function: since 5.12 (e21aa341785c "bpf: Fix fexit trampoline.")."""
_OPTION = re.compile(r"^OPTION\((\w+), ([-\w]+)\)", re.M)
_OPTIONAL = re.compile(r'^OPTIONAL_HOOK\((\w+), "([^"]*)"\)', re.M)
_SIGNAL = re.compile(r"^SIGNAL_HOOK\((\w+)\)", re.M)
_BINDINGS = "/usr/lib*/python3*/*-packages/bcc/libbcc.py"
"""Where distributions have BCC's binding. Debian's and Ubuntu's place serves any Python 3."""
_GET_BCC = (
    "Install the distribution package: python3-bpfcc (Debian, Ubuntu), python3-bcc (Fedora), "
    "python-bcc (Arch). The `bcc` on PyPI is unrelated."
)


def import_bcc() -> Any:
    """Return the distribution's BCC binding, wherever Python looks for its packages.

    It is loaded by its path: a virtual environment need not see the system's packages, of which
    others would take the place of ours; PyPI's `bcc` is an unrelated package.
    """
    if "bcc" in sys.modules:
        return sys.modules["bcc"]
    os.environ["BCC_KERNEL_SOURCE"] = str(c_text.folder() / "headers")
    found = sorted(glob.glob(_BINDINGS))
    if not found:
        raise MissingDependency(
            "The BCC Python binding is missing.", f"Tried {_BINDINGS}.", _GET_BCC
        )
    folder = os.path.dirname(found[-1])
    spec = importlib.util.spec_from_file_location(
        "bcc", f"{folder}/__init__.py", submodule_search_locations=[folder]
    )
    assert spec
    assert spec.loader
    module = sys.modules["bcc"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        del sys.modules["bcc"]
        raise MissingDependency(
            f"Cannot load the BCC Python binding in {folder}.", str(error), _GET_BCC
        ) from error
    return module


def load(
    text: str, defines: Mapping[str, int | str], structs: Sequence[str]
) -> tuple[dict[str, Any], list[int]]:
    """Compile, load and attach in the first way that this kernel lets us: see _loaded and ig.h.

    `structs` are those that user space reads.
    """
    if platform.machine() not in _MACHINES:
        raise KernelRefused(
            "ig traces on x86-64 and arm64 only.",
            f"This machine is {platform.machine()}.",
            "`ig snapshot socket` and `ig list-containers` work here, too.",
        )
    reach_tracefs()
    btf = Btf()
    declarations = btf.declare(text)
    sizes = {name: c_text.parse(text, name, arrays=True).size for name in structs}
    checks = [
        f"_Static_assert(sizeof(struct {name}) == {size}, "
        f'"struct {name} is not laid out as its text says");'
        for name, size in sizes.items()
    ]
    text = "\n".join([declarations, text, *checks, ""])
    losses = c_text.losses(text)
    numbers = {name: number for number, name in enumerate((*losses, "LOSSES"))}
    defaults = {**dict(_OPTION.findall(text)), **_constants(declarations), **numbers}
    preemptible = "PREEMPTIBLE" in defines or btf.find_id(PREEMPTED, FUNCTION) > 0
    for way in _ways(preemptible, btf):
        macros = {**defaults, **dict.fromkeys(way, 1), **defines}
        with suppress(OSError):
            return _loaded(text, macros, btf, backups_attached=preemptible)
    return _loaded(text, {**defaults, **defines}, btf, backups_attached=preemptible)


def _ways(preemptible: bool, btf: Btf) -> Sequence[Sequence[str]]:
    """Return the options to try before none at all: where a way needs what is refused, it fails.

    Where perf_event_open() is refused, raw tracepoints alone see all but the ends of calls.
    """
    if not allows_perf_events():
        return [["CALLS_BY_FEXIT"]] if btf.find_id(_LASTING, STRUCT) else []
    if not preemptible:
        return []
    by_functions = btf.find_id("bpf_preempt_disable", FUNCTION) > 0
    return [*([["PREEMPTIBLE", "CALLS_BY_FEXIT"]] if by_functions else []), ["PREEMPTIBLE"]]


def _loaded(
    text: str, macros: Mapping[str, int | str], btf: Btf, backups_attached: bool
) -> tuple[dict[str, Any], list[int]]:
    """Return the parent's answer, and the descriptors that it lists, of a program then attached."""
    bcc = import_bcc()
    from bcc.libbcc import lib

    flags = [f"-D{name}={value}" for name, value in macros.items()]
    if not os.environ.get("IG_DEBUG"):
        flags.append("-g0")  # what only the verifier's messages use takes a tenth of the time
    program = bcc.BPF(text=text.encode(), cflags=["-fms-extensions", "-Wno-everything", *flags])
    maps = {}
    lib.bpf_table_name.restype = ctypes.c_char_p
    for number in range(lib.bpf_num_tables(ctypes.c_void_p(program.module))):
        name = lib.bpf_table_name(ctypes.c_void_p(program.module), ctypes.c_size_t(number))
        maps[name.decode()] = int(lib.bpf_table_fd(program.module, name))
    optional = dict(_OPTIONAL.findall(text))
    for name, _ in _hooks(program):
        check_owner(text, name, event_of(name), _instructions(program, name))
    functions, hooks, tracepoints, refused = _attach(program, optional, btf, backups_attached)
    if _GIVEN in functions:
        _list_waiting(maps["waiting"])
    decide = program.load_func(_DECIDE.encode(), program.RAW_TRACEPOINT).fd
    backups = [name for name in functions if name.endswith(_BACKUP)]
    pairs = {event_of(name) for name in backups}
    primaries = [name for name in functions if name not in backups and event_of(name) in pairs]
    signals = [name for name in functions if name in _SIGNAL.findall(text)]
    unpaired = [name for name in functions if name not in (*backups, *primaries, *signals)]
    answer = {
        "maps": list(maps),
        "unpaired": len(unpaired),
        "signals": len(signals),
        "primaries": len(primaries),
        "backups": list(map(event_of, backups)),
        "backups_attached": backups_attached,
        "tracepoints": tracepoints,
        "refused": refused,
    }
    programs = [functions[name] for name in (*unpaired, *signals, *primaries, *backups)]
    return answer, [*maps.values(), decide, *programs, *hooks]


def _list_waiting(descriptor: int) -> None:
    """Put the threads that wait in accept() into a map. What exceeds it is left out."""
    with suppress(KernelRefused):
        for thread in processes.threads_in(_ACCEPTS):
            map_update(descriptor, struct.pack("=I", thread), bytes(8))


def _constants(declarations: str) -> dict[str, int | str]:
    """Return the macros that every program gets."""
    constants: dict[str, int | str] = {
        "EVENTS_PAGES": EVENTS_BYTES // os.sysconf("SC_PAGE_SIZE"),
        "PATHS_PAGES": PATHS_BYTES // os.sysconf("SC_PAGE_SIZE"),
        "IS_BACKUP": _IS_BACKUP,
    }
    subsystem = f"KERNEL_{legacy_cgroup_controller()}_cgrp_id"
    if f"#define {subsystem} " in declarations:
        constants["CGROUP_LEGACY"] = subsystem
    return constants


def _attach(
    program: Any, optional: Mapping[str, str], btf: Btf, backups_attached: bool
) -> tuple[dict[str, int], list[int], dict[str, bool], list[str]]:
    """Load and attach each function at the hook that it is named after; load the backups.

    Return the descriptors of the functions and of the hooks, the tracepoints and whether it
    succeeded there, and what is not seen then.
    """
    functions: dict[str, int] = {}
    hooks: list[int] = []
    tracepoints: dict[str, bool] = {}
    refused: list[str] = []
    for name, tracepoint, code in _programs(program):
        raw = name.startswith(_RAW)
        if raw:
            functions[name] = load_program(name, code, program.RAW_TRACEPOINT, 0)
        if name.endswith(_BACKUP) and not backups_attached:
            continue
        try:
            if raw:
                hooks.append(_attach_raw(functions[name], tracepoint.encode()))
            elif name.startswith(_FEXIT):
                functions[name] = _load_fexit(name, code, btf)
                hooks.append(_attach_raw(functions[name], None))
            elif "/" in tracepoint:
                functions[name], link = _attach_cgroup(name, tracepoint, code)
                hooks.append(link)
            else:
                functions[name] = _attach_tracepoint(program, name, tracepoint)
        except OSError as error:
            if name not in optional:
                raise
            refused.append(f"{optional[name]} ({error.strerror})")
            tracepoints[tracepoint] = False
        else:
            tracepoints.setdefault(tracepoint, True)
    hooks += program.tracepoint_fds.values()
    return functions, hooks, tracepoints, refused


def _hooks(program: Any) -> list[tuple[str, str]]:
    """Return each function that is to be attached, and where. Raises IgError as `hooks_of`.

    One that the options leave nothing to do is not: see ig.h.
    """
    from bcc.libbcc import lib

    names = [
        lib.bpf_function_name(program.module, index).decode()
        for index in range(lib.bpf_num_functions(program.module))
    ]
    return [
        (name, hook)
        for name, hook in hooks_of(name for name in sorted(names) if name != _DECIDE)
        if hook in CGROUP_HOOKS or not does_nothing(_instructions(program, name))
    ]


def _attach_tracepoint(program: Any, function: str, tracepoint: str) -> int:
    try:
        program.attach_tracepoint(tp=tracepoint, fn_name=function)
        return int(program.funcs[function.encode()].fd)
    except Exception as error:  # of BCC's own, and without the kernel's reason
        number = ctypes.get_errno()
        raise OSError(number, f"tracepoint {tracepoint}: {os.strerror(number)}") from error


def _programs(program: Any) -> Iterator[tuple[str, str, bytes]]:
    """Yield each program's name, hook and instructions; backups come last: see recursion.h."""
    hooks = _hooks(program)
    others = {event_of(name) for name, _ in hooks if not name.startswith(_RAW)}
    backups = []
    for name, hook in hooks:
        code = _instructions(program, name)
        if not calls(code, _IS_BACKUP):
            yield name, hook, code
            continue
        if hook not in others:
            yield name, hook, with_number(code, _IS_BACKUP, 0)
        backups.append((name + _BACKUP, hook, with_number(code, _IS_BACKUP, 1)))
    yield from backups


def _load_fexit(function: str, instructions: bytes, btf: Btf) -> int:
    """Load for the end of a kernel's function; KERNEL_CALL's marks become such calls."""
    target = btf.find_id(hook_of(function).removeprefix("fexit:"), FUNCTION)
    if not target:
        raise OSError(errno.ENOENT, f"{hook_of(function)}: {os.strerror(errno.ENOENT)}")
    return load_fexit(function, with_kernel_calls(instructions, KERNEL_CALL), target)


def _attach_cgroup(function: str, hook: str, instructions: bytes) -> tuple[int, int]:
    """Load a function and attach it to the root of the cgroup hierarchy: for all cgroups.

    Return the program, and the link that keeps it attached. Raises IgError, OSError.
    """
    check_allows(function, hook, instructions)
    kind, place = CGROUP_HOOKS[hook]
    try:
        program = load_program(function, instructions, kind, place)
        return program, create_link(hook, program, _root(), place)
    except PermissionError as error:
        number, words = error.errno, error.strerror
        raise OSError(number, f"{words}; programs of cgroups need CAP_NET_ADMIN, too") from error


_root = functools.cache(open_root)


def _instructions(program: Any, function: str) -> bytes:
    from bcc.libbcc import lib

    name = function.encode()
    return ctypes.string_at(
        lib.bpf_function_start(program.module, name), lib.bpf_function_size(program.module, name)
    )


def _attach_raw(loaded: int, event: bytes | None) -> int:
    """Attach to a raw tracepoint, as BCC does, which however allows but one program for each.

    Without one, attach to what the program was loaded for.
    """
    from bcc.libbcc import lib

    descriptor: int = lib.bpf_attach_raw_tracepoint(loaded, event)
    if descriptor < 0:
        where = f"raw tracepoint {event.decode()}" if event else "function"
        raise OSError(-descriptor, f"{where}: {os.strerror(-descriptor)}")
    return descriptor
