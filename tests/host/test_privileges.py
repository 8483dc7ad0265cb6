"""What `ig` gives up once its program is on the way into the kernel, and what still works then."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ig.kernel.capabilities import Reach, reach
from tests.features import preempts_programs
from tests.host.engine import Engine, PrivateEngine
from tests.host.namespace import Namespace
from tests.host.tracer import IG, Tracer, in_own_mounts
from tests.host.waiting import PATIENCE, until

Start = Callable[..., Tracer]
CHECKOUT = Path(__file__).parents[2]
NOBODY = ("127.0.0.1", 9)
NOBODYS = 65534
DAC_OVERRIDE, DAC_READ_SEARCH, BPF = 1 << 1, 1 << 2, 1 << 39
NET_ADMIN, SYS_PTRACE, SYS_ADMIN = 1 << 12, 1 << 19, 1 << 21


def privileges(tracer: Tracer) -> list[Mapping[str, str]]:
    """Return /proc/PID/task/TID/status of each thread."""
    threads = Path(f"/proc/{tracer.process.pid}/task").iterdir()
    texts = [(thread / "status").read_text() for thread in threads]
    return [dict(line.split(":\t", 1) for line in text.splitlines()) for text in texts]


def held(tracer: Tracer) -> set[int]:
    """Return the sets of capabilities that some thread has, or could take."""
    return {int(each[name], 16) for each in privileges(tracer) for name in ("CapEff", "CapPrm")}


def test_threads_keep_no_capability_that_they_do_not_need(ig: Start, namespace: Namespace) -> None:
    tracer = ig("trace", "tcp", "-r", "docker", "--host")
    assert len(privileges(tracer)) > 1
    assert held(tracer) == {BPF}
    assert {(each["CapBnd"], each["NoNewPrivs"]) for each in privileges(tracer)} == {
        (f"{0:016x}", "1")
    }
    namespace.connect(*NOBODY)
    (event,) = tracer.wait_for(lambda event: event["netns_id"] == namespace.inode)
    assert event["outcome"] == "refused"
    assert tracer.stop()[1:] == ("", 0)


def monitors(tracer: Tracer) -> list[Path]:
    """Return the folders in /proc of the processes that `ig` has started."""
    found = Path(f"/proc/{tracer.process.pid}/task/{tracer.process.pid}/children").read_text()
    return [Path(f"/proc/{pid}") for pid in found.split()]


def test_list_containers_gives_up_all_and_its_monitor_reads_namespaces_for_it(
    ig: Start, engine: Engine
) -> None:
    idle = engine.idle("idle")
    tracer = ig("list-containers", "-w", "-r", "docker", "-c", idle.name)
    assert held(tracer) == {0}
    (monitor,) = monitors(tracer)
    status = (monitor / "status").read_text()
    assert {line.split()[1] for line in status.splitlines() if line.startswith("CapP")} == {
        f"{SYS_PTRACE:016x}"
    }
    assert [os.readlink(each).partition(":")[0] for each in (monitor / "fd").iterdir()] == [
        "socket"
    ]
    (event,) = tracer.wait_for(lambda event: event["event"] == "exists")
    expected = [os.stat(f"/proc/{idle.pid}/ns/{kind}").st_ino for kind in ("mnt", "net")]
    assert [event["mntns_id"], event["netns_id"]] == expected
    tracer.kill()
    until(lambda: not monitor.exists(), "the monitor to end")


PROCESSES = """
import subprocess
from ig.kernel import monitor, processes
from ig.kernel.capabilities import drop

commands = (["cat"], ["unshare", "--net", "--mount", "cat"], ["setpriv", "--reuid=65534", "cat"])
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
started = [subprocess.Popen(command, bufsize=0, **pipes) for command in commands]
for each in started:
    each.stdin.write(b"ready\\n")
    each.stdout.readline()

def known(pid):
    net, mnt = processes.network_namespace(pid, ""), processes.mount_namespace(pid)
    return net, mnt, processes.cgroups(pid), processes.started(pid), processes.is_of_user(pid, 1)

