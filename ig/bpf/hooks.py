"""The hooks that functions of C programs are named after: see ig.h."""

from __future__ import annotations

import platform
import re
import struct

from ig import c_text
from ig.bpf import cgroup_hooks

_CALL_PREFIX = "__x64_" if platform.machine() == "x86_64" else "__arm64_"
_FUNCTION = re.compile(r"^int ((?:(?:raw_)?tp|cgroup(?:_skb)?)__\w+)\((?!.* \\$)", re.M)
_PAIR = re.compile(r"^PAIR\(\w+, (\w+)", re.M)
_CALL_END = re.compile(r"^CALL_END\((\w+)", re.M)
_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn
_EXIT = _INSTRUCTION.pack(0x95, 0, 0, 0)
_RETURN_0 = {_INSTRUCTION.pack(code, 0, 0, 0) + _EXIT for code in (0xB7, 0xB4)}  # r0 = 0, w0 = 0


def usual_tracepoints(program: str) -> list[str]:
    """Return the hooks of a program on most kernels.

    EVENT is a raw tracepoint, CATEGORY:EVENT another, cgroup_skb/PLACE one of cgroups.
    """
    text = c_text.read(program)
    calls = {f"syscalls:sys_exit_{name}" for name in _CALL_END.findall(text)}
    others = {hook_of(name) for name in _FUNCTION.findall(text)}
    return sorted({*others, *_PAIR.findall(text), *calls})


def hook_of(function: str) -> str:
    """Return the hook that a function's name says, empty if none: see `usual_tracepoints`."""
    match function.split("__", 2):
        case ["fexit", name]:
            return f"fexit:{_CALL_PREFIX if name.startswith('sys_') else ''}{name}"
        case ["raw_tp", event, *_]:
            return event
        case ["tp", category, event]:
            return f"{category}:{event}"
        case [kind, place] if f"{kind}/{place}" in cgroup_hooks.HOOKS:
            return f"{kind}/{place}"
    return ""


def event_of(function: str) -> str:
    """Return the event that a function's name says, raw or not, or the hook of cgroups."""
    return hook_of(function).rpartition(":")[2]


def does_nothing(instructions: bytes) -> bool:
    """Return whether the options have left a function nothing but `return 0`."""
    return instructions in _RETURN_0
