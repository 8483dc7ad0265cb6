"""Pods made through containerd's own CRI plugin, as seen by the CRI and by containerd's API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ig.container import Change
from ig.containers.runtimes import cri
from ig.containers.runtimes.containerd import Containerd
from ig.containers.runtimes.cri import Cri
from ig.containers.selection import select
from tests.host.runtime_drivers import ContainerdEngine, serving
from tests.host.runtimes import IMAGE, SLEEP, cgroup_of, followed

SERVICE = "/runtime.v1.RuntimeService/"
HOST_NETWORK = 2  # NamespaceMode.NODE: no network plugin is needed
ADDRESS = "10.213.1.7"
PLUGIN = """#!/bin/sh
cat >/dev/null
interface="{\\"name\\":\\"$CNI_IFNAME\\",\\"sandbox\\":\\"$CNI_NETNS\\"}"
address='{"version":"4","interface":0,"address":"ADDRESS/24"}'
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' ;;
ADD) echo "{\\"cniVersion\\":\\"0.4.0\\",\\"interfaces\\":[$interface],\\"ips\\":[$address]}" ;;
esac
"""


def field(number: int, *values: str | bytes | int) -> bytes:
    """Encode a protobuf field, by hand: what is sent must not rest on the code under test."""
    encoded = b""
    for value in values:
        if isinstance(value, int):
            encoded += bytes([number << 3, value])
            continue
        content = value.encode() if isinstance(value, str) else value
        size = bytes([len(content) & 0x7F | 0x80, len(content) >> 7])
        encoded += bytes([number << 3 | 2]) + size + content
    return encoded


def labels(number: int, **entries: str) -> bytes:
    """Encode a map; the kubelet's labels begin with `io.kubernetes.`."""
    pairs = (
        field(1, "io.kubernetes." + key.replace("_", ".")) + field(2, value)
        for key, value in entries.items()
    )
    return field(number, *pairs)


class Kubelet(ContainerdEngine):
    """A containerd with its CRI plugin, and the few calls that a kubelet would make."""

    namespace = "k8s.io"

    def __init__(self, folder: Path) -> None:
        plugin = 'plugins."io.containerd.grpc.v1.cri"'
        super().__init__(
            folder,
            f'[{plugin}]\nsandbox_image = "{IMAGE}"\nrestrict_oom_score_adj = true\n'
            f'[{plugin}.cni]\nbin_dir = "{folder}"\nconf_dir = "{folder}/net.d"\n',
        )
        self.folder = folder
        (folder / "net.d").mkdir()
        network = '{"cniVersion":"0.4.0","name":"fixed","plugins":[{"type":"fixed"}]}'
        (folder / "net.d" / "10-fixed.conflist").write_text(network)
        for name in ("fixed", "loopback"):
            (folder / name).write_text(PLUGIN.replace("ADDRESS", ADDRESS))
            (folder / name).chmod(0o755)

    def tell(self, method: str, request: bytes) -> str:
        import grpc

        with grpc.insecure_channel(f"unix://{self.socket}") as channel:
            call: Any = channel.unary_unary(SERVICE + method)
            answer: bytes = call(request, timeout=30, wait_for_ready=True)
        return answer[2 : 2 + answer[1]].decode() if answer else ""

    def pod(self, name: str, own_network: bool = False) -> tuple[str, bytes]:
        network = b"" if own_network else field(8, field(2, field(1, field(1, HOST_NETWORK))))
        metadata = field(1, name) + field(2, f"uid-{name}") + field(3, "prod")
        config = (
            field(1, metadata)
            + field(3, str(self.folder))
            + labels(6, pod_name=name, pod_namespace="prod", pod_uid=f"uid-{name}")
            + network
        )
        return self.tell("RunPodSandbox", field(1, config)), config

    def container(
        self, pod: str, config: bytes, name: str, pod_name: str, own_network: bool = False
    ) -> str:
        network = field(15, field(2, field(3, field(1, 0 if own_network else HOST_NETWORK))))
        kubernetes = labels(
            9,
            container_name=name,
            pod_name=pod_name,
            pod_namespace="prod",
            pod_uid=f"uid-{pod_name}",
        )
        wanted = (
            field(1, field(1, name))
            + field(2, field(1, IMAGE))
            + field(3, *SLEEP)
            + kubernetes
            + network
        )
        made = self.tell("CreateContainer", field(1, pod) + field(2, wanted) + field(3, config))
        self.tell("StartContainer", field(1, made))
        return made

    def remove_pod(self, pod: str) -> None:
        self.tell("StopPodSandbox", field(1, pod))
        self.tell("RemovePodSandbox", field(1, pod))