before = [known(each.pid) for each in started]
monitor.start()
drop(())
print([known(each.pid) for each in started] == before and all(map(any, before)), known(1 << 40))
for each in started:
    each.communicate()
"""


@pytest.mark.parametrize("mount", ["true", "mount -t proc -o hidepid=2,gid=1234 proc /proc"])
def test_monitor_reads_of_processes_what_proc_shows_to_the_privileged_alone(
    tmp_path: Path, mount: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    done = in_own_mounts(f"{mount} && '{sys.executable}' '{script}'")
    assert (done.stdout, done.stderr) == ("True (0, 0, None, 0, False)\n", "")


def test_monitor_that_is_killed_costs_namespaces_and_nothing_else(
    ig: Start, engine: Engine
) -> None:
    tracer = ig("list-containers", "-w", "-r", "docker", "-c", engine.name("later"))
    (monitor,) = monitors(tracer)
    os.kill(int(monitor.name), signal.SIGKILL)
    engine.idle("later")
    (event,) = tracer.wait_for(lambda event: event["event"] == "started")
    assert (event["mntns_id"], event["netns_id"]) == (0, 0)
    assert tracer.stop()[1:] == ("", 0)


def test_snapshot_that_is_repeated_gives_up_what_it_does_not_need(
    ig: Start, engine: Engine
) -> None:
    server, port = engine.serve("server")
    tracer = ig("snapshot", "socket", "-w", "0.1", "-r", "docker", "-p", "-c", server.name)
    assert held(tracer) == {SYS_ADMIN | SYS_PTRACE | DAC_READ_SEARCH | NET_ADMIN}
    assert monitors(tracer) == [], "it reads /proc itself"
    until(lambda: f'"port":{port}' in "".join(tracer.reports.lines), "the server's socket")
    assert f'"pid":{server.pid}' in "".join(tracer.reports.lines)
    assert tracer.stop()[1:] == ("", 0)


def test_privileges_are_kept_where_that_is_asked_for(start_ig: Start) -> None:
    tracer = start_ig("trace", "tcp", "--host", "--keep-privileges")
    own = Path("/proc/self/status").read_text().partition("CapEff:\t")[2].split()[0]
    assert held(tracer) == {int(own, 16)}


def test_ready_file_may_be_in_a_folder_of_somebody_else(start_ig: Start, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    os.chown(tmp_path, NOBODYS, NOBODYS)
    tracer = start_ig(*("trace", "tcp", "--host", "--ready-file", tmp_path / "ready"), ready=False)
    until((tmp_path / "ready").exists, "the ready file")
    assert held(tracer) == {BPF | DAC_OVERRIDE}
    assert tracer.stop()[1:] == ("", 0)


def test_engine_in_a_folder_of_somebody_else_names_its_containers_also_when_it_comes_back(
    start_ig: Start, private_engine: PrivateEngine
) -> None:
    private_engine.folder.chmod(0o700)
    os.chown(private_engine.folder, NOBODYS, NOBODYS)
    private_engine.start()
    engine = Engine(private_engine.socket)
    try:
        environment = {"DOCKER_HOST": private_engine.socket}
        tracer = start_ig("trace", "tcpconnect", "-o", "json", environment=environment)
        assert held(tracer) == {BPF | DAC_OVERRIDE}
        private_engine.stop()
        tracer.says("docker")
        private_engine.start()
        engine.connect(engine.idle("later"), *NOBODY)
        tracer.wait_for(lambda event: event["runtime"]["containerName"] == engine.name("later"))
    finally:
        engine.close()


SOCKETS = {
    f"--{name}-socketpath": f"{name}.sock" for name in ("docker", "containerd", "podman", "crio")
}


@contextmanager
def listening(folder: Path, owner: int = 0, mode: int = 0o600) -> Iterator[Callable[[], None]]:
    """Serve a socket of each runtime's in a folder; give a function that waits for all to be used.

    The folder is made if it is not there, and then of that owner and mode; so are the sockets.
    """
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        servers = {}
        for name in SOCKETS.values():
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            (folder / name).unlink(missing_ok=True)
            server.bind(str(folder / name))
            os.chmod(folder / name, 0o600)
            os.chown(folder / name, owner, owner)
            server.listen()
            server.settimeout(PATIENCE)
            servers[name] = server
        folder.chmod(mode)
        os.chown(folder, owner, owner)

        def wait() -> None:
            for server in servers.values():
                server.accept()[0].close()

        yield wait


def trace_with(start_ig: Start, folder: Path) -> Tracer:
    words = [word for name, file in SOCKETS.items() for word in (name, folder / file)]
    return start_ig("trace", "tcpconnect", *words)


@pytest.mark.parametrize(
    ("owner", "mode", "kept"),
    [(0, 0o600, DAC_READ_SEARCH), (0, 0o700, 0), (NOBODYS, 0o700, DAC_OVERRIDE)],
)
def test_socket_in_a_folder_that_may_not_be_entered_stays_within_reach(
    start_ig: Start, tmp_path: Path, owner: int, mode: int, kept: int
) -> None:
    with listening(tmp_path / "run", owner, mode) as wait:
        tracer = trace_with(start_ig, tmp_path / "run")
        assert held(tracer) == {BPF | kept}
        wait()


def test_socket_that_is_asked_for_and_appears_later_is_reached_whoever_made_it(
    start_ig: Start, tmp_path: Path
) -> None:
    tracer = trace_with(start_ig, tmp_path / "run")
    assert held(tracer) == {BPF | DAC_OVERRIDE}
    for name in SOCKETS.values():
        tracer.says(f"{tmp_path}/run/{name}")
    with listening(tmp_path / "run", NOBODYS, 0o700) as wait:
        wait()


def test_socket_that_changes_its_owner_is_reached_where_its_folder_was_somebody_elses(
    start_ig: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with listening(folder, NOBODYS, 0o755) as wait:
        tracer = trace_with(start_ig, folder)
        assert held(tracer) == {BPF | DAC_OVERRIDE}
        wait()
    with listening(folder, NOBODYS + 1, 0o700) as wait:
        wait()


def test_socket_that_gets_out_of_reach_is_reported_with_what_is_in_the_way_and_what_to_do(
    start_ig: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with listening(folder, 0, 0o755) as wait:
        tracer = trace_with(start_ig, folder)
        assert held(tracer) == {BPF}
        wait()
    with listening(folder, NOBODYS, 0o700):
        told = f"({folder} has mode 0700 and belongs to uid {NOBODYS}: ig dropped the privilege"
        for name in SOCKETS.values():
            tracer.says(f"does not answer at {folder}/{name} {told}")
        assert "restart ig" in tracer.stderr


def test_certificates_of_somebody_else_are_read(start_ig: Start, tmp_path: Path) -> None:
    """The engine is asked over TLS only once the key was read."""
    request = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=ig -keyout key.pem -out cert.pem"
    assert run(*request.split(), cwd=tmp_path).returncode == 0
    shutil.copy(tmp_path / "cert.pem", tmp_path / "ca.pem")
    os.chmod(tmp_path / "key.pem", 0o600)
    os.chown(tmp_path / "key.pem", NOBODYS, NOBODYS)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        environment = {
            "DOCKER_HOST": f"tcp://127.0.0.1:{server.getsockname()[1]}",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(tmp_path),
        }
        tracer = start_ig("trace", "tcpconnect", "-r", "docker", environment=environment)
        assert held(tracer) == {BPF | DAC_READ_SEARCH}
        with server.accept()[0] as client:
            client.settimeout(PATIENCE)
            assert client.recv(2) == b"\x16\x03"  # a handshake of TLS


def test_ends_are_named_without_any_privilege(ig: Start, engine: Engine) -> None:
    server, port = engine.serve("server")
    client = engine.idle("client")
    tracer = ig("trace", "tcpconnect", "-r", "docker", "-c", client.name)
    assert held(tracer) == {BPF}
    engine.connect(client, server.address, port)
    (event,) = tracer.wait_for(lambda event: event["dst"]["port"] == port)
    assert (event["dst"]["kind"], event["dst"]["name"]) == ("container", server.name)


def make_socket(path: Path, owner: int = 0, mode: int = 0o600) -> str:
    """Make a socket that nobody answers at, in a new folder of that owner and mode."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    os.chmod(path.parent, mode)
    for each in (path, path.parent):
        os.chown(each, owner, owner)
    return str(path)


