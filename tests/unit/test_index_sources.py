"""The index: several sockets of one runtime, whose each is, and what each may claim."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ig.container import HOST, Change, Container
from ig.containers import lookup, sources
from ig.containers.index import Index
from ig.errors import RuntimeUnavailable
from ig.kernel import processes
from tests.host.waiting import PATIENCE, until
from tests.unit.test_index import NOBODY, A, B, Script, Witness, quiet

USER = 4242
OURS, THEIRS = "/run/podman/podman.sock", f"/run/user/{USER}/podman/podman.sock"
SESSION = ("user.slice", f"user-{USER}.slice", f"user@{USER}.service")
PATH = (*SESSION, f"libpod-{A}.scope")
SECOND = f"podman {THEIRS}"


def podmans() -> Index:
    """Return an index of root's Podman and a user's, which have been asked."""
    index = Index([Script("podman", OURS), Script("podman", THEIRS)], quiet)
    for source in ("podman", SECOND):
        index.begin(source)
    return index


def test_two_sockets_of_one_runtime_are_distinguished() -> None:
    index = podmans()
    web = Container(A, "web", "podman", running=True)
    shop = Container(B, "shop", "podman", running=True)
    index.apply("podman", Change("exists", web))
    index.apply(SECOND, Change("exists", shop))
    index.apply("podman", Change("synced"))
    index.apply(SECOND, Change("synced"))
    assert {each.name for each in index.containers()} == {"web", "shop"}
    index.begin(SECOND)
    index.apply(SECOND, Change("synced"))
    assert [each.name for each in index.containers()] == ["web"]
    index.lost("podman")
    assert index.answering == {"podman"}
    index.lost(SECOND)
    assert index.answering == frozenset()


def test_both_sockets_are_waited_for() -> None:
    index = podmans()
    index.apply("podman", Change("synced"))
    assert index.unlisted == {SECOND}


def test_users_runtime_names_no_cgroup_but_that_of_its_process() -> None:
    index = podmans()
    theirs = Container(A, "web", "podman", running=True, cgroups=((*PATH, "container"),))
    index.apply(SECOND, Change("exists", theirs))
    owner, final = index.find(PATH, 3)
    assert (owner.name, owner.source, final) == ("web", SECOND, True)
    assert index.find(PATH)[0] == owner
    unknown, _ = index.find(("machine.slice", f"libpod-{A}.scope"))
    assert not unknown.known


def test_users_runtime_has_no_container_with_the_id_of_one_of_roots() -> None:
    index = podmans()
    web = Container(A, A[:12], "podman", running=True, pid=NOBODY)
    index.apply("podman", Change("exists", web))
    index.apply(SECOND, Change("exists", replace(web, name="shop", cgroups=((*PATH, "init"),))))
    assert index.find(("machine.slice", f"libpod-{A}.scope"))[0] == web
    assert index.find(PATH, 3) == (HOST, True)
    assert index.containers() == [web]
    index.apply(SECOND, Change("removed", web))
    assert index.find(("machine.slice", f"libpod-{A}.scope"))[0] == web
    index.apply("podman", Change("removed", web))
    assert index.find(("machine.slice", f"libpod-{A}.scope"))[0].id == A


def test_users_container_gives_way_to_one_of_roots_that_has_its_id() -> None:
    index = podmans()
    theirs = Container(A, "shop", "podman", running=True, cgroups=(PATH,))
    index.apply(SECOND, Change("exists", theirs))
    assert index.find(PATH, 3)[0].name == "shop"
    web = Container(A, "web", "podman", running=True, pid=NOBODY)
    index.apply("podman", Change("exists", web))
    assert index.find(PATH, 3) == (HOST, True)
    assert index.containers() == [web]


def test_socket_that_a_user_takes_over_keeps_nothing_of_roots() -> None:
    script = Script("podman", OURS)
    index = Index([script], quiet)
    index.begin("podman")
    web = Container(A, "web", "podman", running=True)
    index.apply("podman", Change("exists", web))
    index.apply("podman", Change("synced"))
    index.lost("podman")
    script.socket = THEIRS
    index.begin("podman")
    assert index.containers() == []
    for identifier, name in ((A, "taken"), (B, "shop")):
        index.apply("podman", Change("exists", replace(web, id=identifier, name=name)))
    assert index.find(("machine.slice", f"libpod-{A}.scope"))[0].name == "web"  # removed lately
    assert [each.name for each in index.containers()] == ["shop"]


def test_users_runtime_that_goes_is_not_reported() -> None:
    said = Witness().said
    ours, theirs = Script("podman", "/nonexistent/podman.sock"), Script("podman", THEIRS)
    index = Index([ours, theirs], said.put)
    index.start()
    for script in (theirs, ours):
        for line in (Change("synced"), RuntimeUnavailable(f"{script.socket} is gone")):
            script.lines.put(line)
    assert "/nonexistent/podman.sock is gone" in said.get(timeout=PATIENCE)
    until(lambda: not index.answering, "both to be lost")
    index.close()
    assert said.empty()


def test_users_runtime_claims_no_network_and_no_process_of_others() -> None:
    index = podmans()
    web = Container(A, "web", "podman", running=True, pid=os.getpid())
    network = replace(
        web,
        addresses=("10.88.0.2",),
        networks=("podman",),
        ports=(("", 80, 80),),
        exposed=(80,),
        netns=os.stat("/proc/self/ns/net").st_ino,
        joined=B,
    )
    index.apply(SECOND, Change("exists", network))
    # Nor this process, which is not in a user namespace of that user's.
    assert index.containers() == [replace(web, pid=0, source=SECOND)]


class Liar(Script):
    """A runtime that tells of this very process."""

    def details(self, container: Container) -> Container:
        return replace(container, pid=os.getpid())


def test_users_runtime_gives_no_details_of_processes_of_others() -> None:
    index = Index([Liar("podman", THEIRS)], quiet)
    index.begin("podman")
    web = Container(A, "web", "podman", running=True)
    index.apply("podman", Change("exists", web))
    assert index.details(web).pid == 0
    assert [each.pid for each in index.containers()] == [0]


def test_changes_of_a_users_runtime_are_published() -> None:
    index, witness = podmans(), Witness()
    index.subscribe(witness.changes.put)
    index.apply(SECOND, Change("created", Container(A, "web", "podman")))
    index.apply(SECOND, Change("removed", Container(A, "web", "podman")))
    assert [witness.next()[0] for _ in range(2)] == ["created", "removed"]


def test_user_of_a_socket_is_the_folders_or_the_files() -> None:
    assert sources.owner("/run/user/4242/docker.sock") == 4242
    assert sources.owner(f"/run/user/{os.geteuid()}/docker.sock") == sources.ROOT
    assert sources.owner("tcp://127.0.0.1:2375") == sources.ROOT
    assert sources.owner("/proc/1/cmdline") == sources.ROOT


@contextmanager
def sleeping() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_what_a_process_says_of_itself_is_read() -> None:
    with sleeping() as pid:
        assert processes.cgroups(pid) == processes.cgroups(os.getpid())
        assert set(processes.cgroups(pid) or ()) <= processes.all_cgroups()
        assert processes.mount_namespace(pid) == os.stat("/proc/self/ns/mnt").st_ino
        assert not processes.is_of_user(pid, os.geteuid())
    assert processes.cgroups(NOBODY) is None
    assert processes.mount_namespace(NOBODY) == 0
    assert not processes.is_of_user(NOBODY, os.geteuid())


def test_cgroups_above_ones_own_namespace_prove_nothing() -> None:
    lines = f"12:pids:/docker/{A}\n1:name=systemd:/\n0::/../docker-{A}.scope/init\n0::\nnonsense\n"
    found = processes.paths(lines)
    assert found == (("docker", A), ("..", f"docker-{A}.scope", "init"))
    web = Container(A, "web", "docker", cgroups=found)
    assert lookup.has_own_cgroup(web, found[1:])
    assert lookup.is_proven(web, ("docker", A))
    assert not lookup.is_proven(web, (*SESSION, f"docker-{A}.scope"))
    assert not lookup.is_proven(web, ("docker",) * 2)


def test_first_process_is_where_its_runtime_says() -> None:
    with sleeping() as pid:
        paths = processes.cgroups(pid) or ()
        index, witness = Index([Script()], quiet), Witness()
        index.subscribe(witness.changes.put)
        web = Container(A, "web", "docker", running=True)
        index.apply("docker", Change("exists", web))
        index.apply("docker", Change("updated", replace(web, pid=pid)))
        assert witness.next() == ("exists", web)
        # It shares this process's mount namespace, which tells nothing: so it is no stray.
        assert witness.next() == ("updated", replace(web, pid=pid, cgroups=paths))
        assert (index.strays.by_mntns, index.strays.paths) == ({}, frozenset())


def test_cgroups_of_a_first_process_outlive_it_until_it_runs_again() -> None:
    index = Index([Script("containerd")], quiet)
    first = (*SESSION, "default", "web")
    web = Container("web", "web", "containerd", scope="default", running=True, cgroups=(first,))
    index.apply("containerd", Change("exists", web))
    index.apply("containerd", Change("exited", replace(web, running=False, cgroups=())))
    assert index.find(first, 3)[0].name == "web"
    index.apply("containerd", Change("removed", web))
    assert index.find(first, 3)[0].name == "web"
    # The same id once more, made by somebody else, and elsewhere.
    index.apply("containerd", Change("created", replace(web, running=False, cgroups=())))
    assert index.find(first, 3)[0] == HOST