@pytest.fixture(scope="module")
def kubelet(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Kubelet]:
    folder = tmp_path_factory.mktemp("k")
    started = Kubelet(folder)
    with serving(started, folder, image):
        yield started


@pytest.mark.parametrize("kind", [Cri, Containerd])
def test_pods_container_has_its_kubernetes_names(
    kubelet: Kubelet, kind: type[Cri] | type[Containerd]
) -> None:
    with followed(kind(kubelet.socket)) as following:
        pod, config = kubelet.pod("api-0")
        try:
            made = kubelet.container(pod, config, "server", "api-0")
            started = following.until(lambda change: change.container.id == made)
            while not started.running:
                started = following.until(lambda change: change.container.id == made)
            container = following.named("server")
            assert (container.pod_namespace, container.pod_name) == ("prod", "api-0")
            assert (container.pod_container, container.pod_uid) == ("server", "uid-api-0")
            assert container.image == IMAGE
            assert container.pid > 0
            assert container.started > 0
            found, final = following.index.find(cgroup_of(container.pid))
            assert (found.id, final) == (made, True)
            assert [each.name for each in following.index.containers()] == ["server"]
            pause = [each for each in following.index.containers(sandboxes=True) if each.sandbox]
            assert [each.id for each in pause] == [pod]
            assert following.index.details(pause[0]).pid not in (0, container.pid)
        finally:
            kubelet.remove_pod(pod)
        following.until(lambda change: (change.kind, change.container.id) == ("removed", made))


@pytest.mark.parametrize("kind", [Cri, Containerd])
def test_pods_addresses_are_those_that_its_cri_reports(
    kubelet: Kubelet, kind: type[Cri] | type[Containerd]
) -> None:
    with followed(kind(kubelet.socket), detailed=True) as following:
        pod, config = kubelet.pod("api-3", own_network=True)
        try:
            made = kubelet.container(pod, config, "server", "api-3", own_network=True)
            wanted = {pod, made}

            def all_told(change: Change) -> bool:
                if change.container.addresses == (ADDRESS,):
                    wanted.discard(change.container.id)
                return not wanted

            following.until(all_told)
        finally:
            kubelet.remove_pod(pod)


def test_pods_that_were_there_are_known_at_once(kubelet: Kubelet) -> None:
    pod, config = kubelet.pod("api-1")
    try:
        kubelet.container(pod, config, "server", "api-1")
        with followed(Cri(kubelet.socket), Containerd(kubelet.socket)) as following:
            # Two runtimes tell of the same container: it is one.
            assert following.named("server").pod_name == "api-1"
    finally:
        kubelet.remove_pod(pod)


def test_cri_without_events_is_asked_at_once_for_a_container_that_is_wanted(
    kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cri, "POLL_INTERVAL", 600.0)
    monkeypatch.setattr(cri, "POLL_INTERVAL_WITH_EVENTS", 600.0)
    with followed(Cri(kubelet.socket)) as following:
        pod, config = kubelet.pod("api-2")
        try:
            made = kubelet.container(pod, config, "server", "api-2")
            unknown, final = following.index.find(["kubepods", f"cri-containerd-{made}.scope"])
            assert (unknown.known, final) == (False, False)
            told = following.until(lambda change: change.container.id == made)
            # The runtime is called what it calls itself, and chosen by how it was asked.
            assert (told.name, told.runtime) == ("server", "containerd")
            assert select(runtimes=["cri-o"]).wants(told)
            assert following.index.details(told).pid > 0
        finally:
            kubelet.remove_pod(pod)


def test_cri_runtime_that_goes_is_reported(kubelet: Kubelet) -> None:
    with followed(Cri(kubelet.socket)) as following:
        kubelet.server.stop()
        assert "does not answer" in following.said.get(timeout=30)
        kubelet.server.start()
        assert "answers again" in following.said.get(timeout=30)
