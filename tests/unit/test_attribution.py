"""The states of a cgroup: waiting, given up, forgotten on either side, renamed, used again."""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from ig.container import HOST, UNKNOWN_RUNTIME, Change, Container
from ig.containers.cgroup import container_id
from ig.containers.lookup import Strays
from ig.kernel.cgroupfs import CgroupPath, Paths
from ig.trace import attribution
from ig.trace.attribution import OWNER_TIMEOUT, Attribution

WEB = Container("a" * 64, "web", "docker", running=True)
DB = Container("b" * 64, "db", "docker", running=True)


class Located(Strays):
    """Containers without a cgroup of their own, set by the tests."""

    def locate(self, pid: int, mntns: int) -> None:
        self.by_mntns = {**self.by_mntns, mntns: self.by_pid[pid]}


class Runtimes:
    """What the runtimes told, changed by the tests."""

    def __init__(self, *containers: Container) -> None:
        self.known = {each.id: each for each in containers}
        self.answering = frozenset({"docker"})
        self.unlisted: frozenset[str] = frozenset()
        self.strays = Located(threading.Lock())
        self.asked: list[tuple[str, ...]] = []
        self.unread: list[tuple[str, Container]] = []
        self._told: list[Callable[[Change], None]] = []

    def find(self, path: Sequence[str], trusted: int | None = None) -> tuple[Container, bool]:
        self.asked.append(tuple(path))
        believed = path[:trusted]
        for name in believed:
            identifier = container_id(name)
            if identifier in self.known:
                return self.known[identifier], True
            if identifier:
                return Container(identifier, identifier[:12], UNKNOWN_RUNTIME), not self.answering
        return HOST, True

    def catch_up(self) -> None:
        while self.unread:
            self.tell(*self.unread.pop(0))

    def subscribe(self, told: Callable[[Change], None]) -> Callable[[], None]:
        self._told.append(told)
        return lambda: None

    def tell(self, kind: str, container: Container) -> None:
        self.known[container.id] = container
        for told in self._told:
            told(Change(kind, container))


class Filter:
    """The kernel's side: the verdicts that were written, as they are now."""

    def __init__(self) -> None:
        self.verdicts: dict[int, bool] = {}
        self.written = 0
        self.forgotten: list[int] = []

    def decide(self, cgroup: int, keep: bool) -> None:
        self.verdicts[cgroup] = keep
        self.written += 1

    def forget(self, cgroup: int) -> None:
        self.verdicts.pop(cgroup, None)
        self.forgotten.append(cgroup)


class Bench:
    """An attribution that wants the containers called `web`, or all, and what surrounds it."""

    def __init__(self, *known: Container, every: bool = False) -> None:
        self.runtimes = Runtimes(*known)
        self.kernel = Filter()
        self.file_system: dict[int, Paths] = {}
        self.looked_up: list[set[int]] = []
        self.attribution = Attribution(
            self.runtimes,
            lambda owner: owner is not HOST and (every or owner.name == "web"),
            self.kernel,
            self._look_up,
        )

    def _look_up(self, cgroups: Collection[int]) -> Mapping[int, Paths]:
        self.looked_up.append(set(cgroups))
        return {each: self.file_system[each] for each in cgroups if each in self.file_system}

    def send(self, cgroup: int, *names: str, trusted: int = 16) -> None:
        self.attribution.update([(cgroup, (CgroupPath(names, trusted),))])

    def undecided(self, *cgroups: int, now: int = 1) -> set[int]:
        return self.attribution.undecided(cgroups, now)

    def owner(self, cgroup: int) -> Container:
        return self.attribution.owners[cgroup]


def test_named_container_is_final_at_once() -> None:
    bench = Bench(WEB, DB)
    bench.send(1, "docker", WEB.id)
    bench.send(2, "docker", DB.id)
    bench.send(3, "system.slice")
    assert bench.undecided(1, 2, 3) == set()
    assert [bench.owner(each) for each in (1, 2, 3)] == [WEB, DB, HOST]
    assert bench.attribution.wanted([1, 2, 3]) == {1: True, 2: False, 3: False}
    assert bench.kernel.verdicts == {2: False, 3: False}


def test_name_that_comes_in_time_decides() -> None:
    bench = Bench()
    bench.send(1, "docker", WEB.id)
    assert bench.undecided(1, now=10) == {1}
    bench.runtimes.tell("created", WEB)
    bench.attribution.update([])
    assert bench.undecided(1, now=11) == set()
    assert bench.owner(1) is WEB
    assert bench.kernel.verdicts == {}