@pytest.mark.anywhere
def test_reach_reports_what_is_kept_for_a_socket_and_why(tmp_path: Path) -> None:
    ours = make_socket(tmp_path / "ours" / "socket", mode=0o755)
    assert reach(ours) == reach(f"unix://{ours}") == reach("tcp://192.0.2.1:2376") == Reach()
    closed = make_socket(tmp_path / "closed" / "socket")
    why = f"{tmp_path}/closed has mode 0600 and belongs to uid 0"
    assert reach(closed) == Reach("CAP_DAC_READ_SEARCH", why)
    theirs = make_socket(tmp_path / "theirs" / "socket", NOBODYS, 0o700)
    why = f"{tmp_path}/theirs has mode 0700 and belongs to uid {NOBODYS}"
    assert reach(theirs) == Reach("CAP_DAC_OVERRIDE", why)
    changing = make_socket(tmp_path / "changing" / "socket", NOBODYS, 0o755)
    os.chmod(changing, 0o666)
    why = f"{changing} belongs to uid {NOBODYS}, who may change its mode"
    assert reach(changing) == Reach("CAP_DAC_OVERRIDE", why)
    assert reach(changing, lasting=False) == Reach()


@pytest.mark.anywhere
def test_reach_of_a_socket_that_is_not_there_yet_depends_on_who_wants_it(tmp_path: Path) -> None:
    missing = str(tmp_path / "later" / "socket")
    problem = f"{tmp_path}/later does not exist"
    assert reach(missing) == Reach(problem=problem)
    assert reach(missing, expected=True) == Reach("CAP_DAC_OVERRIDE", problem, problem)
    closed = make_socket(tmp_path / "closed" / "socket")
    os.remove(closed)
    why = f"{tmp_path}/closed has mode 0600 and belongs to uid 0"
    assert reach(closed) == Reach("CAP_DAC_READ_SEARCH", why, f"{closed} does not exist")
    assert reach(closed, expected=True).kept == "CAP_DAC_OVERRIDE"


