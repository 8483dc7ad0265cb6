"""Load a BPF program, in a process of its own.

A child process compiles, loads and attaches, hands the descriptors over and ends. So the compiler's
100 MB never burden the process that runs on, its messages can be shown as ours, nothing that it
mounts or changes stays, and the parent has its hands free meanwhile. What was attached lives as
long as the descriptors do: nothing is left behind by a killed `ig`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ig import c_text
from ig.bpf.attach import import_bcc, load
from ig.bpf.contract import check_filters, source
from ig.bpf.syscalls import attach_raw_tracepoint
from ig.errors import IgError, KernelRefused, MissingDependency
from ig.kernel.capabilities import end_with_parent, hide_kernel_symbols
from ig.kernel.mounts import lockdown_refusal
from ig.stop import SIGNALS

_MOST_DESCRIPTORS = 64
_MOST_MESSAGE = 1 << 20  # bytes of an answer
_MOST_PRINTED = 1 << 18  # bytes of what is printed

_REPORTING = ("REPORT_EVENTS", "REPORT_FAILURES")
"""Options with which a program that counts reports events, too."""
_REASONS = (
    (
        re.compile(r"could not open bpf map: (\w+), error: (.+)"),
        "the kernel rejected its map {0!r}: {1}",
    ),
    (re.compile(r"Failed to load program: (.+)"), "the kernel rejected it: {0}"),
)
"""Patterns of what BCC prints where its exceptions have less, and the words that ig prints."""
_POLICY = (
    "A policy denies it regardless of privileges: seccomp (the default in containers), SELinux, "
    "AppArmor, or kernel.perf_event_paranoid above 2; before Linux 5.11 possibly the limit of "
    "locked memory (ulimit -l). Run ig on the host, or allow bpf and perf_event_open. "
    "`ig snapshot socket` and `ig list-containers` still work."
)
_REMEDIES = {
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`) to 1024 or more.",
    errno.EPERM: _POLICY,
    errno.EACCES: _POLICY,
    errno.ENOSYS: "This kernel was built without it (CONFIG_BPF_SYSCALL, CONFIG_PERF_EVENTS), or "
    "seccomp blocks it. `ig snapshot socket` and `ig list-containers` still work.",
}


@dataclass(slots=True)
class Probes:
    """A loaded and attached program.

    `maps` are descriptors by the map's name, `hooks` those that keep it attached. Of the programs
    (see recursion.h), `primaries` are those with a backup, `backups` these, by their raw
    tracepoint, `unpaired` the others, which miss an event when the kernel skips them, or, those of
    `signals`, what is known of one; `decide` is that of the one which takes a verdict.
    `tracepoints` is for each whether the program is attached to it; `refused`, what is not seen
    because an optional hook was refused.
    """

    maps: Mapping[str, int]
    decide: int
    unpaired: Sequence[int]
    signals: Sequence[int]
    primaries: Sequence[int]
    backups: Mapping[str, int]
    hooks: list[int]
    backups_attached: bool
    tracepoints: Mapping[str, bool]
    refused: Sequence[str]
    text: str
    aggregate: bool
    """Whether its counts are its records, not its events."""
    reports: bool
    """Whether its events are, too: of what it does not count."""

    def attach_backups(self) -> None:
        """Attach the backup programs. Raises KernelRefused, the first time."""
        if self.backups_attached:
            return
        self.backups_attached = True
        for event, program in self.backups.items():
            self.hooks.append(attach_raw_tracepoint(event, program))

    def close(self) -> None:
        """Detach and unload everything."""
        others = (*self.unpaired, *self.signals)
        programs = (self.decide, *others, *self.primaries, *self.backups.values())
        for descriptor in (*self.hooks, *programs, *self.maps.values()):
            os.close(descriptor)


def _fork() -> int:
    """Fork a child that ends with this process, or by a signal, and return as os.fork does."""
    # A lock that another thread holds would stay locked in the child.
    assert threading.active_count() == 1, "the loader must fork before there are threads"
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        end_with_parent()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return child
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    return child


class _Child:
    """A process that does something, returns an answer and descriptors, and ends."""

    def __init__(self, act: Callable[[], tuple[Mapping[str, Any], Sequence[int]]]) -> None:
        self._receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MOST_MESSAGE)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_MESSAGE)
        self._messages = _messages()
        sys.stdout.flush()
        sys.stderr.flush()
        self._child = _fork()
        if self._child == 0:
            self._receiver.close()
            _run_child(sender, self._messages, act)
        sender.close()

    def result(self) -> tuple[Mapping[str, Any], Sequence[int]]:
        """Wait for the answer. Raises IgError with the reason that the child gives."""
        try:
            message, descriptors, _, _ = socket.recv_fds(
                self._receiver, _MOST_MESSAGE, _MOST_DESCRIPTORS
            )
            _, status = os.waitpid(self._child, 0)
            self._child = 0
            printed = "" if message else _printed(self._messages)
        finally:
            self.close()
        if not message:
            raise IgError(
                "The process that loads the BPF program ended unexpectedly.",
                f"Exit status: {os.waitstatus_to_exitcode(status)}.",
                output=_last(printed),
            )
        answer: dict[str, Any] = json.loads(message)
        if "error" in answer:
            kind = MissingDependency if answer.get("missing") else KernelRefused
            raise kind(*answer["error"])
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return answer, descriptors

    def close(self) -> None:
        """End the process if it has not ended: it may hang."""
        self._receiver.close()
        self._messages.close()
        if self._child > 0:
            os.kill(self._child, signal.SIGKILL)


def bcc_version() -> str:
    """Return the version of the distribution's BCC. Raises MissingDependency.

    A child process imports it: with it comes a compiler, of which half stays in memory.
    """
    child = _Child(lambda: ({"version": str(import_bcc().__version__)}, ()))
    return str(child.result()[0]["version"])


class Loading:
    """A program on its way into the kernel, in a process of its own."""

    def __init__(
        self, program: str, defines: Mapping[str, int | str], aggregate: bool = False
    ) -> None:
        """With `aggregate`, the program's counts are read (see aggregate.h) instead of its events;
        with REPORT_EVENTS or REPORT_FAILURES its events, too.
        """
        text = self._text = source(program, aggregate)
        check_filters(program, text, defines)
        self._reports = aggregate and any(map(defines.get, _REPORTING))
        silent = aggregate and not self._reports
        defines = {"EVENTS_PAGES": 1, **defines} if silent else dict(defines)
        self._aggregate = aggregate
        structs: tuple[str, ...] = ("key", "value") if aggregate else ()
        if not silent:
            structs += (c_text.event(text),)
        self._child = _Child(lambda: load(text, defines, structs))

    def result(self) -> Probes:
        """Wait for the program to be attached. Raises IgError, as `_Child.result`."""
        answer, descriptors = self._child.result()
        given = iter(descriptors)
        return Probes(
            maps={name: next(given) for name in answer["maps"]},
            decide=next(given),
            unpaired=list(islice(given, answer["unpaired"])),
            signals=list(islice(given, answer["signals"])),
            primaries=list(islice(given, answer["primaries"])),
            backups={event: next(given) for event in answer["backups"]},
            hooks=list(given),
            backups_attached=answer["backups_attached"],
            tracepoints=answer["tracepoints"],
            refused=answer["refused"],
            text=self._text,
            aggregate=self._aggregate,
            reports=self._reports,
        )

    def close(self) -> None:
        """End the child if it has not ended."""
        self._child.close()


def _run_child(
    sender: socket.socket,
    messages: Any,
    act: Callable[[], tuple[Mapping[str, Any], Sequence[int]]],
) -> None:
    """Run the child: act, answer, and end without running exit handlers."""
    status = 1
    try:
        os.dup2(messages.fileno(), 1)
        os.dup2(messages.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        hide_kernel_symbols()
        end_with_parent()  # a change of the user has undone it
        try:
            answer, descriptors = act()
        except IgError as error:
            missing = isinstance(error, MissingDependency)
            answer, descriptors = {"error": error.args, "missing": missing}, ()
        except Exception as error:
            answer, descriptors = {"error": _explain(error, messages)}, ()
        if descriptors:
            socket.send_fds(sender, [json.dumps(answer).encode()], descriptors)
        else:
            sender.send(json.dumps(answer).encode())
        status = 0
    except BaseException:
        traceback.print_exc()  # the parent prints it
        sys.stderr.flush()
    finally:
        os._exit(status)


def _messages() -> Any:
    """Return a private file in memory, so that no folder need be writable."""
    try:
        return os.fdopen(os.memfd_create("messages"), "w+b")
    except OSError:  # gVisor and strict seccomp profiles have no memfd
        return tempfile.TemporaryFile()


def _explain(error: Exception, messages: Any) -> tuple[str, str, str, list[str]]:
    """Return the parts of an IgError for what BCC, the compiler or the kernel printed."""
    printed = _printed(messages)
    if os.environ.get("IG_DEBUG"):
        printed += "\n" + traceback.format_exc()
    if locked := lockdown_refusal():
        shown = printed.splitlines() if os.environ.get("IG_DEBUG") else []
        return locked.failed, locked.found, locked.remedy, shown
    what = (error.strerror if isinstance(error, OSError) else None) or str(error)
    for pattern, words in _REASONS:
        if match := pattern.search(printed):
            what = words.format(*match.groups())
    remedy = next(
        (remedy for number, remedy in _REMEDIES.items() if os.strerror(number) in what),
        "Run `ig doctor` to check this kernel; IG_DEBUG=1 prints the whole output.",
    )
    return f"Cannot load the BPF program: {what}", "", remedy, _last(printed)


def _printed(messages: Any) -> str:
    """Return the end of what the child, BCC and the compiler have printed: a verifier's reason."""
    messages.seek(max(0, messages.seek(0, os.SEEK_END) - _MOST_PRINTED))
    return str(messages.read(_MOST_PRINTED).decode(errors="replace")).strip()


def _last(printed: str) -> list[str]:
    """Return the lines that are shown of it."""
    lines = printed.splitlines()
    return lines if os.environ.get("IG_DEBUG") else lines[-12:]
