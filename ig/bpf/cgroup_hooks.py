"""Programs attached to the root of the cgroup hierarchy: for packets and sockets of all cgroups.

Source: include/uapi/linux/bpf.h for the numbers, libbpf's section names for the names.
"""

from __future__ import annotations

import functools
import struct

from ig.bpf.syscalls import create_link, load_program
from ig.errors import IgError
from ig.kernel.cgroupfs import open_root

_SKB, _SOCK, _SOCK_ADDR = 8, 9, 18  # of enum bpf_prog_type
HOOKS = {
    "cgroup_skb/ingress": (_SKB, 0),
    "cgroup_skb/egress": (_SKB, 1),
    "cgroup/sock_create": (_SOCK, 2),
    "cgroup/connect4": (_SOCK_ADDR, 10),
    "cgroup/connect6": (_SOCK_ADDR, 11),
    "cgroup/post_bind4": (_SOCK, 12),
    "cgroup/post_bind6": (_SOCK, 13),
    "cgroup/sendmsg4": (_SOCK_ADDR, 14),
    "cgroup/sendmsg6": (_SOCK_ADDR, 15),
    "cgroup/recvmsg4": (_SOCK_ADDR, 19),
    "cgroup/recvmsg6": (_SOCK_ADDR, 20),
    "cgroup/sock_release": (_SOCK, 34),
}
"""The type of program and of attachment of each hook."""
_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn
_WIDE, _FAR_JUMP, _CALL, _EXIT = 0x18, 0x06, 0x85, 0x95
_RETURN_1 = ((0xB7, 0, 0, 1), (0xB4, 0, 0, 1))  # r0 = 1, w0 = 1
_root = functools.cache(open_root)


def attach(function: str, hook: str, instructions: bytes) -> tuple[int, int]:
    """Load a function and attach it; return the program and the link that keeps it attached.

    Raises OSError where the kernel refuses it, and IgError if it could deny what it sees.
    """
    kind, place = HOOKS[hook]
    if not always_allows(instructions):
        raise IgError(
            f"The function {function} is not attached: it could drop packets or deny calls.",
            f"A program at {hook} must return 1, whatever happens.",
            "Return 1 at each of its ends.",
        )
    program = load_program(function, instructions, kind, place)
    return program, create_link(hook, program, _root(), place)


def always_allows(instructions: bytes) -> bool:
    """Return whether a program is sure to return 1: each exit follows `r0 = 1`, and only that."""
    code = list(_INSTRUCTION.iter_unpack(instructions))
    targets = set()
    exits = []
    at = 0
    while at < len(code):
        operation, _, offset, value = code[at]
        if operation == _EXIT:
            exits.append(at)
        elif operation & 7 in (5, 6) and operation != _CALL:  # BPF_JMP, BPF_JMP32
            targets.add(at + 1 + (value if operation == _FAR_JUMP else offset))
        at += 2 if operation == _WIDE else 1
    return all(at and code[at - 1] in _RETURN_1 and at not in targets for at in exits)
