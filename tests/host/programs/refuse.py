"""Run a command for which the kernel refuses system calls: `refuse.py bpf:5=EPERM… -- COMMAND`.

`bpf:5` is a call whose first argument is 5. What is refused stays so for all that the command
starts. Source: seccomp(2), linux/seccomp.h, linux/filter.h.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {
        "bpf": 321,
        "capset": 126,
        "memfd_create": 319,
        "mount": 165,
        "perf_event_open": 298,
        "pwritev2": 328,
        "setns": 308,
        "socket": 41,
        "unshare": 272,
    },
    "aarch64": {
        "bpf": 280,
        "capset": 91,
        "memfd_create": 279,
        "mount": 40,
        "perf_event_open": 241,
        "pwritev2": 287,
        "setns": 268,
        "socket": 198,
        "unshare": 97,
    },
}
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_AT, ARGUMENT_AT = 0, 16
ERRNO, ALLOW = 0x00050000, 0x7FFF0000
SET_MODE_FILTER = 1
SECCOMP = {"x86_64": 317, "aarch64": 277}


def instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def refusal(rule: str) -> bytes:
    call, _, error = rule.partition("=")
    name, _, argument = call.partition(":")
    number = NUMBERS[platform.machine()][name]
    refuse = instruction(RETURN, ERRNO | getattr(errno, error))
    if argument:
        refuse = (
            instruction(LOAD, ARGUMENT_AT)
            + instruction(JUMP_IF_EQUAL, int(argument), 0, 1)
            + refuse
        )
    length = len(refuse) // 8
    return instruction(LOAD, NUMBER_AT) + instruction(JUMP_IF_EQUAL, number, 0, length) + refuse


def main() -> None:
    end = sys.argv.index("--")
    code = b"".join(map(refusal, sys.argv[1:end])) + instruction(RETURN, ALLOW)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(SECCOMP[platform.machine()], SET_MODE_FILTER, 0, program):
        raise OSError(ctypes.get_errno(), "seccomp")
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])


main()
