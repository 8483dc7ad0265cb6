"""Read files of /proc that need a capability, after this process has dropped its own.

A child process keeps that one capability, has no other files open, and returns only the contents of
a few files of a process. It ends with this process, however that ends.

Source: proc(5), namespaces(7), ptrace(2) ("Ptrace access mode checking").
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from contextlib import suppress

from ig.kernel.capabilities import Capability, drop, end_with_parent, holds

_FILES = ("ns/mnt", "ns/net", "cgroup", "stat", "uid_map", "net/fib_trie", "net/if_inet6")
_QUESTION = struct.Struct("=qB")  # a process, and the place of a file in _FILES
_MOST = 65536  # bytes of an answer: the content after a letter, so that none is empty
_TIMEOUT = 2.0  # seconds

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
    ours.settimeout(_TIMEOUT)
    _child = ours


def namespace(pid: int | str, kind: str) -> int:
    """Return the inode of a process's namespace, `mnt` or `net`; 0 if unknown."""
    return int(read(pid, f"ns/{kind}") or 0)


def read(pid: int | str, name: str) -> str:
    """Return what /proc/PID/NAME holds, of a namespace its inode; "" if unknown."""
    try:
        data = _content(pid, name)
    except PermissionError:
        data = _ask(int(pid), name)
    except OSError:
        # Where /proc is mounted with hidepid, it hides others' processes as if they were not.
        data = b"" if os.path.exists("/proc/1") else _ask(int(pid), name)
    return data.decode("utf-8", "backslashreplace")


def _content(pid: int | str, name: str) -> bytes:
    path = f"/proc/{pid}/{name}"
    if name.startswith("ns/"):
        return b"%d" % os.stat(path).st_ino
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _ask(pid: int, name: str) -> bytes:
    global _child
    with _asking:
        if _child is None:
            return b""
        try:
            _child.send(_QUESTION.pack(pid, _FILES.index(name)))
            answer = _child.recv(_MOST)
        except OSError:  # it was killed, or a late answer would be mistaken for the next
            answer = b""
        if not answer:
            _child.close()
            _child = None
        return answer[1:]


def _serve(parent: socket.socket) -> None:
    """Run the child: answer until the parent is gone."""
    try:
        # A terminal's Ctrl-C goes to all its processes.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        end_with_parent()  # stopped it would not see that its parent is gone
        os.dup2(parent.fileno(), 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")
        drop((), (Capability.CAP_SYS_PTRACE,))
        only = socket.socket(fileno=0)
        while question := only.recv(_QUESTION.size):
            pid, place = _QUESTION.unpack(question)
            content = b""
            with suppress(OSError):
                content = _content(pid, _FILES[place])
            only.send(b"=" + content[: _MOST - 1])
    finally:
        os._exit(0)