@pytest.mark.anywhere
@pytest.mark.parametrize("command", ["trace tcp --host", "snapshot socket", "list-containers"])
def test_ready_file_takes_the_place_of_no_link_fifo_or_folder(tmp_path: Path, command: str) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    (tmp_path / "folder").mkdir()
    make_socket(tmp_path / "sockets" / "socket")
    said = {
        "fifo": "a FIFO",
        "link": "a symbolic link",
        "dangling": "a symbolic link",
        "folder": "a directory",
        "sockets/socket": "a socket",
        "missing/ready": f"{tmp_path}/missing does not exist",
    }
    before = sorted(tmp_path.rglob("*"))
    for name, found in said.items():
        done = run(IG, *command.split(), "--ready-file", tmp_path / name)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Cannot write the ready file {tmp_path}/{name}" in done.stderr
        assert found in done.stderr
    assert target.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


def test_ready_file_that_is_there_is_replaced_and_not_written_to(
    start_ig: Start, tmp_path: Path
) -> None:
    path = tmp_path / "ready"
    path.write_text("of the last run")
    with path.open() as before:
        tracer = start_ig("trace", "tcp", "--host", "--ready-file", path, ready=False)
        until(lambda: path.read_text() == f"{tracer.process.pid}\n", "the ready file")
        assert before.read() == "of the last run"
    assert [each.name for each in tmp_path.iterdir()] == ["ready"]
    _, said, code = tracer.stop()
    assert code == 0
    assert preempts_programs() or not said


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


