"""Who was behind an address and a port: seen from where, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ig.container import Change, Container
from ig.containers.addresses import Endpoints
from ig.containers.holdings import ATTEMPTS, FORMER, OBSERVED, Holdings

HOST, INNER, STRANGE = 1, 2, 3
SECOND = 1_000_000_000
A, B, C = ("a" * 64, "b" * 64, "c" * 64)

WEB = Container(
    A,
    "web",
    "docker",
    running=True,
    pid=7,
    addresses=("172.17.0.2", "fd00::2"),
    networks=("bridge", "bridge"),
    ports=(("0.0.0.0", 8080, 80), ("127.0.0.1", 9090, 90), ("::", 8080, 80)),
    netns=10,
)
CLIENT = Container(
    B, "client", "docker", running=True, pid=8, addresses=("172.17.0.3",), networks=("bridge",),
    netns=20,
)  # fmt: skip
API = Container("d" * 64, "api", "cri-o", running=True, addresses=("10.1.0.7",), pod_name="api-0")


class Clock:
    """Return the time that a test sets."""

    now = 1000 * SECOND

    def __call__(self) -> int:
        return self.now


CLOCK = Clock()


def endpoints(*containers: Container) -> Endpoints:
    CLOCK.now = 1000 * SECOND
    found = Endpoints(Holdings(HOST, CLOCK), lambda address: address.startswith("10.4."))
    for container in containers:
        found.holdings.on_change(Change("exists", container))
    return found


def test_address_of_a_container_is_its() -> None:
    both = endpoints(WEB, API)
    assert both.find("172.17.0.2", 80, HOST) == WEB
    assert both.find("fd00::2", 5555, HOST) == WEB
    assert both.find("10.1.0.7", 443, HOST) == API
    assert both.find("172.17.0.3", 80, HOST) is None


def test_address_means_nothing_in_a_namespace_of_no_container() -> None:
    assert endpoints(WEB, CLIENT).find("172.17.0.2", 80, STRANGE) is None


def test_address_is_a_containers_for_others_on_its_network_alone() -> None:
    other = replace(CLIENT, id=C, netns=30, networks=("other",), addresses=("172.18.0.2",))
    podman = replace(CLIENT, id="d" * 64, netns=40, runtime="podman")
    both = replace(CLIENT, id="e" * 64, netns=50, networks=("other", "bridge"))
    found = endpoints(WEB, CLIENT, other, podman, replace(both, addresses=("172.18.0.3", "")))
    assert found.find("172.17.0.2", 80, CLIENT.netns) == WEB
    assert found.find("172.17.0.2", 80, WEB.netns) == WEB
    assert found.find("172.17.0.2", 80, other.netns) is None
    assert found.find("172.17.0.2", 80, podman.netns) is None
    assert found.find("172.17.0.2", 80, both.netns) == WEB


def test_address_of_two_networks_is_who_has_it_on_the_clients() -> None:
    twin = replace(WEB, id=C, netns=30, networks=("other", "other"), ports=())
    other = replace(CLIENT, id="d" * 64, netns=40, networks=("other",))
    found = endpoints(WEB, twin, CLIENT, other)
    assert found.find("172.17.0.2", 80, CLIENT.netns) == WEB
    assert found.find("172.17.0.2", 80, other.netns) == twin
    assert found.find("172.17.0.2", 80, HOST) is None


def test_engine_elsewhere_has_its_addresses_and_ports_there_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ig.kernel.routes.is_local", bool)
    web = replace(WEB, source="docker /inner.sock", base=INNER)
    client = replace(CLIENT, source=web.source, base=INNER)
    found = endpoints(web, client)
    for namespace, whose in ((HOST, None), (STRANGE, None), (INNER, web), (client.netns, web)):
        assert found.find("172.17.0.2", 80, namespace) == whose
    for namespace, whose in ((HOST, None), (STRANGE, None), (INNER, web), (client.netns, None)):
        assert found.find("127.0.0.1", 8080, namespace) == whose
        assert (found.depends_on_port("127.0.0.1", namespace) is None) >= bool(whose)
    assert found.find("192.0.2.7", 8080, client.netns) is None


def test_engine_elsewhere_does_not_dispute_an_address_of_the_hosts_engine() -> None:
    theirs = replace(WEB, id=C, name="theirs", source="docker /inner.sock", base=INNER, netns=30)
    outer = replace(CLIENT, id="d" * 64, netns=INNER, addresses=("172.17.0.4",))
    found = endpoints(WEB, theirs, CLIENT, outer)
    assert found.find("172.17.0.2", 80, HOST) == WEB
    assert found.find("172.17.0.2", 80, CLIENT.netns) == WEB
    assert found.find("127.0.0.1", 8080, HOST) == WEB
    assert found.find("127.0.0.1", 8080, INNER) == theirs
    assert found.find("172.17.0.2", 80, INNER) is None  # its own, or its neighbour's outside
    assert found.find("172.17.0.2", 80, theirs.netns) == theirs


def test_container_within_a_container_is_where_it_was_seen() -> None:
    inner = replace(WEB, base=INNER, source="docker /inner.sock")
    client = replace(CLIENT, base=INNER, source=inner.source, netns=0)
    found = endpoints(inner, client)
    outside = Container(C, "outside", "docker", nested=client.id)
    assert found.find("172.17.0.2", 80, 77) is None
    assert found.holdings.assume(outside, 77)
    assert found.find("172.17.0.2", 80, 77) == inner
    assert not found.holdings.assume(replace(outside, nested="e" * 64), 78)


BOX = Container(A, "box", "containerd", running=True, pid=7, started=10 * SECOND, netns=10)
JOB = replace(BOX, id=B, name="job", pid=8, netns=20)


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[str]]:
    """Set what addresses the kernel says that processes have; the host is on 10.4.0.0/16."""
    found: dict[int, set[str]] = {7: {"10.4.0.7", "10.8.0.7"}, 8: {"10.4.0.8"}}
    has = "ig.kernel.processes.has_address"
    monkeypatch.setattr(has, lambda pid, address: address in found.get(pid, ()))
    return found


@pytest.mark.usefixtures("addresses")
def test_address_that_is_not_reported_is_observed_where_it_leads() -> None:
    docker = replace(CLIENT, id="d" * 64, netns=40)
    found = endpoints(BOX, JOB, docker)
    assert found.holdings.unreported() == {10, 20}
    for address in ("10.4.0.7", "10.8.0.7", "10.4.0.9", "127.0.0.1", "0.0.0.0", "fe80::7"):
        found.holdings.observe(BOX, BOX.netns, address)
    assert found.find("10.4.0.7", 80, HOST) == BOX
    assert found.find("10.4.0.7", 80, BOX.netns) == BOX
    assert found.find("10.4.0.7", 80, JOB.netns) is None  # nor is it seen on such a network
    found.holdings.observe(JOB, JOB.netns, "10.4.0.8")
    assert found.find("10.4.0.7", 80, JOB.netns) == BOX
    for elsewhere in (docker.netns, STRANGE):
        assert found.find("10.4.0.7", 80, elsewhere) is None
    # A network that the host is not attached to, such as one of its own, or a VPN.
    assert found.find("10.8.0.7", 80, HOST) is None
    assert found.find("10.8.0.7", 80, JOB.netns) is None
    assert found.find("10.8.0.7", 80, BOX.netns) == BOX
    for other in ("10.4.0.9", "127.0.0.1", "fe80::7"):
        assert found.find(other, 80, BOX.netns) is None


@pytest.mark.usefixtures("addresses")
def test_address_is_observed_only_in_a_containers_own_namespace() -> None:
    shared = replace(BOX, netns=HOST)
    of_a_user = replace(BOX, id=C, netns=0)
    reported = replace(WEB, id="d" * 64, netns=50)
    pod = replace(BOX, id="e" * 64, netns=60, pod_uid="u")
    found = endpoints(shared, of_a_user, JOB, reported, pod)
    assert found.holdings.unreported() == {JOB.netns}
    found.holdings.assume(of_a_user, 30)
    for owner, namespace in (
        (shared, HOST), (of_a_user, 30), (reported, 50), (pod, 60), (JOB, STRANGE), (JOB, HOST),
    ):  # fmt: skip
        found.holdings.observe(owner, namespace, "10.4.0.7")
    assert found.find("10.4.0.7", 80, HOST) is None


def test_address_that_is_observed_of_two_is_nobodys(addresses: dict[int, set[str]]) -> None:
    found = endpoints(BOX, JOB)
    addresses[8].add("10.4.0.7")
    found.holdings.observe(BOX, BOX.netns, "10.4.0.7")
    found.holdings.observe(JOB, JOB.netns, "10.4.0.7")
    assert found.find("10.4.0.7", 80, HOST) is None
    found.holdings.on_change(Change("exited", replace(JOB, running=False)))
    assert found.find("10.4.0.7", 80, HOST) == BOX


def test_observed_address_is_whose_it_was_at_the_time(addresses: dict[int, set[str]]) -> None:
    found = endpoints(BOX)
    found.holdings.observe(BOX, BOX.netns, "10.4.0.7")
    assert found.find("10.4.0.7", 80, HOST, 9 * SECOND) is None
    assert found.find("10.4.0.7", 80, HOST, 11 * SECOND) == BOX
    found.holdings.on_change(Change("updated", replace(BOX, image="image")))
    found.holdings.on_change(Change("exited", replace(BOX, running=False)))
    assert found.find("10.4.0.7", 80, HOST) is None
    assert found.find("10.4.0.7", 80, HOST, 999 * SECOND) is not None
    CLOCK.now = 1010 * SECOND
    addresses[8].add("10.4.0.7")
    early = replace(JOB, started=20 * SECOND)  # another had it until 1,000 s
    found.holdings.on_change(Change("exists", early))
    found.holdings.observe(early, early.netns, "10.4.0.7")
    assert found.find("10.4.0.7", 80, HOST) == early
    assert found.find("10.4.0.7", 80, HOST, 30 * SECOND) == replace(BOX, image="image")
    found.holdings.on_change(Change("updated", replace(early, addresses=("10.4.0.8",))))
    assert found.find("10.4.0.7", 80, HOST) is None
    assert found.find("10.4.0.8", 80, HOST) is not None


@pytest.mark.usefixtures("addresses")
def test_observed_address_of_several_is_whoever_listens() -> None:
    beside = replace(BOX, id=C, name="beside", pid=9)
    found = endpoints(BOX, beside)
    found.holdings.observe(BOX, BOX.netns, "10.4.0.7")
    assert found.find("10.4.0.7", 80, HOST) is None
    found.listens(beside, BOX.netns, 80)
    assert found.find("10.4.0.7", 80, HOST) == beside


def test_memory_stays_bounded_over_many_observed_addresses(addresses: dict[int, set[str]]) -> None:
    found = endpoints(BOX)
    for number in range(1000):
        addresses[7].add(address := f"10.4.{number >> 8}.{number & 255}")
        found.holdings.observe(BOX, BOX.netns, address)
    assert len(found.holdings._observed) == ATTEMPTS
    for number in range(OBSERVED):
        each = replace(BOX, id=f"{number:064x}", pid=100 + number, netns=100 + number)
        found.holdings.on_change(Change("exists", each))
        addresses[each.pid] = {f"10.4.{number >> 8}.{number & 255}"}
        found.holdings.observe(each, each.netns, *addresses[each.pid])
    assert len(found.holdings._observed) == OBSERVED
    whose = found.find("10.4.0.5", 80, HOST)
    assert whose is not None
    assert whose.pid == 105


def test_container_that_acts_before_its_runtime_answers_is_where_it_was_seen() -> None:
    fresh = replace(CLIENT, netns=0, addresses=(), networks=())
    found = endpoints(WEB, fresh)
    assert found.find("172.17.0.2", 80, INNER) is None
    assert found.holdings.assume(fresh, INNER)
    assert found.find("172.17.0.2", 80, INNER) == WEB
    assert not found.holdings.assume(fresh, STRANGE)
    assert not found.holdings.assume(WEB, STRANGE)
    assert not found.holdings.assume(API, STRANGE)
    found.holdings.on_change(Change("updated", CLIENT))
    assert found.find("172.17.0.2", 80, INNER) is None
    assert found.find("172.17.0.2", 80, CLIENT.netns) == WEB


def test_published_port_on_the_hosts_addresses_is_the_containers_behind() -> None:
    assert endpoints(WEB).find("127.0.0.1", 8080, HOST) == WEB
    assert endpoints(WEB).find("127.0.0.1", 9090, HOST) == WEB
    assert endpoints(WEB).find("::1", 8080, HOST) == WEB
    assert endpoints(WEB).find("127.0.0.1", 80, HOST) is None


def test_published_port_is_reached_from_containers_but_not_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ig.kernel.routes.is_local", lambda address: address == "192.0.2.7")
    found = endpoints(WEB, CLIENT)
    assert found.find("192.0.2.7", 8080, CLIENT.netns) == WEB
    assert found.find("192.0.2.7", 8080, STRANGE) is None
    assert found.find("192.0.2.8", 8080, CLIENT.netns) is None


def test_containers_own_loopback_is_not_the_hosts() -> None:
    assert endpoints(WEB, CLIENT).find("127.0.0.1", 8080, CLIENT.netns) is None


def test_same_port_elsewhere_in_the_world_is_not_the_containers() -> None:
    assert endpoints(WEB).find("192.0.2.1", 8080, HOST) is None
    assert endpoints(WEB).find("2001:db8::1", 8080, STRANGE) is None


def test_address_is_whose_it_was_at_the_time() -> None:
    old = replace(WEB, started=10 * SECOND)
    found = endpoints(old)
    CLOCK.now = 20 * SECOND
    found.holdings.on_change(Change("exited", replace(old, running=False, addresses=(), ports=())))
    new = replace(WEB, id=C, name="new", started=30 * SECOND)
    CLOCK.now = 31 * SECOND
    found.holdings.on_change(
        Change("started", replace(new, addresses=(), ports=(), networks=(), netns=0, pid=0))
    )
    found.holdings.on_change(Change("updated", new))
    names = {}
    for second in (5, 15, 25, 35):
        whose = found.find("172.17.0.2", 80, HOST, second * SECOND)
        names[second] = whose and whose.name
    assert names == {5: None, 15: "web", 25: None, 35: "new"}
    assert found.holdings.since == 30 * SECOND
    published = found.find("127.0.0.1", 8080, HOST, 15 * SECOND)
    assert published is not None
    assert published.name == "web"


def test_address_that_moves_to_another_container_is_whose_it_is_then() -> None:
    found = endpoints(WEB, CLIENT)
    CLOCK.now = 2000 * SECOND
    left = replace(WEB, addresses=("fd00::2",), networks=("bridge",), addressed=1990 * SECOND)
    found.holdings.on_change(Change("updated", left))
    got = replace(
        CLIENT,
        addresses=("172.17.0.3", "172.17.0.2"),
        networks=("bridge", "bridge"),
        addressed=1995 * SECOND,
    )
    found.holdings.on_change(Change("updated", got))
    assert found.find("172.17.0.2", 80, HOST) == got
    assert found.find("172.17.0.2", 80, HOST, 1985 * SECOND) == WEB
    assert found.find("172.17.0.2", 80, HOST, 1992 * SECOND) is None
    assert found.find("172.17.0.3", 80, HOST, 1985 * SECOND) == got


def test_container_that_just_began_is_trusted_to_have_begun_before_it_was_reported() -> None:
    found = endpoints(replace(WEB, started=10 * SECOND))
    assert found.find("172.17.0.2", 80, HOST, 10 * SECOND - 1000) is not None
    assert found.find("172.17.0.2", 80, HOST, 9 * SECOND) is None


def test_container_that_was_renamed_has_its_new_name() -> None:
    found = endpoints(WEB)
    version = found.holdings.version
    shop = replace(WEB, name="shop")
    found.holdings.on_change(Change("renamed", shop))
    assert found.find("172.17.0.2", 80, HOST) == shop
    assert found.holdings.version > version


def test_what_does_not_concern_addresses_changes_no_answer() -> None:
    found = endpoints(WEB)
    version = found.holdings.version
    found.holdings.on_change(Change("created", Container(C, "made", "docker")))
    found.holdings.on_change(Change("updated", replace(WEB, started=5)))
    found.holdings.on_change(Change("synced"))
    assert found.holdings.version == version


def test_clock_that_is_ahead_makes_no_address_unknown() -> None:
    found = endpoints(replace(WEB, started=9999 * SECOND))
    assert found.find("172.17.0.2", 80, HOST, 1001 * SECOND) is not None


def test_loopback_or_unspecified_address_is_no_containers() -> None:
    found = endpoints(replace(WEB, addresses=("127.0.0.1", "0.0.0.0", "::1"), ports=()))
    assert not found.any()


def test_of_several_in_a_namespace_the_one_that_listens_is_meant() -> None:
    vpn = replace(WEB, name="vpn", ports=(("0.0.0.0", 8080, 80),), exposed=(8000,))
    joined = Container(C, "joined", "docker", running=True, pid=9, joined=vpn.id, netns=10)
    found = endpoints(vpn, joined, CLIENT)
    assert found.shared() == {10}
    assert found.find("172.17.0.2", 80, HOST) is None
    assert found.find("127.0.0.1", 8080, HOST) is None
    assert found.find("172.17.0.2", 8000, HOST) == vpn
    found.listens(joined, 10, 80)
    assert found.find("172.17.0.2", 80, CLIENT.netns) == joined
    assert found.find("127.0.0.1", 8080, HOST) == joined
    assert found.depends_on_port("172.17.0.2", HOST)
    found.holdings.on_change(Change("removed", replace(joined, running=False)))
    assert found.find("172.17.0.2", 80, HOST) == vpn


@pytest.mark.parametrize("netns", [0, 10])
def test_address_that_is_reported_of_each_in_a_namespace_is_the_one_that_listens(
    netns: int,
) -> None:
    first = replace(WEB, netns=netns, exposed=(80,))
    joined = replace(first, id=C, name="joined", joined=first.id, exposed=(81,))
    found = endpoints(first, joined, CLIENT)
    assert found.find("172.17.0.2", 80, CLIENT.netns) == first
    assert found.find("172.17.0.2", 81, CLIENT.netns) == joined
    assert found.find("172.17.0.2", 82, CLIENT.netns) is None
    assert found.find("127.0.0.1", 8080, HOST) == first


def test_namespace_is_shared_also_before_it_is_known() -> None:
    vpn = replace(WEB, netns=0)
    joined = Container(C, "joined", "docker", running=True, joined=vpn.id)
    found = endpoints(vpn, joined)
    assert found.find("172.17.0.2", 80, HOST) is None
    assert endpoints(vpn, joined, CLIENT).find("172.17.0.3", 80, HOST) == CLIENT


def test_address_that_two_claim_is_nobodys_but_for_a_pods_containers() -> None:
    other = Container(C, "other", "podman", running=True, addresses=WEB.addresses, ports=WEB.ports)
    assert endpoints(WEB, other).find("172.17.0.2", 80, HOST) is None
    assert endpoints(WEB, other).find("127.0.0.1", 9090, HOST) is None
    pod = [
        Container(
            each * 64, each, "cri-o", running=True, addresses=("10.1.0.9",), pod_name="p",
            pod_uid="u", netns=60,
        )
        for each in "de"
    ]  # fmt: skip
    assert endpoints(*pod).find("10.1.0.9", 80, HOST) == pod[0]


def test_container_of_two_runtimes_is_one() -> None:
    containerds = Container(A, A[:12], "containerd", running=True, scope="moby", pid=7)
    found = endpoints(containerds, WEB)
    found.holdings.on_change(Change("removed", replace(WEB, running=False)))
    assert found.find("172.17.0.2", 80, HOST) is None
    assert len(found.holdings.held) == 1


def test_memory_stays_bounded_over_many_containers() -> None:
    found = endpoints(WEB)
    for number in range(3 * FORMER):
        passing = replace(CLIENT, id=f"{number:064x}", started=number * SECOND)
        found.holdings.on_change(Change("exists", passing))
        found.holdings.on_change(Change("removed", replace(passing, running=False)))
    kept = (found.holdings.addresses, found.holdings.namespaces)
    assert all(sum(map(len, each._holdings.values())) <= FORMER + 2 for each in kept)
    assert len(found.holdings.held) <= FORMER + 1
    assert found.find("172.17.0.2", 80, HOST) == WEB
