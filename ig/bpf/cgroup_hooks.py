"""Programs attached to the root of the cgroup hierarchy: for packets and sockets of all cgroups.

Source: include/uapi/linux/bpf.h for the numbers, libbpf's section names for the names.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence

from ig.bpf.syscalls import create_link, load_program
from ig.errors import IgError
from ig.kernel.cgroupfs import open_root

_SKB, _SOCK = 8, 9  # of enum bpf_prog_type
HOOKS = {
    "cgroup_skb/ingress": (_SKB, 0),
    "cgroup_skb/egress": (_SKB, 1),
    "cgroup/sock_create": (_SOCK, 2),
    "cgroup/post_bind4": (_SOCK, 12),
    "cgroup/post_bind6": (_SOCK, 13),
    "cgroup/sock_release": (_SOCK, 34),
}
"""The type of program and of attachment of each hook, without those that can rewrite addresses."""
_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn
_WIDE, _FAR_JUMP, _JUMP, _CALL, _EXIT = 0x18, 0x06, 0x05, 0x85, 0x95
_MOVE, _LOAD, _STORE = 0xBF, 0x79, 0x7B  # of 64 bits, between registers, from and to memory
_FRAME = 10  # the register that points to the stack
_RETURN_1 = ((0xB7, 0, 0, 1), (0xB4, 0, 0, 1))  # r0 = 1, w0 = 1
_CHANGES = (49, 64, 97, 187)
"""Helpers that change what they are called for: setsockopt, bind, skb_ecn_set_ce, set_retval."""
_Code = Sequence[tuple[int, int, int, int]]
_root = functools.cache(open_root)


def attach(function: str, hook: str, instructions: bytes) -> tuple[int, int]:
    """Load a function and attach it; return the program and the link that keeps it attached.

    Raises OSError where the kernel refuses it, and IgError if it could deny what it sees, or change
    it.
    """
    kind, place = HOOKS[hook]
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
    try:
        program = load_program(function, instructions, kind, place)
        return program, create_link(hook, program, _root(), place)
    except PermissionError as error:
        number, words = error.errno, error.strerror
        raise OSError(number, f"{words}; programs of cgroups need CAP_NET_ADMIN, too") from error


def always_allows(instructions: bytes) -> bool:
    """Return whether a program is sure to return 1: each exit follows `r0 = 1`, and only that."""
    code = _decode(instructions)
    places = list(_places(code))
    targets = {_target(code, at) for at in places if _is_jump(code[at][0])}
    exits = [at for at in places if code[at][0] == _EXIT]
    return all(at and code[at - 1] in _RETURN_1 and at not in targets for at in exits)


def may_change(instructions: bytes) -> bool:
    """Return whether a program could write to its context, or calls a helper that changes it.

    Each instruction is looked at with all registers and places of the stack that may hold the
    context there, which is in r1 at first. Calls of other functions count as changes.
    """
    code = _decode(instructions)
    before: dict[int, frozenset[int]] = {}
    coming = [(0, frozenset({1}))]
    while coming:
        at, holders = coming.pop()
        known = before.get(at)
        if at >= len(code) or (known is not None and holders <= known):
            continue
        holders = before[at] = holders | (known or frozenset())
        operation, registers, _, value = code[at]
        if operation == _CALL and (registers or value in _CHANGES):
            return True
        if _writes(code[at], holders):
            return True
        if operation == _EXIT:
            continue
        after = _holders_after(code[at], holders)
        if _is_jump(operation):
            coming.append((_target(code, at), after))
        if operation not in (_JUMP, _FAR_JUMP):
            coming.append((at + (2 if operation == _WIDE else 1), after))
    return False


def _writes(instruction: tuple[int, int, int, int], holders: frozenset[int]) -> bool:
    """Return whether it stores to the context, or the context anywhere but on the stack."""
    operation, registers, _, _ = instruction
    target, source = registers & 15, registers >> 4
    if operation & 7 not in (2, 3):  # BPF_ST, BPF_STX
        return False
    return target in holders or (
        operation & 7 == 3 and source in holders and (target != _FRAME or operation != _STORE)
    )


def _holders_after(
    instruction: tuple[int, int, int, int], holders: frozenset[int]
) -> frozenset[int]:
    """Return what may hold the context after an instruction: registers, places (negative)."""
    operation, registers, offset, _ = instruction
    target, source = registers & 15, registers >> 4
    changed, holds = {target}, False
    match operation & 7:
        case 5 | 6:
            return holders - frozenset(range(6)) if operation == _CALL else holders
        case 2 | 3:
            changed = {offset} if target == _FRAME and operation == _STORE else set()
            holds = source in holders
        case 1:
            holds = operation == _LOAD and source == _FRAME and offset in holders
        case 7 if operation == _MOVE:
            holds = source in holders
        case 7 if operation & 0xF0 != 0xB0:  # arithmetic
            holds = target in holders or (operation & 8 > 0 and source in holders)
    return holders | changed if holds else holders - changed


def _decode(instructions: bytes) -> _Code:
    return list(_INSTRUCTION.iter_unpack(instructions))


def _places(code: _Code) -> Iterator[int]:
    """Yield where instructions are; some have the length of two."""
    at = 0
    while at < len(code):
        yield at
        at += 2 if code[at][0] == _WIDE else 1


def _is_jump(operation: int) -> bool:
    return operation & 7 in (5, 6) and operation not in (_CALL, _EXIT)  # BPF_JMP, BPF_JMP32


def _target(code: _Code, at: int) -> int:
    operation, _, offset, value = code[at]
    return at + 1 + (value if operation == _FAR_JUMP else offset)
