"""Run a command for which the kernel refuses system calls: `refuse.py bpf:5=EPERM… -- COMMAND`.

`bpf:5` is a call whose first argument is 5, `recvfrom:3:32` one whose argument 3, counted from 0,
is 32. What is refused stays so for all that the command starts. With `=HOLD` the call does not
return: a child takes each, writes `held` to the file of `--held`, and answers none until the
command has ended; `--pass N` lets the first N through.
Source: seccomp(2), seccomp_unotify(2), linux/seccomp.h, linux/filter.h.
"""

import argparse
import ctypes
import errno
import fcntl
import os
import platform
import select
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
        "recvfrom": 45,
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
        "recvfrom": 207,
        "setns": 268,
        "socket": 198,
        "unshare": 97,
    },
}
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_AT, ARGUMENTS_AT = 0, 16
ERRNO, HOLD, ALLOW = 0x00050000, 0x7FC00000, 0x7FFF0000
SET_MODE_FILTER, NEW_LISTENER = 1, 8
SECCOMP = {"x86_64": 317, "aarch64": 277}
NOTIFICATION, ANSWER = struct.Struct("=QII64x"), struct.Struct("=QqiI")
RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1
libc = ctypes.CDLL(None, use_errno=True)


def instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def refusal(rule: str) -> bytes:
    call, _, error = rule.partition("=")
    name, *argument = call.split(":")
    number = NUMBERS[platform.machine()][name]
    refuse = instruction(RETURN, HOLD if error == "HOLD" else ERRNO | getattr(errno, error))
    if argument:
        place, value = [0, *map(int, argument)][-2:]
        refuse = (
            instruction(LOAD, ARGUMENTS_AT + 8 * place)
            + instruction(JUMP_IF_EQUAL, value, 0, 1)
            + refuse
        )
    length = len(refuse) // 8
    return instruction(LOAD, NUMBER_AT) + instruction(JUMP_IF_EQUAL, number, 0, length) + refuse


def install(rules: list[str]) -> int:
    """Let the kernel refuse from here on; return what tells of held calls, 0 if none is held."""
    code = b"".join(map(refusal, rules)) + instruction(RETURN, ALLOW)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))
    flags = NEW_LISTENER if any(rule.endswith("=HOLD") for rule in rules) else 0
    got: int = libc.syscall(SECCOMP[platform.machine()], SET_MODE_FILTER, flags, program)
    if got < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return got


def hold(listener: int, command: int, passing: int, told: str) -> None:
    """Be the child: let so many calls pass, and hold the others until the command has ended."""
    os.closerange(0, 3)
    ended = os.pidfd_open(command)
    while ended not in select.select([listener, ended], [], [])[0]:
        notification = bytearray(NOTIFICATION.size)
        fcntl.ioctl(listener, RECEIVE, notification)
        if passing:
            passing -= 1
            number, *_ = NOTIFICATION.unpack(notification)
            fcntl.ioctl(listener, SEND, ANSWER.pack(number, 0, 0, CONTINUE))
        else:
            with open(told, "a") as file:
                file.write("held\n")
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rules", nargs="*")
    parser.add_argument("--held", default=os.devnull)
    parser.add_argument("--pass", dest="passing", type=int, default=0)
    end = sys.argv.index("--")
    options = parser.parse_args(sys.argv[1:end])
    listener = install(options.rules)
    command = os.getpid()
    if listener and os.fork() == 0:
        hold(listener, command, options.passing, options.held)
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])


main()
