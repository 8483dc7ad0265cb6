"""The options that commands share, and the parsing of their values."""

from __future__ import annotations

import grp
import pwd
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ig.durations import MILLISECOND, SECOND, parse_duration
from ig.errors import UsageError
from ig.gadget import Gadget, Param

WHOSE = (
    Param(
        "containername",
        ("-c", "--containername"),
        "strings",
        "Only these containers: NAME, NAME-*, ID prefix, !NAME.",
    ),
    Param("podname", ("--podname",), "strings", "Only these pods."),
    Param("namespace", ("-n", "--namespace"), "strings", "Only these Kubernetes namespaces."),
    Param(
        "selector",
        ("-l", "--selector"),
        "strings",
        "Only containers with these labels (KEY=VALUE).",
    ),
    Param("all_namespaces", ("-A", "--all-namespaces"), "flag", ""),
    Param("host", ("--host",), "flag", "Include processes of the host."),
    Param("host_only", ("--host-only",), "flag", "Only processes of the host."),
)
RUNTIMES = (
    Param(
        "runtimes",
        ("-r", "--runtimes"),
        "strings",
        "Query only these: docker, containerd, podman, cri-o.",
    ),
    Param("docker_socket", ("--docker-socketpath",), "string", "Path of the Docker socket."),
    Param(
        "containerd_socket",
        ("--containerd-socketpath",),
        "string",
        "Path of the containerd socket.",
    ),
    Param(
        "containerd_namespace",
        ("--containerd-namespace",),
        "string",
        "Only this containerd namespace.",
    ),
    Param("podman_socket", ("--podman-socketpath",), "string", "Path of the Podman socket."),
    Param(
        "crio_socket",
        ("--crio-socketpath",),
        "string",
        "Path of the socket of CRI-O or another CRI.",
    ),
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
        "Format: columns, columns=A,B,… (+A,-B adds and removes), json, jsonl, jsonpretty, yaml, "
        "csv, csv=A,B,…",
    ),
    Param(
        "list_columns", ("--columns",), "flag", "List the columns with JSON keys and descriptions."
    ),
    Param(
        "filter",
        ("-F", "--filter"),
        "strings",
        "Only rows where COLUMN==A,B (also != < <= > >= ~REGEX; X || Y for alternatives).",
    ),
    Param("wide", ("--wide",), "flag", "Print all columns, regardless of the terminal width."),
    Param("no_header", ("--no-header",), "flag", "Do not print column headings."),
    Param(
        "color", ("--color",), "string", "Colors: auto, always or never (auto respects NO_COLOR)."
    ),
    Param("ready_file", ("--ready-file",), "string", "Write the PID to this file when ready."),
    Param(
        "keep_privileges",
        ("--keep-privileges",),
        "flag",
        "Do not drop privileges that are no longer needed.",
    ),
)
TIME = Param(
    "time", ("--time",), "string", "Start each row with the time: clock, delta, iso or none."
)
TRACING = (
    Param(
        "timeout",
        ("-t", "--timeout"),
        "seconds",
        "Stop after SECONDS (or 500ms, 2m); 0: print pending events and stop.",
    ),
    Param(
        "max_events",
        ("--max-events",),
        "count",
        "Stop after this many events; each attempt counts once.",
    ),
)
MAX_ROWS = Param("max_rows", ("-m", "--max-rows"), "count", "Print at most this many rows.")


def gadget_params(gadget: Gadget) -> tuple[Param, ...]:
    """Return all options of a gadget's command: its own, then those that all have."""
    limits = (TIME, *TRACING) if gadget.source == "program" else (MAX_ROWS,)
    own = {flag for param in gadget.params for flag in param.flags}
    shared = [*FAMILIES, *WHOSE, *RUNTIMES, *OUTPUT, *limits]
    return (
        *gadget.params,
        *(_without(param, own) for param in shared),
    )


def _without(param: Param, taken: set[str]) -> Param:
    return replace(param, flags=tuple(flag for flag in param.flags if flag not in taken))


HEADINGS = {
    param.name: heading
    for heading, params in (
        ("Containers", WHOSE),
        ("Runtimes", RUNTIMES),
        ("Output", (*OUTPUT, TIME, MAX_ROWS)),
        ("Limits", TRACING),
    )
    for param in params
}
"""The heading of each shared option in a command's help; a gadget's own options come first."""
FOREIGN = {
    "--fields": "-o columns=A,B,… (+A,-B adds and removes)",
    "--filter-expr": "-F with ==, !=, <, <=, >, >=, ~ and ||",
    "--max-entries": "--max-events (trace) or --max-rows (snapshot)",
    "--map-nodes-count": "--max-rows",
    "--no-headers": "--no-header",
    "--extra-lines": "-w SECONDS",
    "-P": "--port",
}
"""Options of similar commands, and their equivalent here."""
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
        raise UsageError(
            f"Invalid duration {text[:64]!r}: too long.", f"The maximum is {_MOST_SECONDS} s."
        )
    return value


def _interval(text: str) -> float:
    interval = seconds(text)
    if interval < _LEAST_INTERVAL:
        raise UsageError(
            f"Invalid interval {text.strip()[:64]!r}: too short.",
            "",
            f"The minimum is {_LEAST_INTERVAL:g} seconds.",
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
        f"Invalid port {name[:64]!r}.",
        "",
        "Use a number from 1 to 65535, or a service name from /etc/services such as http.",
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
            f"Unknown {what} {name[:64]!r}.",
            "",
            f"Use the name of a {what} of this host, or a number.",
        ) from None


def _ports(text: str) -> list[int]:
    ports = [port(part) for part in text.split(",")]
    if len(ports) > _MOST_PORTS:
        raise UsageError(
            f"Too many ports for the kernel's filter: {len(ports)}.",
            f"The maximum is {_MOST_PORTS}.",
            "Use -F 'port>=1024,port<2048' to filter by a range.",
        )
    return ports


def _whole(name: str, least: int, most: int) -> Callable[[int], int]:
    def check(value: int) -> int:
        if not least <= value <= most:
            raise UsageError(
                f"Invalid {name} {value}.", "", f"Use a number from {least} to {most}."
            )
        return value

    return check


CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "duration": duration,
    "ports": _ports,
    "port": port,
    "uid": user,
    "pid": _whole("PID", 1, 1 << 22),
    "integer": _whole("integer", -(1 << 63), (1 << 63) - 1),
    "seconds": seconds,
    "interval": _interval,
}
"""The parser of each kind of option."""
