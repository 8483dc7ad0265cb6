"""The options that commands share."""

from __future__ import annotations

from dataclasses import replace

from ig.columns import failures
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
KUBERNETES = Param(
    "kubernetes",
    ("--kubernetes",),
    "kubeconfig",
    "Also name Kubernetes pods (p/NAMESPACE/POD) and Services (s/NAMESPACE/NAME) at far ends, with "
    "the credentials of this pod or of a kubeconfig.",
    implies={"resolve": True},
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
RECORD = Param(
    "record", ("--record",), "string", "Also write the events to this new file, for `ig replay`."
)
OTLP = (
    Param(
        "otlp",
        ("--otlp",),
        "string",
        "Also send the events to this OpenTelemetry Collector: http://127.0.0.1:4318.",
        excludes=("summary",),
    ),
    Param(
        "otlp_protocol",
        ("--otlp-protocol",),
        "string",
        "Protocol of --otlp: http/protobuf (default) or grpc (mostly port 4317).",
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
REPEATING = (
    Param(
        "interval",
        ("--interval",),
        "interval",
        "Print again every SECONDS (default 2), with the time.",
        excludes=("watch",),
    ),
    Param("count", ("--count",), "count", "Stop after this many intervals."),
)
SUMMARY = (
    Param(
        "summary",
        ("--summary",),
        "summary",
        "Print a table of counts and latencies at the end or, with =SECONDS, also so often.",
        implies={"latency": True},
    ),
    Param(
        "by",
        ("--by",),
        "strings",
        "With --summary: a row for each value of these columns (default container,destination).",
    ),
    Param(
        "sort",
        ("--sort",),
        "strings",
        "With --summary: sort by these columns; -COLUMN: descending (default -attempts).",
    ),
    Param("top", ("--top",), "count", "With --summary: only the first NUMBER rows."),
    Param(
        "histogram",
        ("--histogram",),
        "flag",
        "With --summary: draw the latencies below the table; with --by, those of each row.",
    ),
)
MAX_ROWS = Param("max_rows", ("-m", "--max-rows"), "count", "Print at most this many rows.")


def gadget_params(gadget: Gadget) -> tuple[Param, ...]:
    """Return all options of a gadget's command: its own, then those that all have."""
    limits = TRACING if gadget.program else (MAX_ROWS,)
    repeating: tuple[Param, ...] = ()
    if gadget.stages or gadget.source != "program":
        repeating = REPEATING
    if gadget.summable:
        repeating = (*SUMMARY, *(param for param in REPEATING if param.name == "count"))
    own = {flag for param in gadget.params for flag in param.flags}
    also = () if gadget.source == "rates" else (RECORD,)
    if gadget.source == "program" and not gadget.stages:
        also = (*also, *OTLP)
    named = any(column.name == "dst.kind" for column in gadget.columns)
    runtimes = (*RUNTIMES, KUBERNETES) if named else RUNTIMES
    shared = [*FAMILIES, *WHOSE, *runtimes, *OUTPUT, *also, TIME, *repeating, *limits]
    return (
        *gadget.params,
        *(_without(param, own) for param in shared),
    )


def _without(param: Param, taken: set[str]) -> Param:
    return replace(param, flags=tuple(flag for flag in param.flags if flag not in taken))


def replay_params() -> tuple[Param, ...]:
    """Return the options of `ig replay`: those that ask nothing of the kernel or a runtime."""
    live = ("ready_file", "keep_privileges", "timeout", "all_namespaces", "host")
    summary = (param for param in SUMMARY if param.name != "sort")
    shared = (*FAMILIES, *WHOSE, *OUTPUT, *summary, TIME, *TRACING, MAX_ROWS)
    return (
        Param("file", (), "string", "A file that --record has written."),
        Param("resolve", ("--resolve",), "flag", "Show addresses as names."),
        Param(
            "sort",
            ("--sort",),
            "strings",
            "Sort sockets, or a summary, by these columns; -COLUMN: descending.",
        ),
        Param("all", ("--all",), "flag", "Include TIME_WAIT and Docker's DNS resolver in tables."),
        failures("what failed, was abandoned or is unanswered"),
        *(param for param in shared if param.name not in live),
    )


EXPORT = (
    Param(
        "prometheus",
        ("--prometheus",),
        "string",
        "Serve /metrics and /healthz on this address: 127.0.0.1:9435.",
    ),
    Param(
        "otlp",
        ("--otlp",),
        "string",
        "Send metrics to this OpenTelemetry Collector: http://127.0.0.1:4318.",
    ),
    OTLP[1],
    Param(
        "events",
        ("--events",),
        "flag",
        "With --otlp: also send each connection as a log record; each costs more.",
    ),
    Param(
        "buckets",
        ("--histogram",),
        "string",
        "With --otlp: send histograms as classic (default) or native ones: exponential buckets.",
    ),
    Param(
        "cidr",
        ("--cidr",),
        "strings",
        "Name a network as a destination: office=10.0.0.0/8; other addresses are `external`.",
    ),
    Param(
        "series",
        ("--series",),
        "count",
        "Label combinations of each metric (default 2000), in a histogram with 21 lines each; "
        "what comes beyond is counted as `other`.",
    ),
    Param(
        "bytes",
        ("--bytes",),
        "flag",
        "Also count the bytes of connections, when they are closed; each connection costs more.",
    ),
    Param(
        "why",
        ("--why",),
        "flag",
        "Also count why attempts failed, by cause; keeps more privileges (see SECURITY.md).",
    ),
    Param(
        "open_connections",
        ("--open-connections",),
        "flag",
        "Also count open connections; keeps the privileges that this needs.",
    ),
    Param(
        "interval",
        ("--interval",),
        "interval",
        "Read the kernel's counts every SECONDS (default 5).",
    ),
    Param(
        "log_file", ("--log-file",), "string", "Append messages to this file; SIGHUP reopens it."
    ),
    Param("log_format", ("--log-format",), "string", "Format of messages: text or json."),
    *WHOSE,
    *RUNTIMES,
    KUBERNETES,
    *(param for param in OUTPUT if param.name in ("ready_file", "keep_privileges")),
)
"""The options of `ig export`."""
