"""What the names of cgroups say of containers that no runtime told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from ig.container import HOST, Change, Container
from ig.containers import lookup
from ig.containers.cgroup import normalised, recognised
from ig.containers.index import Index
from tests.unit.test_index import A, B, Script, quiet

UUID = "0f3d9e4c-1111-2222-3333-444455556666"
STEP = "abcdefghijklmnopqrstuvwxy"
TASK = "34dc0b5e626f2c5c4c5170e34b10e765-1234567890"
GARDEN = "abcdef01-1111-2222-3333-4444"


@pytest.mark.parametrize(
    ("parent", "name", "runtime", "shown"),
    [
        ("kubepods.slice", f"kubepods-pod1_2.slice:cri-containerd:{A}", "unknown", A[:12]),
        ("system.slice", f"containerd.service:docker:{A}", "unknown", A[:12]),
        ("", f"kata_{A}", "unknown", A[:12]),
        ("ecs", A, "unknown", A[:12]),
        ("libpod_parent", f"libpod-{A}", "unknown", A[:12]),
        ("", "lxc.payload.web", "lxc", "web"),
        ("lxc.payload", "web", "lxc", "web"),
        ("lxc", "101", "lxc", "101"),
        ("machine.slice", "machine-qemu\\x2d1\\x2dvm.scope", "machine", "qemu-1-vm"),
        ("machine.slice", "machine-caf\\xc3\\xa9.scope", "machine", "café"),
        ("machine.slice", "systemd-nspawn@deb.service", "machine", "deb"),
        ("machine", "qemu-1-vm.libvirt-qemu", "machine", "qemu-1-vm"),
        ("buildkit", STEP, "buildkit", STEP),
        ("share.slice", f"{UUID}.web.scope", "nomad", "web"),
        ("share", f"{UUID}.web", "nomad", "web"),
        ("task", TASK, "ecs", TASK),
        ("garden", GARDEN, "garden", GARDEN),
        ("mesos", UUID, "mesos", UUID),
        ("system.slice", "runc-web.scope", "runc", "web"),
        ("user.slice", "crun-web.scope", "crun", "web"),
        ("system.slice", "apptainer-4242.scope", "apptainer", "apptainer-4242"),
    ],
)
def test_cgroups_of_containers_are_recognised(
    parent: str, name: str, runtime: str, shown: str
) -> None:
    found = recognised(parent, name)
    assert found is not None
    assert (found.runtime, found.name) == (runtime, shown)


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ("", "lxc.monitor.web"),
        ("", "lxc.payload"),
        ("", "lxc"),
        ("system.slice", f"libpod-conmon-{A}.scope"),
        ("kubepods.slice", f"kubepods-pod1.slice:crio-conmon:{A}"),
        ("machine.slice", f"machine-libpod_pod_{A}.slice"),
        ("libpod_parent", A),
        ("docker", "buildkit"),
        ("buildkit", f"{STEP}z"),
        ("system.slice", "systemd-journald.service"),
        ("system.slice", "machine-web.scope"),
        ("user.slice", "user-1000.slice"),
        ("app.slice", "app-org.gnome.Terminal-1234.scope"),
        ("mesos", "slave"),
    ],
)
def test_cgroups_of_the_host_are_not_taken_for_containers(parent: str, name: str) -> None:
    assert recognised(parent, name) is None


def test_container_of_no_followed_runtime_is_final_at_once() -> None:
    index = Index([Script()], quiet)
    assert index.find(["lxc.payload.web", "init.scope"]) == (
        Container("web", "web", "lxc", scope="lxc"),
        True,
    )
    assert index.find(["docker", "buildkit", STEP])[1]


def test_nested_containers_innermost_is_identified_by_its_id() -> None:
    index = Index([Script()], quiet)
    index.apply("docker", Change("exists", Container(A, "kind", "docker")))
    owner, final = index.find(["docker", A, "kubelet", f"cri-containerd-{B}.scope", "child"])
    assert (owner.name, owner.nested, final) == ("kind", B, True)
    assert index.find(["docker", A, f"conmon-{B}.scope"])[0].nested == ""
    assert index.find(["lxc.payload.web", "docker", B])[0].nested == B


class Asked(Script):
    """A containerd that told of its namespaces."""

    def __init__(self, *namespaces: str) -> None:
        super().__init__("containerd")
        self.namespaces = set(namespaces)


def test_id_in_words_is_not_the_hosts_for_good_before_containerd_has_reported() -> None:
    index = Index([Asked("rt")], quiet)
    assert index.find(["new", "web"]) == (HOST, False)
    assert index.find(["new", "web", "child"]) == (HOST, False)
    assert index.find(["system.slice", "web"]) == (HOST, True)
    assert index.find(["new"]) == (HOST, True)
    assert index.find(["new", "web"], 1) == (HOST, True)
    index.apply("containerd", Change("synced"))
    assert index.find(["new", "web"]) == (HOST, True)
    assert index.find(["rt", "web"]) == (HOST, False)
    index.apply("containerd", Change("created", Container("web", "web", "containerd", scope="rt")))
    assert index.find(["rt", "web"])[0].name == "web"
    index.lost("containerd")
    assert index.find(["rt", "other"]) == (HOST, True)


class Asking(Script):
    """A runtime that is asked for its list now and then."""

    def __init__(self) -> None:
        super().__init__("cri-o")
        self.ids: list[str] = []

    def wanted(self, identifier: str) -> None:
        self.ids.append(identifier)


def test_runtime_without_events_learns_which_container_is_wanted() -> None:
    runtime = Asking()
    index = Index([runtime], quiet)
    index.find(["system.slice", "ssh.service"])
    index.find(["kubepods", f"crio-{A}"])
    index.apply("cri-o", Change("created", Container(A, "web", "cri-o")))
    index.find(["kubepods", f"crio-{A}"])
    index.find(["lxc.payload.web"])
    assert runtime.ids == [A]


def test_container_without_a_name_is_final_where_docker_cannot_name_it() -> None:
    index = Index([Script(), Script("containerd")], quiet)
    for scope, final in (("moby", False), ("default", True), ("buildkit", True)):
        nameless = Container(A, A[:12], "containerd", scope=scope)
        index.apply("containerd", Change("exists", nameless))
        assert index.find([scope, A]) == (nameless, final)
    index.apply("containerd", Change("exists", Container(A, A[:12], "containerd", scope="moby")))
    index.lost("docker")
    assert index.find([A])[1]


def test_container_of_plain_runc_is_known_by_its_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lookup, "RUNC_STATES", {"runc": str(tmp_path)})
    (tmp_path / "web").mkdir()
    index = Index([], quiet)
    assert index.find(["web", "child"])[0].runtime == "runc"
    assert index.find(["user.slice", "user-0.slice", "web"])[0].name == "web"
    assert index.find(["user.slice", "web"], 1) == (HOST, True)
    assert index.find(["shop"]) == (HOST, True)


def test_roots_empty_name_counts_for_nothing() -> None:
    assert normalised(["", "a", "b"], 2) == (("a", "b"), 1)
    assert normalised(["a", "b"], None) == (("a", "b"), 2)
    assert normalised([""], None) == ((), 0)
