"""Finding the runtimes, and what they do about sockets that are missing or lie."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ig.container import Container, Runtime
from ig.containers import runtimes
from ig.containers.runtimes import containerd
from ig.containers.runtimes.containerd import Containerd
from ig.containers.runtimes.cri import Cri
from ig.containers.runtimes.docker_api import Docker, Podman
from ig.containers.runtimes.messages import containerd_pb2
from ig.errors import RuntimeUnavailable, UsageError
from tests.host.serving import end_serving


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


def test_several_sockets_of_a_runtime_are_followed_side_by_side(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = runtimes.discover(["podman"], podman_socket="/tmp/a.sock, /tmp/b.sock")
    assert [each.socket for each in found] == ["/tmp/a.sock", "/tmp/b.sock"]
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(runtimes, "USERS", str(tmp_path))
    place = tmp_path / "1000"
    (place / "podman").mkdir(parents=True)
    (tmp_path / "nobody").mkdir()
    with socket.socket(socket.AF_UNIX) as engine, socket.socket(socket.AF_UNIX) as other:
        engine.bind(str(place / "podman/podman.sock"))
        other.bind(str(tmp_path / "nobody/docker.sock"))
        (place / "docker.sock").symlink_to(tmp_path / "nobody/docker.sock")
        found = runtimes.discover(["podman", "docker"])
    assert [each.socket for each in found] == [
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        f"{place}/podman/podman.sock",
    ]


def test_containerds_of_other_distributions_are_found_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "k3s.sock"
    place.touch()
    places = {"containerd": (str(place), str(tmp_path / "none.sock"))}
    monkeypatch.setattr(runtimes, "PLACES", places)
    found = [each.socket for each in runtimes.discover(["containerd"])]
    assert found == ["/run/containerd/containerd.sock", str(place)]
    assert len(runtimes.discover(["containerd"], containerd_socket="/tmp/c.sock")) == 1


def test_unknown_runtime_is_a_usage_error_that_lists_the_known() -> None:
    with pytest.raises(UsageError, match="docker, containerd, podman, cri-o"):
        runtimes.discover(["lxd"])


def test_runtime_named_or_given_a_socket_is_missed_when_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert runtimes.asked() == frozenset()
    assert runtimes.asked(["podman"]) == {"podman"}
    assert runtimes.asked(["crio"], docker_socket="/tmp/d.sock") == {"cri-o", "docker"}


@pytest.mark.parametrize("kind", [Docker, Containerd, Podman, Cri])
def test_missing_socket_is_an_unavailable_runtime(
    kind: Callable[[str], Runtime], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeUnavailable, match="no such socket"):
        next(kind(str(tmp_path / "none.sock")).watch(lambda: False))


@pytest.mark.parametrize("kind", [Containerd, Cri])
def test_answer_that_is_no_grpc_is_an_unavailable_runtime(
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

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            with pytest.raises(RuntimeUnavailable):
                next(kind(path).watch(lambda: False))
        finally:
            end_serving(listener, thread)


HEX = "a" * 64
KUBERNETES = {
    "io.kubernetes.container.name": "api",
    "io.kubernetes.pod.name": "api-0",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.uid": "5a1f",
}


def described(scope: str, identifier: str, *extensions: str, **labels: str) -> Container:
    """Return what is made of containerd's record of a container."""
    record = containerd_pb2.Container(id=identifier, labels={**KUBERNETES, **labels})
    for name in extensions:
        record.extensions[name].value = b"{}"
    return containerd.container_of(scope, record)


def test_containerd_reports_only_the_pods_that_its_cri_plugin_made() -> None:
    kind, made = {"io.cri-containerd.kind": "container"}, "io.cri-containerd.container.metadata"
    pod = described("k8s.io", HEX, made, **kind)
    assert (pod.name, pod.pod_name, pod.pod_namespace) == ("api", "api-0", "shop")
    assert not pod.sandbox
    pause = described(
        "k8s.io", HEX, "io.cri-containerd.sandbox.metadata", **{"io.cri-containerd.kind": "sandbox"}
    )
    assert (pause.name, pause.pod_name, pause.sandbox) == ("api-0", "api-0", True)
    marked = {**kind, "io.kubernetes.docker.type": "podsandbox"}
    for container in (
        described("default", HEX, made, **marked),
        described("k8s.io", HEX, **marked),
        described("k8s.io", "web", made, **{"io.cri-containerd.kind": "sandbox"}),
    ):
        assert (container.name, container.pod_name) == (container.id[:12], "")
        assert not container.sandbox


def test_nerdctls_name_counts_only_in_its_own_namespace() -> None:
    ours = {"nerdctl/name": "web", "nerdctl/namespace": "default"}
    assert described("default", HEX, **ours).name == "web"
    assert described("other", HEX, **ours).name == HEX[:12]
    assert described("default", "x", **ours).name == "x"
    assert described("default", HEX, **{"nerdctl/name": "web"}).name == HEX[:12]
