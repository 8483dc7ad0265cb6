"""Read and change the instructions of compiled programs.

Source: include/uapi/linux/bpf.h (struct bpf_insn), Documentation/bpf/standardization/.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence

_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn: code, registers, offset, number
_Instruction = tuple[int, int, int, int]
_Code = Sequence[_Instruction]
_WIDE, _FAR_JUMP, _JUMP, _CALL, _EXIT = 0x18, 0x06, 0x05, 0x85, 0x95
_MOVE, _LOAD, _STORE = 0xBF, 0x79, 0x7B  # of 64 bits, between registers, from and to memory
_NUMBER = (0xB7, 0xB4)  # moves a number into a register, of 64 and of 32 bits
_FRAME = 10  # the register that points to the stack
_RETURN_0, _RETURN_1 = ([(code, 0, 0, number) for code in _NUMBER] for number in (0, 1))
_CHANGES = (49, 64, 97, 187)
"""Helpers that change what they are called for: setsockopt, bind, skb_ecn_set_ce, set_retval."""
_PSEUDO_KFUNC_CALL = 2  # BPF_PSEUDO_KFUNC_CALL, of the register that says what is called


def does_nothing(instructions: bytes) -> bool:
    """Return whether a program only returns 0."""
    code = _decode(instructions)
    return len(code) == 2 and code[0] in _RETURN_0 and code[1][0] == _EXIT


def calls(instructions: bytes, helper: int) -> bool:
    """Return whether a program calls the helper of this number."""
    call = _INSTRUCTION.pack(_CALL, 0, 0, helper)
    return any(not found.start() % 8 for found in re.finditer(re.escape(call), instructions))


def with_number(instructions: bytes, helper: int, number: int) -> bytes:
    """Return a program with a number in place of each call of this helper."""

    def changed(code: int, registers: int, offset: int, value: int) -> _Instruction:
        asks = code == _CALL and value == helper
        return (_NUMBER[0], 0, 0, number) if asks else (code, registers, offset, value)

    return _changed(instructions, changed)


def with_kernel_calls(instructions: bytes, mark: int) -> bytes:
    """Return a program in which calls of helpers with the bit `mark` are calls of the kernel.

    The other bits are the number of the kernel's function in BTF.
    """

    def changed(code: int, registers: int, offset: int, value: int) -> _Instruction:
        if code == _CALL and value & mark:
            return code, registers | _PSEUDO_KFUNC_CALL << 4, offset, value ^ mark
        return code, registers, offset, value

    return _changed(instructions, changed)


def _changed(instructions: bytes, change: Callable[[int, int, int, int], _Instruction]) -> bytes:
    """Return instructions, of which each has been replaced by what `change` makes of it."""
    return b"".join(_INSTRUCTION.pack(*change(*each)) for each in _decode(instructions))


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


def _writes(instruction: _Instruction, holders: frozenset[int]) -> bool:
    """Return whether it stores to the context, or the context anywhere but on the stack."""
    operation, registers, _, _ = instruction
    target, source = registers & 15, registers >> 4
    if operation & 7 not in (2, 3):  # BPF_ST, BPF_STX
        return False
    return target in holders or (
        operation & 7 == 3 and source in holders and (target != _FRAME or operation != _STORE)
    )


def _holders_after(instruction: _Instruction, holders: frozenset[int]) -> frozenset[int]:
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
