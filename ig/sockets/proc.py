"""What /proc tells: tables of sockets, what processes hold, the cgroups they are in.

Here are also the fields of a socket in a snapshot, from any source: names, states, addresses.
Source: proc(5), Documentation/networking/proc_net_tcp.rst.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache, partial
from typing import Any

from ig.memo import Cache

Fields = dict[str, list[Any]]
"""One list per field, all of one length; the fields are FIELDS, plus those of `more`."""

FIELDS = (
    *("proto", "version", "saddr", "sport", "daddr", "dport", "state_raw", "ifindex"),
    *("recv_q", "send_q", "uid", "ino", "mark", "cgroup"),
)
"""proto is TCP or UDP, addresses are text, ports and the rest numbers in host byte order, queues
bytes (of a listener: connections waiting and their limit); 0 where the kernel has no answer."""
INFO = ("rtt", "retransmits", "cwnd", "bytes_sent", "bytes_received")
"""Of tcp_info: rtt in ns, cwnd in segments, retransmits in all."""
TRAFFIC = ("rtt", "retransmits", "bytes_acked", "bytes_received", "cookie")
"""What differs between two snapshots: of tcp_info, each side's SYN and FIN counted as a byte, and
the number by which the kernel distinguishes sockets; 0 where it is not known."""
V6ONLY = "v6only"
"""Whether an IPv6 socket takes no IPv4."""

ESTABLISHED, SYN_RECV, TIME_WAIT, CLOSE, LISTEN = 1, 3, 6, 7, 10
STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
}
"""The states of net/tcp_states.h, as TCP sockets have them."""
UDP_STATES = {ESTABLISHED: "ACTIVE", CLOSE: "INACTIVE"}
"""A connected UDP socket is active."""
ALL_STATES = sum(1 << number for number in STATES)


def empty(more: Sequence[str] = ()) -> Fields:
    """Return the fields of no sockets; `more` are some of INFO, TRAFFIC and V6ONLY."""
    return {name: [] for name in (*FIELDS, *more)}


def extend(fields: Fields, more: Fields) -> None:
    """Append the sockets of `more`, which must not be used any more."""
    if not more["proto"]:
        return
    for name in fields:
        added = more.pop(name)
        if len(fields[name]) > len(added):
            fields[name] += added
        else:
            added[:0] = fields[name]
            fields[name] = added


def _address4(word: int) -> str:
    return socket.inet_ntop(socket.AF_INET, word.to_bytes(4, sys.byteorder))


def _address6(words: tuple[int, ...]) -> str:
    return socket.inet_ntop(socket.AF_INET6, struct.pack("=4I", *words))


ADDRESSES4: Cache[int, str] = Cache(_address4)
"""The 32 bits of an IPv4 address, as they lie in memory, to text."""
ADDRESSES6: Cache[tuple[int, ...], str] = Cache(_address6)
"""The four 32-bit words of an IPv6 address, as they lie in memory, to text."""


def show_mapped_as_ipv4(fields: Fields, start: int = 0) -> None:
    """Make IPv4 of the sockets, from place `start` on, whose addresses are `::ffff:a.b.c.d`.

    Such a socket uses IPv4. A listener on `::` stays as it is.
    """
    ends = [fields["saddr"], fields["daddr"]]
    mapped = {text for end in ends for text in set(end[start:]) if text.startswith("::ffff:")}
    plain = {text: text[7:] for text in mapped if "." in text}
    if not plain:
        return
    wildcard = {"::": "0.0.0.0"}
    for place in range(start, len(ends[0])):
        if ends[0][place] in plain or ends[1][place] in plain:
            fields["version"][place] = 4
            for end in ends:
                end[place] = plain.get(end[place]) or wildcard.get(end[place], end[place])


Holders = dict[int, tuple[tuple[int, str], ...]]
"""A socket's inode to the number and name of each process that holds it, lowest number first."""

COMPAT = "accepts and binds of 32-bit processes, and their connects that fail before a SYN"
"""What has no tracepoint."""
_MANY = 1 << 32
_SOCKET = "socket:["
_PART = 1 << 13  # bytes that are read at once
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def cgroup_paths(pid: int) -> Sequence[tuple[str, str]]:
    """Return the cgroups of a process as (controllers, path): its version 2 one first.

    The controllers are the hierarchy's (`cpu,cpuacct`, `name=systemd`), empty for version 2. The
    list is empty if the process is gone, or has none that we may see.
    """
    return _cgroup_paths(_read(f"/proc/{pid}/cgroup"))


@lru_cache(1024)  # many processes are in one cgroup
def _cgroup_paths(text: str) -> Sequence[tuple[str, str]]:
    unified: list[tuple[str, str]] = []
    legacy: list[tuple[str, str]] = []
    for line in text.splitlines():
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


def tcp_in_use() -> int:
    """Return how many TCP sockets this thread's network namespace has that listen or are connected.

    Those in TIME_WAIT are not among them. A great number if that cannot be read.
    """
    texts = [_read(f"/proc/thread-self/net/{name}") for name in ("sockstat", "sockstat6")]
    found = re.findall(r"^TCP6?: inuse (\d+)", "\n".join(texts), re.MULTILINE)
    return sum(map(int, found)) if texts[0] else _MANY


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
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        data = b"".join(iter(partial(os.read, descriptor, _PART), b""))
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return data.decode("utf-8", "backslashreplace")


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
