"""Whatever surrounds `ig` - signals, limits, environment, names - it works, or ends with a word."""

from __future__ import annotations

import json
import resource
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.host.attached import added, loaded
from tests.host.fake_engine import FakeEngine
from tests.host.namespace import PYTHON, Namespace, Program
from tests.host.tracer import IG, Tracer, session
from tests.host.waiting import PATIENCE, until

pytestmark = pytest.mark.anywhere
Start = Callable[..., Tracer]
NOBODY = ("127.0.0.1", 9)
NO_ENGINE = ("--docker-socketpath", "/nonexistent")


def run(*words: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `ig` to its end, by a shell that does something before."""
    command = f"{before} exec {shlex.join([str(IG), *map(str, words)])}"
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_signals_of_any_kind_leave_nothing_attached(start_ig: Start) -> None:
    before = loaded()
    codes = {each: -each for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGSEGV)}
    codes[signal.SIGALRM] = 0  # what it uses itself to end
    with ThreadPoolExecutor(len(codes)) as several:
        tracers = list(several.map(lambda _: start_ig("trace", "tcpconnect"), codes))
    for number, tracer in zip(codes, tracers, strict=True):
        resource.prlimit(tracer.process.pid, resource.RLIMIT_CORE, (0, 0))
        assert tracer.stop(number)[2] == codes[number]
        until(lambda: not session(tracer.process.pid), "all processes to end")  # noqa: B023
    until(lambda: not added(before), "the kernel to let go of the programs")


ENVIRONMENT = {
    "TMPDIR": "/nonexistent",
    "BCC_KERNEL_SOURCE": "/nonexistent",
    "BCC_KERNEL_MODULES_SUFFIX": "x",
    "BCC_SYMFS": "/nonexistent",
    "BCC_PROBE_PREFIX": "x",
    "LD_LIBRARY_PATH": "/nonexistent:",
    "DOCKER_CONFIG": "/nonexistent",
    "HTTP_PROXY": "http://192.0.2.1:1/",
    "ALL_PROXY": "socks5://192.0.2.1:1/",
    "GRPC_PROXY": "http://192.0.2.1:1/",
    "COLUMNS": "no number",
    "LC_ALL": "xx_YY.KOI8-R",
    "TZ": "Nowhere/At All",
    "HOME": "/nonexistent",
}


def test_environment_of_bcc_and_of_clients_changes_nothing(
    start_ig: Start, namespace: Namespace, tmp_path: Path
) -> None:
    only = ("--host", "-o", "json", "-F", f"netns=={namespace.inode}")
    with closing(FakeEngine(tmp_path / "docker.sock", ["web"])):
        options = ("-r", "docker", "--docker-socketpath", tmp_path / "docker.sock")
        tracer = start_ig("trace", "tcpconnect", *only, *options, environment=ENVIRONMENT)
        namespace.connect(*NOBODY, "--count", 11)
        events, said, code = tracer.stop()
    assert (len(events), said, code) == (11, "", 0)


@pytest.mark.parametrize(
    "words", [("snapshot", "socket"), ("list-containers",), ("trace", "tcpconnect", "-t", "0.1")]
)
def test_limit_of_memory_is_enough_or_an_error(words: tuple[str, ...]) -> None:
    for megabytes in (50, 80, 120, 240, 480, 960):
        done = run(*words, *NO_ENGINE, before=f"ulimit -v {megabytes << 10};")
        assert "Traceback" not in done.stderr, megabytes
        assert done.returncode in (0, 1)
        assert done.returncode == 0 or done.stderr


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder: the path of a socket has room for 107 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def no_containers(short_path: Path) -> Iterator[tuple[object, ...]]:
    """Options by which an engine is asked that has none."""
    with closing(FakeEngine(short_path / "docker.sock")):
        yield ("-r", "docker", "--docker-socketpath", short_path / "docker.sock")


def test_engine_s_socket_may_have_any_name(short_path: Path) -> None:
    record = {"Id": "a" * 64, "Names": ["/web"], "Image": "image"}
    for name in ("a b", "ü", "a%2Fb", "%zz", "a?b#c", "'\"$;", "x" * 80):
        path = short_path / name
        with closing(FakeEngine(path, records=[record])):
            done = run("list-containers", "-r", "docker", "--docker-socketpath", path)
        assert "web" in done.stdout, (name, done.stderr)
        assert (done.stderr, done.returncode) == ("", 0)


def test_engine_s_socket_with_too_long_a_name_is_said(tmp_path: Path) -> None:
    (tmp_path / ("x" * 120)).touch()
    path = tmp_path / ("x" * 120)
    done = run("list-containers", "-r", "docker", "--docker-socketpath", path)
    assert done.returncode == 1
    assert "docker does not answer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", ["columns", "json", "yaml", "csv"])
def test_device_that_is_named_to_do_harm_does_none(
    namespace: Namespace, mode: str, no_containers: tuple[object, ...]
) -> None:
    device = "\x1b[31m\u202ex"
    namespace.ip("link", "add", device, "type", "veth", "peer", "name", "other")
    namespace.ip("link", "set", device, "up")
    namespace.ip("-6", "addr", "add", "fe80::1:2/64", "dev", device, "nodad")
    port = namespace.serve(f"fe80::1:2%{device}")
    only = ("--port", port, "-F", f"netns=={namespace.inode}")
    columns = "" if mode in ("json", "yaml") else "=src,interface"
    done = run("snapshot", "socket", "--host", *only, "-o", mode + columns, *no_containers)
    text = done.stdout.replace("\r\n", "").replace("\n", "")
    assert text.isprintable()
    assert str(port) in text
    if mode == "json":
        (row,) = json.loads(done.stdout)
        assert row["src"]["zone"] == device


CHURN = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
sys.stdout.write('{"ready": true}\\n')
sys.stdout.flush()
while True:
    for _ in range(20):
        if os.fork() == 0:
            libc.unshare(0x40000000)
            made = [socket.socket() for _ in range(20)]
            for each in made:
                each.bind(("0.0.0.0", 0))
                each.listen()
            os._exit(0)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
"""


def test_snapshot_is_right_while_sockets_and_namespaces_come_and_go(
    namespace: Namespace, no_containers: tuple[object, ...]
) -> None:
    port = namespace.serve()
    Program([*PYTHON, "-c", CHURN]).reports.ready()
    for _ in range(10):
        done = run("snapshot", "socket", "--host", "-p", "-o", "json", *no_containers)
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, done.stderr
        rows = [row for row in json.loads(done.stdout) if row["netns_id"] == namespace.inode]
        assert [row["src"]["port"] for row in rows] == [port]
        assert len(rows[0]["processes"]) == 1


def test_socket_that_others_keep_opening_is_read_at_once(
    namespace: Namespace, no_containers: tuple[object, ...]
) -> None:
    """The kernel says that its table changed while it was read: it is asked a few times only."""
    port = namespace.serve()
    churn = "import socket\nwhile True: socket.socket().connect_ex(('127.0.0.1', PORT))\n"
    Program(namespace.command(*PYTHON, "-c", churn.replace("PORT", str(port))))
    only = ("--state", "listen", "-F", f"netns=={namespace.inode}")
    for _ in range(2):
        done = run("snapshot", "socket", "--host", *only, "-o", "json", *no_containers)
        assert [row["src"]["port"] for row in json.loads(done.stdout)] == [port]
