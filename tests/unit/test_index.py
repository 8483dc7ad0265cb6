"""The index: whose a cgroup is, by what the runtimes told, and what becomes of it over time."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ig.container import HOST, Change, Container
from ig.containers.cgroup import container_id
from ig.containers.index import Index
from ig.containers.store import Registry
from ig.errors import RuntimeUnavailable
from tests.host.waiting import PATIENCE

A, B, C = "a" * 64, "b" * 64, "c" * 64
WEB = Container(A, "web", "docker", running=True)
NOBODY = 2**22 + 1  # a pid above any that the kernel gives
HEXADECIMAL = set("0123456789abcdef")


class Script:
    """A runtime that tells what a test puts into its queue; an exception is raised."""

    def __init__(self, name: str = "docker", socket: str = "/nonexistent/engine.sock") -> None:
        self.name = name
        self.socket = socket
        self.lines: queue.Queue[Change | Exception | None] = queue.Queue()

    def watch(self, stopped: Callable[[], bool]) -> Iterator[Change]:
        while (line := self.lines.get(timeout=PATIENCE)) is not None and not stopped():
            if isinstance(line, Exception):
                raise line
            yield line

    def stop(self) -> None:
        self.lines.put(None)

    def details(self, container: Container) -> Container:
        return replace(container, pid=NOBODY)

    def version(self) -> str:
        return "0"


class Witness:
    """Remembers what an index says and changes, and waits for it."""

    def __init__(self) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self.changes: queue.Queue[Change] = queue.Queue()

    def next(self) -> tuple[str, Container]:
        change = self.changes.get(timeout=PATIENCE)
        return change.kind, change.container


def quiet(_line: str) -> None:
    """Say nothing."""


def told(*changes: Change, runtimes: tuple[str, ...] = ("docker",)) -> Index:
    """Return an index that was told of the changes by the first runtime, and no thread."""
    index = Index([Script(name) for name in runtimes], quiet)
    for change in changes:
        index.apply(runtimes[0], change)
    return index


@pytest.mark.parametrize(
    "path",
    [
        ["docker", A],
        ["", "docker", A],
        ["system.slice", f"docker-{A}.scope"],
        ["kubepods.slice", "kubepods-pod1.slice", f"cri-containerd-{A}.scope"],
        ["kubepods", "besteffort", "pod1", A],
        ["kubepods.slice", f"crio-{A}.scope", "container"],
        ["kubepods", f"crio-{A}"],
        ["machine.slice", f"libpod-{A}.scope", "container"],
        ["machine.slice", f"libpod-{A}.scope", "init.scope", "system.slice", "a.service"],
        ["system.slice", f"nerdctl-{A}.scope"],
    ],
)
def test_cgroup_of_any_driver_is_its_containers(path: list[str]) -> None:
    assert told(Change("exists", WEB)).find(path) == (WEB, True)


@pytest.mark.parametrize(
    "path",
    [
        [],
        [""],
        ["", "user.slice", "user-0.slice", "session-1.scope"],
        ["system.slice", f"crio-conmon-{A}.scope"],
        ["machine.slice", f"libpod-conmon-{A}.scope"],
        ["system.slice", "docker.service"],
        ["system.slice", "docker-" + "a" * 63 + ".scope"],
        ["system.slice", "a" * 65],
        ["system.slice", "A" * 64],
        ["system.slice", A + "\n"],
    ],
)
def test_other_cgroups_are_the_hosts(path: list[str]) -> None:
    assert told(Change("exists", WEB)).find(path) == (HOST, True)


def test_outermost_known_container_wins() -> None:
    inner = Container(B, "inner", "docker")
    index = told(Change("exists", WEB), Change("exists", inner))
    assert index.find(["docker", A, "docker", B])[0] == replace(WEB, nested=B)
    assert index.find(["docker", A, "child"])[0] == WEB


def test_id_below_an_unknown_container_proves_nothing_by_its_name() -> None:
    inner = Container(B, "inner", "docker", cgroups=(("docker", C, "pod", B, "init.scope"),))
    index = told(Change("exists", WEB), Change("exists", inner))
    owner, _ = index.find(["docker", C, "docker", A])
    assert (owner.id, owner.runtime, owner.nested) == (C, "unknown", A)
    assert index.find(["docker", C, "pod", B, "other"])[0] == inner


USERS = ("user.slice", "user-1000.slice", "user@1000.service")


def test_name_that_an_ordinary_user_could_make_is_trusted_only_where_the_process_is() -> None:
    path = (*USERS, f"libpod-{A}.scope")
    rootless = replace(WEB, running=True, pid=NOBODY, cgroups=((*path, "container"),))
    index = told(Change("exists", rootless), Change("synced"))
    assert index.find(path, 3) == (rootless, True)
    assert index.find((*path, "exec"), 3) == (rootless, True)
    assert index.find((*USERS, f"docker-{A}.scope"), 3) == (HOST, True)
    assert index.find(("system.slice", *USERS, f"libpod-{A}.scope"), 1) == (HOST, True)
    assert index.find((*USERS, f"docker-{A}.scope"), 4) == (rootless, True)
    assert index.find(("", *USERS, f"docker-{A}.scope"), 4) == (HOST, True)


def test_name_that_an_ordinary_user_made_within_a_container_is_the_containers() -> None:
    victim = Container(B, "victim", "docker")
    index = told(Change("exists", WEB), Change("exists", victim))
    owner, final = index.find(["docker", A, f"docker-{B}.scope"], 2)
    assert (owner.id, final) == (A, True)


def test_id_that_nobody_reported_proves_nothing_where_a_user_could_have_made_it() -> None:
    index = told(Change("exists", WEB))
    owner, final = index.find([*USERS, f"libpod-{B}.scope", "container"], 3)
    assert owner.id == f"/{'/'.join(USERS)}/libpod-{B}.scope"
    assert (owner.name, owner.runtime, final) == (f"unproven-{B[:12]}", "unknown", False)
    index.lost("docker")
    assert index.find([*USERS, f"libpod-{B}.scope"], 3)[1]
    assert index.find([*USERS, "lxc.payload.web"], 3)[0].name == "unproven-lxc"


def test_container_whose_process_is_yet_to_be_reported_is_not_final_where_it_must_prove() -> None:
    index = told(Change("exists", replace(WEB, running=True)))
    assert index.find([*USERS, f"libpod-{A}.scope"], 3) == (HOST, False)
    index.lost("docker")
    assert index.find([*USERS, f"libpod-{A}.scope"], 3) == (HOST, True)


def test_unknown_container_has_its_short_id() -> None:
    owner, _ = told().find(["docker", B, "docker", C])
    assert (owner.id, owner.name, owner.runtime, owner.known) == (B, B[:12], "unknown", False)


def test_unknown_is_final_only_when_no_runtime_could_report_more() -> None:
    index = told(Change("synced"), runtimes=("docker", "podman"))
    assert not index.find([A])[1]
    index.lost("docker")
    assert not index.find([A])[1]
    index.lost("podman")
    assert index.find([A])[1]


def test_id_in_words_needs_its_namespace_as_parent() -> None:
    web = Container("web", "web", "containerd", scope="default")
    index = Index([Script("containerd")], quiet)
    index.apply("containerd", Change("exists", web))
    assert index.find(["", "default", "web"])[0] == web
    assert index.find(["", "default", "web", "child"])[0] == web
    assert index.find(["", "system.slice", "web"]) == (HOST, True)
    assert index.find(["", "web"]) == (HOST, True)
    assert index.find(["web"]) == (HOST, True)


def test_same_id_in_two_namespaces_is_two_containers() -> None:
    one = Container("web", "web", "containerd", scope="one")
    two = Container("web", "web", "containerd", scope="two")
    index = Index([Script("containerd")], quiet)
    index.apply("containerd", Change("exists", one))
    index.apply("containerd", Change("exists", two))
    index.apply("containerd", Change("removed", one))
    assert index.find(["two", "web"])[0] == two
    assert index.containers(stopped=True) == [two]


def test_id_in_words_without_a_scope_claims_nothing() -> None:
    liar = Container("system.slice", "liar", "docker")
    assert told(Change("exists", liar)).find(["", "system.slice", "a.service"]) == (HOST, True)


def test_container_of_two_runtimes_has_the_name_that_one_gave() -> None:
    nameless = Container(A, A[:12], "containerd", running=True, scope="moby")
    index = Index([Script("containerd"), Script("docker")], quiet)
    index.apply("containerd", Change("created", nameless))
    assert index.find([A]) == (nameless, False)
    index.apply("docker", Change("created", WEB))
    assert index.find([A]) == (WEB, True)
    assert index.containers() == [WEB]
    index.apply("docker", Change("removed", WEB))
    assert index.find([A])[0] == nameless


def test_removed_container_is_still_found_but_not_listed() -> None:
    index = told(Change("created", WEB), Change("removed", WEB))
    assert index.find([A]) == (replace(WEB, running=False), True)
    assert index.containers(stopped=True) == []


def test_memory_is_bounded_over_ten_thousand_containers() -> None:
    registry = Registry(["docker"], removed=64)
    for number in range(10_007):
        container = Container(f"{number:064x}", f"c{number}", "docker")
        registry.apply("docker", Change("created", container))
        registry.apply("docker", Change("removed", container))
    assert len(registry) == 0
    kept = [number for number in range(10_007) if registry.get(f"{number:064x}")]
    assert kept == list(range(10_007 - 64, 10_007))


def test_endless_runtime_is_trusted_only_so_many_containers() -> None:
    registry = Registry(["docker"], limit=100, removed=10)
    for number in range(1009):
        registry.apply("docker", Change("exists", Container(f"{number:064x}", "x", "docker")))
    assert len(registry) == 100
    assert registry.get(f"{1008:064x}")
    assert not registry.get(f"{0:064x}")


def test_lists_leave_out_what_does_not_run_and_pauses_unless_asked() -> None:
    stopped = Container(B, "stopped", "docker")
    pause = Container(C, "pause", "docker", running=True, sandbox=True)
    index = told(*(Change("exists", each) for each in (WEB, stopped, pause)))
    assert index.containers() == [WEB]
    assert index.containers(stopped=True, sandboxes=True) == [WEB, stopped, pause]


def test_change_is_published_only_if_an_answer_could_differ() -> None:
    index, witness = told(Change("exists", WEB), Change("synced")), Witness()
    index.subscribe(witness.changes.put)
    index.apply("docker", Change("exists", WEB))
    assert witness.changes.empty()
    index.apply("docker", Change("renamed", replace(WEB, name="shop")))
    assert witness.next()[1].name == "shop"
    assert index.find([A])[0].name == "shop"


def test_details_are_kept_while_it_runs_and_forgotten_when_it_exits() -> None:
    index = told(Change("exists", WEB))
    assert index.details(WEB).pid == NOBODY
    index.apply("docker", Change("renamed", replace(WEB, name="shop")))
    assert [(each.name, each.pid) for each in index.containers()] == [("shop", NOBODY)]
    index.apply("docker", Change("exited", replace(WEB, running=False)))
    index.apply("docker", Change("started", WEB))
    assert [each.pid for each in index.containers()] == [0]


@pytest.fixture
def followed() -> Iterator[tuple[Script, Witness, Index]]:
    script, witness = Script(), Witness()
    index = Index([script], witness.said.put, asked=["docker"])
    index.subscribe(witness.changes.put)
    index.start()
    yield script, witness, index
    index.close()


def test_lost_runtime_is_reported_once_and_so_is_its_return(
    followed: tuple[Script, Witness, Index],
) -> None:
    script, witness, index = followed
    gone = RuntimeUnavailable("docker does not answer", "connection refused")
    for line in (Change("exists", WEB), Change("synced"), gone, gone, gone, Change("synced")):
        script.lines.put(line)
    assert "connection refused" in witness.said.get(timeout=PATIENCE)
    assert "answers again" in witness.said.get(timeout=PATIENCE)
    assert witness.said.empty()
    index.wait_synced(PATIENCE)


def test_names_outlive_a_lost_connection_and_the_next_list_corrects_them(
    followed: tuple[Script, Witness, Index],
) -> None:
    script, witness, index = followed
    web = replace(WEB, pid=NOBODY)
    shop = Container(B, "shop", "docker", running=True, pid=NOBODY)
    for line in (Change("exists", web), Change("synced"), RuntimeUnavailable("gone")):
        script.lines.put(line)
    assert witness.next() == ("exists", web)
    witness.said.get(timeout=PATIENCE)
    assert index.find([A])[0] == web
    script.lines.put(Change("exists", shop))
    assert witness.next() == ("exists", shop)
    assert index.containers() == [web, shop]
    script.lines.put(Change("synced"))
    assert witness.next() == ("removed", replace(web, running=False))
    assert index.containers() == [shop]


def test_default_runtime_without_a_socket_is_not_mentioned() -> None:
    script, said = Script(), Witness().said
    index = Index([script], said.put)
    index.start()
    script.lines.put(RuntimeUnavailable("docker does not answer"))
    index.wait_synced(PATIENCE)
    assert index.find([A])[1]
    index.close()
    assert said.empty()


def test_hung_runtime_delays_the_start_no_longer_than_asked() -> None:
    index = Index([Script()], quiet)
    index.start()
    index.wait_synced(0.05)
    assert not index.find([A])[1]
    index.close()


@pytest.fixture
def _restless() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_restless")
def test_reading_while_a_runtime_reports_always_finds_what_is_there() -> None:
    index = told(Change("exists", WEB))
    stop, missed = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            index.containers()
            if index.find(["docker", A])[0].name != "web":
                missed.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5003):
        index.apply("docker", Change("removed", WEB))
        index.apply("docker", Change("created", WEB))
    stop.set()
    reader.join(PATIENCE)
    assert not missed


def test_container_id_needs_sixty_four_hexadecimal_digits() -> None:
    assert container_id(A) == A
    assert container_id(f"docker-{A}.scope") == A
    assert not any(map(container_id, ["", "a" * 63, "g" * 64, f"-{A}", f"{A}.service", "é" * 64]))


@given(
    st.text(max_size=300)
    | st.builds("{}{}{}".format, st.text(max_size=140), st.just(A), st.text(max_size=20))
    | st.from_regex(r"[A-Za-z:.\\-]{0,140}[0-9a-f]{60,70}(\.scope)?")
)
def test_any_name_of_a_cgroup_has_an_id_of_its_own_or_none(name: str) -> None:
    assume("/" not in name and name not in (".", ".."))  # no names of folders
    found = container_id(name)
    assert found == "" or (len(found) == 64 and found in name and set(found) <= HEXADECIMAL)
    container, _ = Index([], quiet).find(["system.slice", name, "init.scope"])
    assert container.id == found


@pytest.mark.parametrize("failures", [0, 1])
def test_details_of_what_runs_are_asked_for_when_wanted_until_they_come(failures: int) -> None:
    class Busy(Script):
        left = failures

        def details(self, container: Container) -> Container:
            self.left -= 1
            if self.left >= 0:
                raise RuntimeUnavailable("docker is busy")
            return super().details(container)

    script, witness = Busy(), Witness()
    index = Index([script], quiet, detailed=True)
    index.subscribe(witness.changes.put)
    index.start()
    script.lines.put(Change("exists", WEB))
    assert witness.next() == ("exists", WEB)
    assert witness.next() == ("updated", replace(WEB, pid=NOBODY))
    index.close()


def test_details_that_come_too_late_are_not_taken_for_a_newer_start() -> None:
    index = told(Change("exists", replace(WEB, started=2)))
    assert index.details(replace(WEB, started=1)).pid == NOBODY
    assert [each.pid for each in index.containers()] == [0]


def test_start_waits_for_details_that_are_wanted() -> None:
    script = Script()
    index = Index([script], quiet, detailed=True)
    index.start()
    for line in (Change("exists", WEB), Change("synced")):
        script.lines.put(line)
    index.wait_synced(PATIENCE)
    assert [each.pid for each in index.containers()] == [NOBODY]
    index.close()


def test_bug_in_a_thread_is_said_and_raised_in_the_end() -> None:
    script, witness = Script(), Witness()
    index = Index([script], witness.said.put)
    index.start()
    script.lines.put(ZeroDivisionError())
    assert "bug in ig (ZeroDivisionError)" in witness.said.get(timeout=PATIENCE)
    index.wait_synced(PATIENCE)
    with pytest.raises(ZeroDivisionError):
        index.close()


def test_address_that_was_taken_away_is_a_containers_no_more() -> None:
    class Moving(Script):
        addresses: tuple[str, ...] = ("10.0.0.1", "10.0.0.2")

        def details(self, container: Container) -> Container:
            found = replace(super().details(container), addresses=self.addresses, moved=False)
            return replace(found, networks=("n",) * len(self.addresses))

    script, witness = Moving(), Witness()
    index = Index([script], quiet, detailed=True)
    index.subscribe(witness.changes.put)
    index.start()
    script.lines.put(Change("exists", WEB))
    assert witness.next()[1].addresses == ()
    assert witness.next()[1].addresses == ("10.0.0.1", "10.0.0.2")
    for addresses in (("10.0.0.2",), ()):
        script.addresses = addresses
        script.lines.put(Change("updated", replace(WEB, moved=True, addressed=7 + len(addresses))))
        kind, asked = witness.next()
        assert (kind, asked.moved, len(asked.addresses)) == ("updated", True, len(addresses) + 1)
        _, found = witness.next()
        assert (found.addresses, found.moved) == (addresses, False)
    index.close()


class Batched(Script):
    """A runtime whose changes are read when somebody asks."""

    batches = False

    def batch(self, batches: bool) -> None:
        self.batches = batches

    def catch_up(self, seconds: float) -> bool:
        return self.batches and seconds > 0


@pytest.mark.parametrize(("name", "batches"), [("docker", True), ("podman", False)])
def test_batches_are_read_of_runtimes_whose_containers_have_cgroups(
    name: str, batches: bool
) -> None:
    script = Batched(name)
    index = Index([script], quiet)
    index.begin(name)
    assert not script.batches
    index.batch()
    index.begin(name)
    assert script.batches == batches
    index.catch_up()


def test_batches_are_not_read_of_an_ordinary_users_runtime() -> None:
    script = Batched("docker", "/run/user/4711/docker.sock")
    index = Index([script], quiet)
    index.batch()
    index.begin("docker")
    assert not script.batches
