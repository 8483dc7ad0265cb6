"""The real command beside real engines that are not Docker: whose each event is."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.host.reports import Report
from tests.host.runtime_drivers import ContainerdEngine, PodmanEngine, serving
from tests.host.runtimes import IMAGE
from tests.host.serving import end_serving
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE

Start = Callable[..., Tracer]
USER = 4242
CONNECT_OFTEN = "while :; do /bin/busybox nc 127.0.0.1 9; /bin/busybox sleep 0.1; done"


class Proxy:
    """A unix socket that passes on what another one says, unless that is held back."""

    def __init__(self, path: Path, server: str) -> None:
        self._server = server
        self.passing = threading.Event()
        self.passing.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._sockets += (client, server)
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._relay, args=ends, daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, held: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if held:
                    self.passing.wait(PATIENCE)
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        end_serving(self._listener, self._thread, self._sockets)


def test_containerd_that_is_slow_to_answer_names_a_container_whose_id_is_a_word(
    start_ig: Start, tmp_path: Path, image: Path
) -> None:
    engine = ContainerdEngine(tmp_path)
    name = f"word-{os.getpid()}"  # runc keeps what a test that failed has left
    with serving(engine, tmp_path, image), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        proxy = Proxy(tmp_path / "proxy.sock", engine.socket)
        port = listener.getsockname()[1]
        ig = start_ig(
            *("trace", "tcpconnect", "--host", "-r", "containerd", "-o", "json"),
            *("--containerd-socketpath", tmp_path / "proxy.sock", "-F", f"dst.port=={port}"),
        )
        proxy.passing.clear()
        command = ("/bin/busybox", "nc", "127.0.0.1", str(port))
        run = threading.Thread(
            target=engine.call, args=("run", "--rm", "--net-host", IMAGE, name, *command)
        )
        run.start()
        with listener.accept()[0]:
            # Events of the host wait for nobody: one that is later is shown before.
            with socket.create_connection(("127.0.0.1", port)):
                shown = ig.wait_for(lambda event: event["proc"]["pid"] == os.getpid())
            assert ig.events == shown
            proxy.passing.set()
            (event,) = ig.wait_for(lambda event: event["runtime"]["containerName"] == name)
        run.join(PATIENCE)
        proxy.close()
        assert event["runtime"]["runtimeName"] == "containerd"
        assert len(ig.stop()[0]) == 2


@pytest.mark.anywhere
def test_podman_of_root_and_of_a_user_are_followed_side_by_side(
    start_ig: Start, image: Path
) -> None:
    # Podman refuses folders with long names.
    with TemporaryDirectory(prefix="ig-", ignore_cleanup_errors=True) as reachable:
        os.chmod(reachable, 0o755)
        mine, theirs = Path(reachable, "mine"), Path(reachable, "theirs")
        mine.mkdir()
        theirs.mkdir()
        engines = PodmanEngine(mine), PodmanEngine(theirs, USER)
        with (
            ending_all_of(USER),
            serving(engines[0], mine, image),
            serving(engines[1], theirs, image),
        ):
            options = ("-d", "--name", "twin", "--network=none", IMAGE)
            loop = ("/bin/busybox", "sh", "-c", CONNECT_OFTEN)
            try:
                ids = [engines[0].call("run", *options, *loop)]
                ig = start_ig(
                    *("trace", "tcpconnect", "-r", "podman", "-o", "json"),
                    *("--podman-socketpath", ",".join(engine.socket for engine in engines)),
                )
                ids.append(engines[1].call("run", *options, *loop))
                for identifier in ids:
                    (event, *_) = ig.wait_for(connects(identifier))
                    assert event["runtime"]["containerName"] == "twin"
                    assert event["runtime"]["runtimeName"] == "podman"
            finally:
                for engine in engines:
                    engine.remove("twin")
            events, said, code = ig.stop()
            assert {event["runtime"]["containerId"] for event in events} == set(ids)
            assert (said, code) == ("", 0)


@contextmanager
def ending_all_of(user: int) -> Iterator[None]:
    """End the user's processes afterwards: Podman leaves one that keeps its user namespace."""
    try:
        yield
    finally:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if process.stat().st_uid == user:
                    os.kill(int(process.name), signal.SIGKILL)


def connects(identifier: str) -> Callable[[Report], bool]:
    return lambda event: event["runtime"]["containerId"] == identifier