def load_from(folder: Path) -> subprocess.CompletedProcess[str]:
    """Trace with the copy of `ig` in a folder."""
    start = f"import sys; sys.path.insert(0, {str(folder)!r}); from ig.cli import main; main()"
    command = ("trace", "tcpconnect", "--host", "-F", "pid==0", "-t", 0.1)
    return run(sys.executable, "-c", start, *command)


def copied(folder: Path) -> Path:
    for name in ("ig", "ebpf"):
        shutil.copytree(CHECKOUT / name, folder / name)
    return folder


@pytest.mark.anywhere
@pytest.mark.parametrize("name", ["", "tcp.c", "headers", "headers/include/linux/types.h"])
@pytest.mark.parametrize("how", ["owner", "mode", "group"])
def test_programs_that_anybody_could_have_changed_are_not_loaded(
    tmp_path: Path, name: str, how: str
) -> None:
    path = copied(tmp_path) / "ebpf" / name
    if how == "owner":
        os.chown(path, NOBODYS, -1)
    elif how == "mode":
        path.chmod(path.stat().st_mode | stat.S_IWOTH)
    else:
        os.chown(path, -1, NOBODYS)
        path.chmod(path.stat().st_mode | stat.S_IWGRP)
    done = load_from(tmp_path)
    assert done.returncode == 1
    assert f"{path} belongs to uid" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.anywhere
def test_programs_are_not_loaded_from_below_a_folder_in_which_others_could_replace_them(
    tmp_path: Path,
) -> None:
    above = tmp_path / "above"
    ours = copied(above / "ours")
    for mode, owner, group, loads in (
        (0o755, 0, NOBODYS, True),
        (0o775, 0, 0, True),
        (0o1777, 0, 0, True),
        (0o775, 0, NOBODYS, False),
        (0o777, 0, 0, False),
        (0o755, NOBODYS, 0, False),
    ):
        os.chown(above, owner, group)
        above.chmod(mode)
        done = load_from(ours)
        assert (done.returncode == 0) == loads, done.stderr
        assert (f"{above} belongs to uid {owner} and gid {group}" in done.stderr) != loads


SYMBOLS_ARE_HIDDEN = """
import os
from pathlib import Path
from ig.kernel.capabilities import Capability, hide_kernel_symbols, holds

before = {each for each in Capability if holds(each)}
hide_kernel_symbols()
Path("made").touch()
with open("/proc/kallsyms") as symbols:
    addresses = {line.split()[0] for line in symbols}
print(
    os.geteuid() == 0,
    os.stat("made").st_uid,
    addresses == {"0" * 16},
    sorted(each.name for each in before if not holds(each)),
)
"""


def test_process_that_compiles_sees_no_addresses_of_symbols_and_opens_files_as_before(
    tmp_path: Path,
) -> None:
    done = run(sys.executable, "-c", SYMBOLS_ARE_HIDDEN, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("False 0 True ['CAP_SYSLOG']\n", "")


KERNEL_ADDRESS = """
import ctypes, socket
(text,) = (line.split()[0] for line in open("/proc/kallsyms") if line.endswith(" _stext\\n"))
libc, client = ctypes.CDLL(None, use_errno=True), socket.socket()
libc.connect(client.fileno(), ctypes.c_void_p(int(text, 16)), 28)
print(text.strip("0"), ctypes.get_errno())
"""


def test_kernel_memory_is_not_reported_as_an_address_whatever_capabilities_ig_has(
    start_ig: Start, namespace: Namespace
) -> None:
    """Without CAP_SYSLOG the kernel hides its symbols, and BCC would read what an address is of."""
    without = ("setpriv", "--bounding-set=-syslog")
    only = ("--host", "-o", "json", "-F", f"netns=={namespace.inode}")
    tracer = start_ig("trace", "tcpconnect", *only, within=without)
    address, error = namespace.run(sys.executable, "-c", KERNEL_ADDRESS).split()
    assert (bool(address), error) == (True, "14")
    (event,) = tracer.wait_for(bool, 1)
    assert (event["error"], event["dst"]["addr"], event["dst"]["port"]) == ("EFAULT", "0.0.0.0", 0)
