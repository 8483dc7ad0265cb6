"""Finding the runtimes, and what they do about sockets that are missing or lie."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ig.containers import runtimes
from ig.containers.container import Runtime
from ig.containers.containerd import Containerd
from ig.containers.cri import Cri
from ig.containers.docker import Docker
from ig.containers.podman import Podman
from ig.errors import RuntimeUnavailable, UsageError


def test_all_runtimes_are_followed_by_default() -> None:
    found = runtimes.discover()
    assert [runtime.name for runtime in found] == ["docker", "containerd", "podman", "cri-o"]


def test_chosen_runtimes_are_at_the_given_sockets() -> None:
    found = runtimes.discover(
        ["crio", " Docker "], docker_socket="/tmp/d.sock", crio_socket="unix:///tmp/c.sock"
    )
    assert {runtime.name: runtime.socket for runtime in found} == {
        "docker": "/tmp/d.sock",
        "cri-o": "/tmp/c.sock",
    }


def test_docker_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///tmp/e.sock")
    assert runtimes.discover(["docker"])[0].socket == "/tmp/e.sock"
    assert runtimes.discover(["docker"], docker_socket="/tmp/d.sock")[0].socket == "/tmp/d.sock"
    monkeypatch.delenv("DOCKER_HOST")
    assert runtimes.discover(["docker"])[0].socket == "/var/run/docker.sock"


def test_an_unknown_runtime_is_a_usage_error_that_lists_the_known() -> None:
    with pytest.raises(UsageError, match="docker, containerd, podman, cri-o"):
        runtimes.discover(["lxd"])


def test_a_runtime_named_or_given_a_socket_is_missed_when_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert runtimes.asked() == frozenset()
    assert runtimes.asked(["podman"]) == {"podman"}
    assert runtimes.asked(["crio"], docker_socket="/tmp/d.sock") == {"cri-o", "docker"}


@pytest.mark.parametrize("kind", [Docker, Containerd, Podman, Cri])
def test_a_missing_socket_is_an_unavailable_runtime(
    kind: Callable[[str], Runtime], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeUnavailable, match="no such socket"):
        next(kind(str(tmp_path / "none.sock")).watch(lambda: False))


@pytest.mark.parametrize("kind", [Containerd, Cri])
def test_an_answer_that_is_no_grpc_is_an_unavailable_runtime(
    kind: type[Containerd] | type[Cri], tmp_path: Path
) -> None:
    path = str(tmp_path / "bad.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 1000)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(RuntimeUnavailable):
            next(kind(path).watch(lambda: False))
