"""Read from /proc what processes hold and where they belong, and the tables of sockets.

Source: proc(5), Documentation/networking/proc_net_tcp.rst.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

from ig.sockets.fields import (
    ADDRESSES4,
    ADDRESSES6,
    ALL_STATES,
    FIELDS,
    STATES,
    Fields,
    empty,
    extend,
    show_mapped_as_ipv4,
)

Holders = dict[int, tuple[tuple[int, str], ...]]
"""A socket's inode to the number and name of each process that holds it, lowest number first."""

COMPAT = "accepts and binds of 32-bit processes, and their connects that fail before a SYN"
"""What has no tracepoint."""
_SOCKET = "socket:["
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def cgroup_paths(pid: int) -> list[tuple[str, str]]:
    """Return the cgroups of a process as (controllers, path): its version 2 one first.

    The controllers are the hierarchy's (`cpu,cpuacct`, `name=systemd`), empty for version 2. The
    list is empty if the process is gone, or has none that we may see.
    """
    unified: list[tuple[str, str]] = []
    legacy: list[tuple[str, str]] = []
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        (unified if hierarchy == "0" else legacy).append((controllers, path))
    return unified + legacy


def comm(pid: int) -> str:
    """Return the name of a process, "" if it is gone."""
    return _read(f"/proc/{pid}/comm").removesuffix("\n")


def holders(pids: Iterable[int], inodes: AbstractSet[int]) -> Holders:
    """Find who holds which of the sockets, among these processes."""
    found: Holders = {}
    for pid in sorted(pids):
        held = inodes & set(_sockets_of(pid))
        if held:
            alone = ((pid, comm(pid)),)
            for inode in held:
                others = found.get(inode)
                found[inode] = alone if others is None else others + alone
    return found


def _sockets_of(pid: int) -> Iterator[int]:
    """Yield the inodes of the sockets that a process holds; may end early if it ends."""
    try:
        folder = os.open(f"/proc/{pid}/fd", _FOLDER)
    except OSError:
        return
    try:
        for name in os.listdir(folder):
            try:
                target = os.readlink(name, dir_fd=folder)
            except OSError:
                continue
            if target.startswith(_SOCKET):
                yield int(target[len(_SOCKET) : -1])
    except OSError:
        return
    finally:
        os.close(folder)


def sockets(task: int | str, proto: str, states: int = ALL_STATES) -> Fields:
    """Return the sockets in the network namespace of a task; `proto` is TCP or UDP.

    The task is a process's number or a folder of /proc, as `PID/task/TID`. This has less
    than sock_diag: no cgroup, mark, interface. Raises OSError if the task is gone, or the table
    may not be read.
    """
    fields = empty()
    for version, suffix in ((4, ""), (6, "6")):
        try:
            with open(f"/proc/{task}/net/{proto.lower()}{suffix}", encoding="ascii") as table:
                next(table, None)
                extend(fields, parse(proto, version, table, states))
        except FileNotFoundError:
            if version == 4:
                raise
    return fields


def parse(proto: str, version: int, lines: Iterable[str], states: int = ALL_STATES) -> Fields:
    """Return the sockets in the lines of such a table; what is no whole line is left out."""
    fields = empty()
    for line in lines:
        row = _row(line, version)
        if row is not None and row[4] in STATES and states >> row[4] & 1:
            values = (proto, version, *row, 0, 0)
            for name, value in zip(FIELDS, values, strict=True):
                fields[name].append(value)
    if version == 6:
        show_mapped_as_ipv4(fields)
    return fields


def _row(line: str, version: int) -> tuple[str, int, str, int, int, int, int, int, int, int] | None:
    """Read one line from `saddr` to `ino`; None if it is not a whole line."""
    words = line.split()
    try:
        source, sport = words[1].split(":")
        destination, dport = words[2].split(":")
        send_q, recv_q = words[4].split(":")
        return (
            _address(source, version),
            int(sport, 16),
            _address(destination, version),
            int(dport, 16),
            int(words[3], 16),
            0,
            int(recv_q, 16),
            int(send_q, 16),
            int(words[7]),
            int(words[9]),
        )
    except (IndexError, ValueError):
        return None


def _address(digits: str, version: int) -> str:
    octets = bytes.fromhex(digits)
    if len(octets) != (4 if version == 4 else 16):
        raise ValueError(digits)
    words = struct.unpack(f">{len(octets) // 4}I", octets)
    return ADDRESSES4[words[0]] if version == 4 else ADDRESSES6[words]


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read().decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def compat_processes() -> int:
    """Return how many 32-bit processes run on this 64-bit kernel, as far as we may see.

    Their stack begins below 4 GiB: field 28 of /proc/PID/stat, 0 where it is not shown.
    """
    count = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
            count += len(fields) > 25 and 0 < int(fields[25]) < 1 << 32
    return count
