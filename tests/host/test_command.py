"""The command as a user or a script runs it: formats, filters, limits, ends and errors."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.features import has_fexit
from tests.host.namespace import Namespace
from tests.host.together import together
from tests.host.tracer import IG, Tracer, in_own_mounts, ordinary_user
from tests.host.waiting import PATIENCE, until

Start = Callable[..., Tracer]
NOBODY = ("127.0.0.1", 9)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(IG), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.anywhere
def test_formats_are_as_others_read_them(start_ig: Start, namespace: Namespace) -> None:
    filters = ("--filter", f"netns=={namespace.inode}", "--max-events", 3)
    trace = ("trace", "tcpconnect", "--host", *filters, "-o")
    by_name = ("columns=proc.comm,outcome,dst", "custom-columns=proc.comm,outcome,dst")
    modes = ("json", "jsonl", "yaml", "csv", *by_name)
    tracers = together(lambda mode: start_ig(*trace, mode), modes)
    namespace.connect(*NOBODY, "--count", 3)
    for tracer in tracers.values():
        assert tracer.finished()[1:] == ("", 0)
    lines = {mode: tracer.reports.lines for mode, tracer in tracers.items()}
    for mode in ("json", "jsonl"):
        assert [json.loads(line)["outcome"] for line in lines[mode]] == ["refused"] * 3
    events = [event for event in yaml.safe_load_all("\n".join(lines["yaml"])) if event]
    assert [event["dst"]["port"] for event in events] == [9] * 3
    rows = csv.DictReader(io.StringIO("\n".join(lines["csv"])))
    assert [row["dst"] for row in rows] == ["127.0.0.1:9"] * 3
    for mode in by_name:
        heading, *others = (line.split() for line in lines[mode])
        assert heading == ["COMM", "OUTCOME", "DST"]
        assert others == [["python3", "refused", "127.0.0.1:9"]] * 3


@pytest.mark.anywhere
def test_filters_choose_events(start_ig: Start, namespace: Namespace) -> None:
    def started(expression: str) -> Tracer:
        chosen = ("-F", expression, "-F", f"netns=={namespace.inode}")
        return start_ig("trace", "tcpconnect", "--host", "-o", "json", *chosen)

    names = ("dst.port>=11", "port:>=11", "dst~:11$")
    lists = ("dst.port!=9,dst.port!=10", "dst.port:!9,port:!10")
    tracers = together(started, names + lists)
    for port in (9, 10, 11):
        namespace.connect("127.0.0.1", port)
    for expression, tracer in tracers.items():
        assert [event["dst"]["port"] for event in tracer.stop()[0]] == [11], expression


@pytest.mark.anywhere
def test_timeout_ends_it(start_ig: Start) -> None:
    events, _, code = start_ig("trace", "tcpconnect", "-t", "0.2").finished()
    assert (events, code) == ([], 0)


@pytest.mark.anywhere
def test_process_that_is_named_to_do_harm_does_none(start_ig: Start, namespace: Namespace) -> None:
    comm = '\x1b[2J\x07"\n\u202e'
    filters = ("--filter", f"netns=={namespace.inode}", "--max-events", 1)
    trace = ("trace", "tcpconnect", "--host", *filters, "-o")
    tracers = together(lambda mode: start_ig(*trace, mode), ("columns", "json", "yaml", "csv"))
    namespace.connect(*NOBODY, "--comm", comm)
    texts = {}
    for mode, tracer in tracers.items():
        _, said, code = tracer.finished()
        assert (code, said) == (0, "")
        texts[mode] = "\n".join([*tracer.reports.lines, ""])
        assert texts[mode].replace("\r\n", "").replace("\n", "").isprintable()
    assert json.loads(texts["json"])["proc"]["comm"] == comm
    (event,) = (each for each in yaml.safe_load_all(texts["yaml"]) if each)
    assert event["proc"]["comm"] == comm
    assert len(list(csv.reader(io.StringIO(texts["csv"])))) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_it_after_the_last_events(
    start_ig: Start, namespace: Namespace, number: int
) -> None:
    tracer = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    namespace.connect(*NOBODY, "--count", 101)
    events, _, code = tracer.stop(number)
    assert len([e for e in events if e["netns_id"] == namespace.inode]) == 101
    assert code == 0


def test_events_come_in_the_order_of_their_times(start_ig: Start, namespace: Namespace) -> None:
    tracer = start_ig("trace", "tcpconnect", "--host", "-o", "json")
    namespace.connect(*NOBODY, "--threads", 4, "--count", 251)
    events = [e for e in tracer.stop()[0] if e["netns_id"] == namespace.inode]
    times = [event["timestamp_raw"] for event in events]
    assert len(times) == 1004
    assert times == sorted(times)


def test_reader_that_has_enough_ends_it_quietly() -> None:
    pipe = f"{shlex.quote(str(IG))} trace tcpconnect --host | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", pipe], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    heading, status = done.stdout.splitlines()
    assert heading.startswith("RUNTIME.CONTAINERNAME")
    assert (status, done.stderr) == ("0", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("trace tcpconnect -o columns=pidd", "Known columns"),
        ("trace tcpconnect -o xml", "Known modes"),
        ("trace tcpconnect --min 5parsecs", "duration"),
        ("trace tcpconnect --port 70000", "65535"),
        ("trace tcpconnect --no-such-option", "No such option"),
        ("trace tcpconnect -F nonsense", "filter"),
        ("trace tcpconnect -r kubernetes", "Known runtimes"),
        ("trace tcpconnect --host-only -c web", "host"),
        ("trace nothing", "No such command"),
        ("run ghcr.io/somebody/trace_nothing:latest", "Known gadgets"),
        ("snapshot socket --state nonsense", "Known states"),
        ("run trace_tcpconect", "Did you mean 'trace_tcpconnect'"),
        ("trace tcp --pid 99999999999999999999", "Invalid PID"),
        ("trace tcp --pid=-1", "Invalid PID"),
        ("trace tcp --uid 4294967295", "Unknown user"),
        ("trace tcp -t nan", "Invalid duration"),
        ("snapshot socket -w 2562047h", "too long"),
        ("trace bind -P \u00b2", "Invalid port"),
        (f"trace bind -P {','.join(map(str, range(1, 12_001)))}", "kernel's filter: 12000"),
        ("trace tcp -F outcome==refusd", "Did you mean 'refused'"),
        ("snapshot socket -F state==listening", "Known values"),
    ],
)
@pytest.mark.anywhere
def test_command_line_that_is_invalid_is_refused_with_what_is_valid(
    arguments: str, said: str
) -> None:
    done = run(*arguments.split())
    assert done.returncode == 2
    assert said.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.anywhere
@pytest.mark.parametrize("command", ["trace tcpconnect", "run trace_tcpconnect"])
@pytest.mark.parametrize(("ordinary", "remedy"), [(False, "--cap-add BPF"), (True, "sudo")])
def test_user_who_may_not_trace_is_told_so(command: str, ordinary: bool, remedy: str) -> None:
    root_of_a_container = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    who = ordinary_user() if ordinary else root_of_a_container
    done = subprocess.run(
        [*who, str(IG), *command.split()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "needs root" in done.stderr
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.anywhere
def test_full_disk_is_an_error_that_says_so() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = subprocess.run(
            [str(IG), "trace", "tcpconnect", "--host"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(full)
    assert done.returncode == 1
    assert "No space left" in done.stderr


@pytest.mark.anywhere
def test_registry_and_a_tag_run_the_built_in_gadget(start_ig: Start) -> None:
    image = "ghcr.io/inspektor-gadget/gadget/trace_tcpconnect:v0.30.0"
    _, said, code = start_ig("run", image, "--host", "-t", "0.1").finished()
    assert "built-in" in said
    assert code == 0


def test_timeout_of_zero_is_an_end_at_once(start_ig: Start) -> None:
    assert start_ig("trace", "tcp", "-o", "json", "-t", 0).finished()[::2] == ([], 0)


@pytest.mark.anywhere
def test_standard_descriptors_that_are_closed_are_no_bug() -> None:
    for command in ("list-gadgets", "trace tcp --host -t 0", "snapshot socket --host"):
        for closed, code in (("<&-", 0), ("2>&-", 0), (">&-", 1), ("<&- >&- 2>&-", 1)):
            done = subprocess.run(
                ["sh", "-c", f"exec {shlex.quote(str(IG))} {command} {closed}"],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert (done.returncode, "Traceback" in done.stderr) == (code, False), closed
            assert bool(done.stdout) == (">&-" not in closed.split())
            assert ("stdout is closed" in done.stderr) == (closed == ">&-")


@pytest.mark.anywhere
def test_locales_and_warnings_as_errors_make_no_difference(tmp_path: Path) -> None:
    """Run the module: what is installed does not look at Python's environment."""
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ready = f"{tmp_path}/\u00fc"
    for command, environment in (
        ("trace tcp --host --port 1 -t 0", posix),
        ("trace bind --host -P 1 -t 0 -c \u6570", {"PYTHONWARNINGS": "error"}),
        (f"snapshot socket --host -F comm==\u00fc --ready-file {ready}", posix),
        ("list-containers -w --help", posix),
        ("list-gadgets", {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}),
        ("doctor -o json", posix),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ig", *command.split()],
            env={**os.environ, **environment},
            capture_output=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0), done.stderr
        assert done.stdout.decode()
    assert os.path.exists(ready)