def test_a_cgroup_is_waited_for_once() -> None:
    bench = Bench()
    bench.send(1, "docker", DB.id)
    assert bench.undecided(1, now=10) == {1}
    assert bench.undecided(1, now=9 + OWNER_TIMEOUT) == {1}
    assert bench.undecided(1, now=10 + OWNER_TIMEOUT) == set()
    assert bench.kernel.verdicts == {1: False}
    bench.runtimes.tell("created", WEB)  # of another container
    bench.attribution.update([])
    assert bench.undecided(1, now=11 + OWNER_TIMEOUT) == set()


def test_name_that_comes_late_corrects_owner_and_verdict() -> None:
    bench = Bench()
    bench.send(1, "docker", WEB.id)
    bench.undecided(1, now=10)
    bench.undecided(1, now=10 + OWNER_TIMEOUT)
    assert bench.kernel.verdicts == {1: False}
    bench.runtimes.tell("created", WEB)
    bench.attribution.update([])
    assert bench.owner(1) is WEB
    assert bench.kernel.verdicts == {1: True}
    bench.runtimes.tell("renamed", Container(WEB.id, "other", "docker"))
    bench.attribution.update([])
    assert bench.kernel.verdicts == {1: False}


def test_no_verdict_is_written_while_a_runtime_has_not_answered() -> None:
    bench = Bench()
    bench.runtimes.unlisted = frozenset({"docker"})
    bench.attribution.update([])
    bench.send(1, "docker", DB.id)
    bench.undecided(1, now=10)
    assert bench.undecided(1, now=10 + OWNER_TIMEOUT) == set()
    assert bench.kernel.verdicts == {}
    assert bench.attribution.unsure(1)
    bench.runtimes.unlisted = frozenset()
    bench.attribution.update([])
    assert bench.kernel.verdicts == {1: False}
    assert not bench.attribution.unsure(1)


def test_runtime_that_is_lost_makes_nobody_wait() -> None:
    bench = Bench()
    bench.send(1, "docker", DB.id)
    assert bench.undecided(1, now=10) == {1}
    bench.runtimes.answering = frozenset()
    bench.attribution.update([])
    assert bench.undecided(1, now=11) == set()
    bench.runtimes.answering = frozenset({"docker"})  # it is back
    bench.runtimes.tell("exists", DB)
    bench.attribution.update([])
    assert bench.owner(1) is DB


def test_cgroup_without_a_path_is_looked_up() -> None:
    bench = Bench(WEB)
    bench.file_system[1] = (CgroupPath(("docker", WEB.id), 16),)
    assert bench.undecided(1, now=OWNER_TIMEOUT) == set()
    assert bench.owner(1) is WEB


def test_cgroup_without_a_path_is_unknown_and_gets_no_verdict() -> None:
    bench = Bench(WEB)
    assert bench.undecided(7, now=OWNER_TIMEOUT) == {7}
    assert bench.undecided(7, now=2 * OWNER_TIMEOUT) == set()
    owner = bench.owner(7)
    assert (owner.runtime, owner.id) == (UNKNOWN_RUNTIME, "cgroup:7")
    assert bench.kernel.written == 0
    assert bench.attribution.wanted([7]) == {7: False}
    assert bench.attribution.unsure(7)
    bench.send(7, "docker", WEB.id)  # the kernel tries again with the next event
    assert bench.owner(7) is WEB


def test_path_that_is_cut_short_is_looked_up() -> None:
    bench = Bench(WEB)
    cut = CgroupPath(("docker-" + DB.id + ".scope",), 0, complete=False)
    bench.attribution.update([(1, (cut,))])
    bench.file_system[1] = (CgroupPath(("docker", WEB.id, "docker-" + DB.id + ".scope"), 16),)
    assert bench.undecided(1, now=OWNER_TIMEOUT) == set()
    assert bench.owner(1) is WEB


def test_lookups_are_rare_however_many_are_missing() -> None:
    bench = Bench()
    for number in range(100):
        bench.undecided(number + 1, now=OWNER_TIMEOUT + number)
    assert len(bench.looked_up) == 1
    bench.undecided(*range(1, 101), now=2 * OWNER_TIMEOUT + 1)
    assert len(bench.looked_up) == 2


def test_verdict_that_the_kernel_forgot_is_written_again() -> None:
    bench = Bench(DB)
    bench.send(1, "docker", DB.id)
    bench.kernel.verdicts.clear()
    bench.send(1, "docker", DB.id)
    assert bench.kernel.verdicts == {1: False}
    assert bench.kernel.written == 2


