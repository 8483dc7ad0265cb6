"""Look up what /proc shows only to the privileged, once this process has given its privileges up.

A child process keeps the one capability that it takes, holds nothing else that is open, and
answers nothing but two numbers to a number. It ends with this process, however that ends.

Source: proc(5), namespaces(7), ptrace(2) ("Ptrace access mode checking").
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from contextlib import suppress

from ig.privileges import Capability, drop, holds

_QUESTION = struct.Struct("=q")
_ANSWER = struct.Struct("=QQ")
_KINDS = ("mnt", "net")
_PATIENCE = 2.0  # seconds

_child: socket.socket | None = None
_asking = threading.Lock()


def start() -> None:
    """Start the child, before privileges are given up and before there are other threads."""
    global _child
    if _child is not None or not holds(Capability.CAP_SYS_PTRACE):
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        _serve(theirs)
    theirs.close()
    ours.settimeout(_PATIENCE)
    _child = ours


def namespace(pid: int | str, kind: str) -> int:
    """Return the inode of a process's namespace, `mnt` or `net`; 0 if it cannot be told."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except PermissionError:
        return _ask(int(pid))[_KINDS.index(kind)]
    except OSError:
        return 0


def _ask(pid: int) -> tuple[int, ...]:
    global _child
    with _asking:
        if _child is not None:
            try:
                _child.send(_QUESTION.pack(pid))
                return _ANSWER.unpack(_child.recv(_ANSWER.size))
            except (OSError, struct.error):  # it was killed, or a late answer would be mistaken
                _child.close()
                _child = None
    return 0, 0


def _serve(parent: socket.socket) -> None:
    """Be the child: answer until the parent is gone."""
    try:
        # A terminal's Ctrl-C goes to all its processes.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(parent.fileno(), 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")
        drop((), (Capability.CAP_SYS_PTRACE,))
        only = socket.socket(fileno=0)
        while question := only.recv(_QUESTION.size):
            (pid,) = _QUESTION.unpack(question)
            only.send(_ANSWER.pack(*(_inode(pid, kind) for kind in _KINDS)))
    finally:
        os._exit(0)


def _inode(pid: int, kind: str) -> int:
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    return 0