def test_root_of_a_user_namespace_is_told_that_it_is_not_enough() -> None:
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", str(IG), "trace", "tcp"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "CAP_BPF" in done.stderr
    assert "user namespace" in done.stderr


@pytest.mark.anywhere
def test_help_and_version_are_printed_in_all_the_ways_people_ask() -> None:
    module = subprocess.run(
        [sys.executable, "-m", "ig", "-V"], capture_output=True, text=True, check=True
    )
    assert module.stdout == run("version").stdout == run("-V").stdout
    assert run("-v").stdout == module.stdout
    assert run("help").stdout == run("--help").stdout
    assert run("help", "trace", "tcp").stdout == run("trace", "tcp", "--help").stdout


@pytest.mark.anywhere
@pytest.mark.parametrize("command", ["--help", "list-gadgets", "trace tcp --help", "version"])
def test_closed_pipe_is_no_failure(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [str(IG), *command.split()], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.anywhere
def test_version_is_printed_in_the_two_ways_people_ask() -> None:
    asked = [run("version"), run("--version")]
    assert {done.returncode for done in asked} == {0}
    assert {done.stdout for done in asked} == {f"ig {importlib.metadata.version('ig')}\n"}


@pytest.fixture
def ready() -> Iterator[Path]:
    """A file to come that is not below /run, as temporary files may be."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder, "ready")


def test_documented_capabilities_are_enough_to_trace(namespace: Namespace, ready: Path) -> None:
    options = ("--host", "-o", "json", "--max-events", 1, "-F", f"netns=={namespace.inode}")
    line = [str(IG), "trace", "tcpconnect", *map(str, options), "--ready-file", str(ready)]
    # Debian's kernels know a level 3, at which CAP_PERFMON is not enough for perf_event_open().
    denied = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text()) > 2 and not has_fexit()
    capabilities = "-all,+bpf,+perfmon" + (",+sys_admin" if denied else "")
    few = ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", *line]
    # Before Linux 5.11 maps count against the limit of locked memory.
    mounted = "mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing"
    # This host's sockets may be in folders that only more capabilities reach, which is told.
    alone = "mount -t tmpfs none /run"
    script = f"ulimit -l unlimited 2>/dev/null; {mounted}; {alone}; exec {shlex.join(few)}"
    command = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until(lambda: ready.exists() or process.poll() is not None, "ig to be ready")
        if process.poll() is None:
            namespace.connect(*NOBODY)
        printed, said = process.communicate(timeout=PATIENCE)
    assert (said, process.returncode) == (b"", 0)
    assert json.loads(printed)["outcome"] == "refused"


def test_folders_need_not_be_writable() -> None:
    folders = "for p in /tmp /var/tmp /dev/shm"
    read_only = "do mount --bind $p $p; mount -o remount,ro,bind $p; done; cd /proc"
    check = "touch /tmp/x 2>/dev/null && exit 9"
    trace = f"exec {shlex.quote(str(IG))} trace tcpconnect --host --port 1 -t 0.1 -o json"
    script = f"{folders}; {read_only}; {check}; {trace}"
    done = in_own_mounts(script)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_tracefs_is_reached_in_a_root_that_is_no_mount_point(tmp_path: Path) -> None:
    hide = "umount --lazy /sys/kernel/debug /sys/kernel/tracing 2>/dev/null; cd ROOT"
    link, bind = 'cp -P "$path" .', 'mkdir ".$path" && mount --rbind "$path" ".$path"'
    kinds = f'if [ -L "$path" ]; then {link}; elif [ -d "$path" ]; then {bind}; fi'
    fill = f"for path in /*; do {kinds}; done"
    trace = f"exec chroot . {shlex.quote(str(IG))} trace tcpconnect --host --port 1 -t 0.1 -o json"
    script = f"{hide}; {fill}; {trace}".replace("ROOT", shlex.quote(str(tmp_path)))
    done = in_own_mounts(script)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_descriptors_too_few_are_an_error_that_says_so() -> None:
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n 8; exec {shlex.quote(str(IG))} trace tcpconnect --host -t 0.1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "Too many open files" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_trace_that_was_suspended_goes_on(start_ig: Start, namespace: Namespace) -> None:
    # By the port, which the kernel looks at: others' events must not fill the ring meanwhile.
    only = ("--port", 4247, "-F", f"netns=={namespace.inode}")
    tracer = start_ig("trace", "tcpconnect", "--host", "-o", "json", *only)
    tracer.process.send_signal(signal.SIGSTOP)
    namespace.connect("127.0.0.1", 4247, "--count", 101)
    tracer.process.send_signal(signal.SIGCONT)
    events, said, code = tracer.stop()
    assert (len(events), said, code) == (101, "", 0)