def test_what_is_forgotten_here_is_forgotten_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attribution, "MOST_CGROUPS", 100)
    bench = Bench(WEB)
    bench.send(1, "docker", WEB.id)
    for number in range(2, 1001):
        bench.send(number, "system.slice", f"job{number}.service")
        bench.undecided(1, now=number)  # web has events all the time
    assert bench.owner(1) is WEB
    assert len(bench.attribution.owners) <= 100 + 1
    assert bench.kernel.forgotten == list(range(2, 902))
    assert len(bench.kernel.verdicts) == 99
    bench.send(2, "docker", WEB.id)
    assert bench.owner(2) is WEB


def test_id_that_is_used_again_has_its_new_path() -> None:
    bench = Bench(WEB, DB)
    bench.send(1, "docker", WEB.id)
    bench.send(1, "docker", DB.id)
    assert bench.owner(1) is DB
    bench.runtimes.asked.clear()
    bench.runtimes.tell("renamed", Container(WEB.id, "other", "docker"))
    bench.attribution.update([])
    assert bench.runtimes.asked == []


def test_change_of_one_container_resolves_only_its_cgroups() -> None:
    bench = Bench(WEB)
    for number in range(2, 1002):
        bench.send(number, "system.slice", f"job{number}.service")
    bench.send(1, "docker", WEB.id)
    bench.send(1002, "docker", WEB.id, "init.scope")
    bench.runtimes.asked.clear()
    bench.runtimes.tell("started", WEB)
    bench.attribution.update([])
    assert sorted(bench.runtimes.asked) == [
        ("docker", WEB.id),
        ("docker", WEB.id, "init.scope"),
    ]


def test_container_by_another_id_than_hexadecimal_is_found_by_its_cgroups_name() -> None:
    bench = Bench()
    bench.send(1, "default", "shop")
    bench.runtimes.asked.clear()
    bench.runtimes.tell("created", Container("shop", "shop", "containerd", scope="default"))
    bench.attribution.update([])
    assert bench.runtimes.asked == [("default", "shop")]


def test_more_changes_than_are_remembered_resolve_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attribution, "_MOST_CHANGES", 10)
    bench = Bench()
    bench.send(1, "docker", WEB.id)
    bench.runtimes.tell("created", WEB)
    for number in range(20):
        bench.runtimes.tell("created", Container(f"{number:064x}", "c", "docker"))
    bench.attribution.update([])
    assert bench.owner(1) is WEB


def test_either_hierarchy_identifies_the_container() -> None:
    bench = Bench(WEB)
    shim, own = CgroupPath(("system.slice", "x"), 2), CgroupPath(("docker", WEB.id), 2)
    bench.attribution.update([(1 << 63 | 1, (shim, own)), (1 << 63 | 2, (own, shim))])
    assert bench.owner(1 << 63 | 1) is bench.owner(1 << 63 | 2) is WEB


def test_name_that_another_user_could_have_made_proves_nothing() -> None:
    bench = Bench(WEB)
    bench.send(1, "user.slice", "user@1000.service", f"docker-{WEB.id}.scope", trusted=2)
    assert bench.owner(1) is HOST


def test_of_a_socket_alone_the_host_is_not_certain_where_version_1_identifies_it_too() -> None:
    bench = Bench(WEB, every=True)
    bench.send(1 << 62 | 5, "system.slice", "containerd.service")
    bench.send(1 << 62 | 6, "docker", WEB.id)
    assert bench.owner(1 << 62 | 5).id == "cgroup:5"
    assert bench.owner(1 << 62 | 6) is WEB


def test_cgroups_that_a_container_without_its_own_is_in_are_not_dropped() -> None:
    bench = Bench()
    bench.send(1, "user.slice", "session.scope")
    assert bench.kernel.verdicts == {1: False}
    bench.runtimes.strays.by_mntns = {4711: WEB}
    bench.runtimes.strays.paths = frozenset({("user.slice", "session.scope")})
    bench.attribution.update([])
    assert bench.kernel.verdicts == {1: True}
    bench.runtimes.strays.by_mntns = {}
    bench.runtimes.strays.paths = frozenset()
    bench.attribution.update([])
    assert bench.kernel.verdicts == {1: False}


def test_events_without_any_cgroup_have_an_unknown_owner() -> None:
    bench = Bench(every=True)
    assert bench.undecided(0) == set()
    assert bench.owner(0).runtime == UNKNOWN_RUNTIME
    assert bench.attribution.wanted([0]) == {0: True}
