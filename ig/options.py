"""The options that commands share, and how what users type for options is read."""

from __future__ import annotations

import grp
import pwd
import socket
from collections.abc import Callable, Mapping
from typing import Any

from ig.durations import MILLISECOND, SECOND, parse_duration
from ig.errors import UsageError
from ig.gadget import Param

WHOSE = (
    Param(
        "containername", ("-c", "--containername"), "strings", "Containers: NAME, NAME-*, !NAME."
    ),
    Param("podname", ("--podname",), "strings", "Only these pods."),
    Param("namespace", ("-n", "--namespace"), "strings", "Only these Kubernetes namespaces."),
    Param("selector", ("-l", "--selector"), "strings", "Only containers with labels KEY=VALUE."),
    Param("all_namespaces", ("-A", "--all-namespaces"), "flag", ""),
    Param("host", ("--host",), "flag", "Show the host's own processes too."),
    Param("host_only", ("--host-only",), "flag", "Show only the host's own processes."),
)
RUNTIMES = (
    Param("runtimes", ("-r", "--runtimes"), "strings", "docker,containerd,podman,cri-o"),
    Param("docker_socket", ("--docker-socketpath",), "string", "Docker's socket."),
    Param("containerd_socket", ("--containerd-socketpath",), "string", "containerd's socket."),
    Param("containerd_namespace", ("--containerd-namespace",), "string", "One of containerd's."),
    Param("podman_socket", ("--podman-socketpath",), "string", "Podman's socket."),
    Param("crio_socket", ("--crio-socketpath",), "string", "The socket of CRI-O or another CRI."),
)
FAMILIES = (
    Param("ipv4", ("-4",), "flag", "Only IPv4."),
    Param("ipv6", ("-6",), "flag", "Only IPv6."),
)
OUTPUT = (
    Param(
        "output",
        ("-o", "--output"),
        "string",
        "columns, columns=A,B,… (+A,-B to add and leave out), json, jsonl, jsonpretty, yaml, "
        "csv, csv=A,B,…",
    ),
    Param("list_columns", ("--columns",), "flag", "List the columns: JSON keys and meanings."),
    Param(
        "filter",
        ("-F", "--filter"),
        "strings",
        "Show only rows where COLUMN==A,B (or != < <= > >= ~REGEX); X || Y.",
    ),
    Param("wide", ("--wide",), "flag", "Show all columns, however wide the terminal is."),
    Param("no_header", ("--no-header",), "flag", "Leave out the headings."),
    Param("color", ("--color",), "string", "auto, always or never; NO_COLOR counts as never."),
    Param("ready_file", ("--ready-file",), "string", "Write this file once all is attached."),
    Param(
        "keep_privileges",
        ("--keep-privileges",),
        "flag",
        "Do not give up the privileges that are needed no longer.",
    ),
)
TIME = Param("time", ("--time",), "string", "Begin rows with the time: clock, delta, iso or none.")
TRACING = (
    Param(
        "timeout",
        ("-t", "--timeout"),
        "seconds",
        "End after so many seconds, or 500ms, 2m; 0: after what is seen already.",
    ),
    Param("max_events", ("--max-events",), "count", "End after so many events; an attempt is one."),
)
MAX_ROWS = Param("max_rows", ("-m", "--max-rows"), "count", "Show only so many rows.")
HEADINGS = {
    param.name: heading
    for heading, params in (
        ("Containers", WHOSE),
        ("Runtimes", RUNTIMES),
        ("Output", (*OUTPUT, TIME, MAX_ROWS)),
        ("Ending", TRACING),
    )
    for param in params
}
"""The heading of each shared option in a command's help; a gadget's own come first, under none."""
FOREIGN = {
    "--fields": "-o columns=A,B,… (+A,-B to add and leave out)",
    "--filter-expr": "-F with ==, !=, <, <=, >, >=, ~ and ||",
    "--max-entries": "--max-events of a trace, --max-rows of a snapshot",
    "--map-nodes-count": "--max-rows",
    "--no-headers": "--no-header",
    "--extra-lines": "-w SECONDS",
    "-P": "--port",
}
"""Options of similar commands, and what is used here instead."""
_LEAST_INTERVAL = 0.1
_MOST_SECONDS = 10**9
_MOST_PORTS = 2048


def duration(text: str) -> int:
    """Return the ns of a duration; a bare number is in ms. Raises UsageError."""
    return parse_duration(text, MILLISECOND)


def seconds(text: str) -> float:
    """Return the seconds of a duration; a bare number is in seconds. Raises UsageError."""
    value = parse_duration(text, SECOND) / SECOND
    if value > _MOST_SECONDS:
        raise UsageError(f"{text[:64]!r} is too long.", f"It may be {_MOST_SECONDS} s at most.")
    return value


def _interval(text: str) -> float:
    interval = seconds(text)
    if interval < _LEAST_INTERVAL:
        raise UsageError(
            f"{text.strip()[:64]!r} is too short.", "", f"The least is {_LEAST_INTERVAL:g} seconds."
        )
    return interval


def port(text: str) -> int:
    """Return the port of a number or of a service's name (/etc/services). Raises UsageError."""
    name = text.strip()
    if name.isascii() and name.isdigit() and len(name) < 6 and 0 < int(name) < 65536:
        return int(name)
    if name and not name[0].isdigit():
        for protocol in ("tcp", "udp"):
            try:
                return socket.getservbyname(name, protocol)
            except (OSError, UnicodeError, ValueError):
                continue
    raise UsageError(
        f"{name[:64]!r} is no port.",
        "A port is a number from 1 to 65535, or a service of /etc/services such as http.",
        "",
    )


def user(text: str) -> int:
    """Return the number of a user, given as it or by the name here. Raises UsageError."""
    return _account(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group(text: str) -> int:
    """Return the number of a group, given as it or by the name here. Raises UsageError."""
    return _account(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def _account(text: str, what: str, find: Callable[[str], int]) -> int:
    name = text.strip()
    if name.isascii() and name.isdigit() and len(name) < 11 and int(name) < 2**32 - 1:
        return int(name)
    try:
        return find(name)
    except (KeyError, ValueError, UnicodeError):
        raise UsageError(
            f"There is no {what} {name[:64]!r} on this host.", "", "Give a name or a number."
        ) from None


def _ports(text: str) -> list[int]:
    ports = [port(part) for part in text.split(",")]
    if len(ports) > _MOST_PORTS:
        raise UsageError(
            f"{len(ports)} ports are too many for the kernel's filter.",
            f"It takes {_MOST_PORTS} at most.",
            "-F 'port>=1024,port<2048' filters by any range.",
        )
    return ports


def _whole(name: str, least: int, most: int) -> Callable[[int], int]:
    def check(value: int) -> int:
        if not least <= value <= most:
            raise UsageError(f"{value} is no {name}.", f"It is a number from {least} to {most}.")
        return value

    return check


CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "duration": duration,
    "ports": _ports,
    "port": port,
    "uid": user,
    "pid": _whole("process", 1, 1 << 22),
    "integer": _whole("whole number", -(1 << 63), (1 << 63) - 1),
    "seconds": seconds,
    "interval": _interval,
}
"""What makes a value of the text of an option of each kind."""
