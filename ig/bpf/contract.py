"""The contract of C programs: each function is named after its hook (see ig.h), each record has its
owner, and every filter is applied.

A program that breaks it is refused before it runs.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Iterable, Sequence

from ig import c_text
from ig.bpf.instructions import always_allows, calls, may_change
from ig.errors import IgError

_SKB, _SOCK = 8, 9  # of enum bpf_prog_type
CGROUP_HOOKS = {
    "cgroup_skb/ingress": (_SKB, 0),
    "cgroup_skb/egress": (_SKB, 1),
    "cgroup/sock_create": (_SOCK, 2),
    "cgroup/post_bind4": (_SOCK, 12),
    "cgroup/post_bind6": (_SOCK, 13),
    "cgroup/sock_release": (_SOCK, 34),
}
"""The type of program and of attachment of each hook, without those that can rewrite addresses.

Source: include/uapi/linux/bpf.h for the numbers, libbpf's section names for the names.
"""
_CALL_PREFIX = "__x64_" if platform.machine() == "x86_64" else "__arm64_"
_FUNCTION = re.compile(r"^int ((?:(?:raw_)?tp|cgroup(?:_skb)?)__\w+)\((?!.* \\$)", re.M)
_CALL_END = re.compile(r"^CALL_END\((\w+)", re.M)
_OF_CURRENT = (14, 15, 16, 35, 37, 80, 120, 123, 158)
"""Helpers that read the current task: its ids, user, name, itself, and its cgroups."""
_CALLS = re.compile(
    r"tp__(raw_)?syscalls__|fexit__sys_|raw_tp__sys_(enter|exit)$|cgroup__(?!sock_rel)"
)
"""Hooks within the system calls of the task that is current."""
_CURRENT = re.compile(r"^OWNER_IS_CURRENT\((\w+)\)", re.M)
_PAIR = re.compile(r"^PAIR\((\w+), (\w+)", re.M)
_SHARED = ("ig.h", "socket_owner.h")
"""Headers for programs of other packages, too."""
_EVICTS = re.compile(r'^#define AGGREGATE_TYPE "lru', re.M)
_FILTERS = ("FILTER_PID", "FILTER_UID")


def usual_tracepoints(program: str) -> list[str]:
    """Return the hooks of a program on most kernels.

    EVENT is a raw tracepoint, CATEGORY:EVENT another, cgroup_skb/PLACE one of cgroups.
    """
    text = c_text.read(program)
    ends = (f"syscalls:sys_exit_{name}" for name in _CALL_END.findall(text))
    pairs = (event for _, event in _PAIR.findall(text))
    return sorted({*map(hook_of, _FUNCTION.findall(text)), *pairs, *ends})


def hook_of(function: str) -> str:
    """Return the hook that a function is named after, empty if none: see `usual_tracepoints`."""
    match function.split("__", 2):
        case ["fexit", name]:
            return f"fexit:{_CALL_PREFIX if name.startswith('sys_') else ''}{name}"
        case ["raw_tp", event, *_]:
            return event
        case ["tp", category, event]:
            return f"{category}:{event}"
        case [kind, place] if f"{kind}/{place}" in CGROUP_HOOKS:
            return f"{kind}/{place}"
    return ""


def hooks_of(functions: Iterable[str]) -> list[tuple[str, str]]:
    """Return functions with their hooks. Raises IgError for one that is named after none."""
    found = [(name, hook_of(name)) for name in functions]
    if unknown := [name for name, hook in found if not hook]:
        raise IgError(
            f"The function {unknown[0]} is named after no hook.",
            "Known hooks: raw_tp__EVENT, tp__CATEGORY__EVENT, fexit__FUNCTION, "
            f"{', '.join(hook.replace('/', '__') for hook in CGROUP_HOOKS)}.",
            "Rename it, or make it static __always_inline.",
        )
    return found


def event_of(function: str) -> str:
    """Return the event that a function is named after, raw or not, or the hook of cgroups."""
    return hook_of(function).rpartition(":")[2]


def source(program: str, aggregate: bool = False) -> str:
    """Return the text of a program of events, or one that counts (`aggregate`), with its headers.

    Raises IgError if its file can be changed by users that cannot change this module, if its
    declarations cannot be read, or if its records lack the fields that every event has.
    """
    for folder in {c_text.folder(), (c_text.folder() / program).parent}:
        c_text.need_trust(folder)
    text = c_text.read(program)
    try:
        record, rest = records(text, aggregate)
        c_text.losses(text)
    except ValueError as error:
        raise IgError(
            f"The program {program} cannot be used.",
            f"{error}.",
            "See CONTRIBUTING.md for what a program declares.",
        ) from error
    names = record.names
    if aggregate and ("cgroup" not in names or {"timestamp", "other"} & {*names, *rest}):
        raise IgError(
            f"The program {program} cannot be used: every count needs an owner.",
            f"Its struct key and struct value have the fields {', '.join((*names, *rest))}.",
            "Add `u64 cgroup` to struct key, and name no field `timestamp` or `other`.",
        )
    if not aggregate and (names[0] != "timestamp" or "cgroup" not in names):
        raise IgError(
            f"The program {program} cannot be used: every event needs a time and an owner.",
            f"Its struct event has the fields {', '.join(names)}.",
            "Begin struct event with `u64 timestamp` and add `struct owner owner` (see ig.h).",
        )
    return text


def records(text: str, aggregate: bool) -> tuple[c_text.Layout, Sequence[str]]:
    """Return the layout of a program's events or keys, and the names of the values' fields.

    Raises ValueError.
    """
    if not aggregate:
        return c_text.parse(text, c_text.event(text)), ()
    key, value = c_text.parse(text, "key"), c_text.parse(text, "value", arrays=True)
    if "s" in value.format:
        raise ValueError("struct value has bytes, which cannot be added up")
    if _EVICTS.search(text):
        raise ValueError("AGGREGATE_TYPE is a map that evicts elements, so counts would be lost")
    return key, value.names


def check_filters(program: str, text: str, defines: Collection[str]) -> None:
    """Raise IgError for a program without an owner, or one that ignores a filter of `defines`."""
    text = _own(text)
    if not re.search(r"\b(current|socket|socket_owner)_wanted\(", text):
        raise IgError(
            f"The program {program} cannot be used: its events have no owner.",
            "It calls none of current_wanted(), socket_owner_wanted(), socket_wanted().",
            "Call one of them, and report only what is wanted.",
        )
    ignored = [name for name in _FILTERS if name in defines]
    if ignored and not re.search(r"\b(current|socket_owner)_wanted\(|\bFILTER_PID\b", text):
        raise IgError(
            f"The program {program} cannot be used with {' and '.join(ignored)}.",
            "It calls socket_wanted(), which finds only the socket's cgroup, not its process.",
            "Call socket_owner_wanted() (socket_owner.h), or have no such option.",
        )


def check_owner(text: str, function: str, event: str, instructions: bytes) -> None:
    """Raise IgError for a function that reads the current task where any task may be current.

    `event` is the hook's name without its category.
    """
    if _CALLS.match(function) or event in _CURRENT.findall(_own(text)):
        return
    if function in _exempt(text):
        return
    # No such declaration can be made for those of cgroups.
    advice = (
        ""
        if "/" in event
        else (
            " If it reads the task only where that is the owner, "
            f"declare OWNER_IS_CURRENT({event})."
        )
    )
    if any(calls(instructions, helper) for helper in _OF_CURRENT):
        raise IgError(
            f"The function {function} is not attached: it reads the current task.",
            f"At {event} that may be any task: one that was interrupted, for example.",
            f"Use socket_owner_wanted() (socket_owner.h) or socket_wanted().{advice}",
        )


def check_allows(function: str, hook: str, instructions: bytes) -> None:
    """Raise IgError for a function at a hook of cgroups that could deny what it sees, or change it.

    The kernel's verifier lets both pass.
    """
    if not always_allows(instructions):
        raise IgError(
            f"The function {function} is not attached: it could drop packets or deny calls.",
            f"A program at {hook} must return 1, whatever happens.",
            "Return 1 at each of its ends.",
        )
    if may_change(instructions):
        raise IgError(
            f"The function {function} is not attached: it could change packets or sockets.",
            f"A program at {hook} may only read its argument.",
            "Write nothing through its argument, nor call what does.",
        )


def _own(text: str) -> str:
    """Return a program's text without that of shared headers."""
    for shared in _SHARED:
        text = text.replace(c_text.read(shared), "")
    return text


def _exempt(text: str) -> Collection[str]:
    """Return the functions of shared headers that read the current task where it is the owner."""
    found: set[str] = set()
    for header in filter(text.__contains__, map(c_text.read, _SHARED)):
        events = _CURRENT.findall(header)
        for category, event in _PAIR.findall(header):
            if event in events:
                found |= {f"raw_tp__{event}", f"tp__{category}__{event}"}
    return found
