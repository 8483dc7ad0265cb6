"""Who is behind an address and a port."""

from __future__ import annotations

from ig.containers.container import Container
from ig.containers.endpoints import Endpoints

WEB = Container(
    "a" * 64,
    "web",
    "docker",
    addresses=("172.17.0.2", "fd00::2"),
    ports=(("0.0.0.0", 8080, 80), ("127.0.0.1", 9090, 90), ("::", 8080, 80)),
)
API = Container("b" * 64, "api", "cri-o", addresses=("10.1.0.7",), pod_name="api-0")


def endpoints(*containers: Container) -> Endpoints:
    return Endpoints(lambda: 1, lambda: containers)


def test_an_address_of_a_container_is_its() -> None:
    both = endpoints(WEB, API)
    assert both.find("172.17.0.2", 80, host_network=False) == WEB
    assert both.find("fd00::2", 5555, host_network=True) == WEB
    assert both.find("10.1.0.7", 443, host_network=False) == API
    assert both.find("172.17.0.3", 80, host_network=False) is None


def test_a_published_port_on_the_hosts_addresses_is_the_containers_behind() -> None:
    assert endpoints(WEB).find("127.0.0.1", 8080, host_network=True) == WEB
    assert endpoints(WEB).find("127.0.0.1", 9090, host_network=True) == WEB
    assert endpoints(WEB).find("::1", 8080, host_network=True) == WEB
    assert endpoints(WEB).find("127.0.0.1", 80, host_network=True) is None


def test_a_containers_own_loopback_is_not_the_hosts() -> None:
    assert endpoints(WEB).find("127.0.0.1", 8080, host_network=False) is None


def test_the_same_port_elsewhere_in_the_world_is_not_the_containers() -> None:
    assert endpoints(WEB).find("192.0.2.1", 8080, host_network=True) is None
    assert endpoints(WEB).find("2001:db8::1", 8080, host_network=False) is None


def test_what_the_runtimes_tell_later_counts() -> None:
    known: list[Container] = []
    version = 1
    found = Endpoints(lambda: version, lambda: known)
    assert found.find("172.17.0.2", 80, host_network=False) is None
    known.append(WEB)
    assert found.find("172.17.0.2", 80, host_network=False) is None
    version = 2
    assert found.find("172.17.0.2", 80, host_network=False) == WEB


def test_an_address_that_two_claim_is_nobodys_but_for_a_pods_containers() -> None:
    other = Container("c" * 64, "other", "podman", addresses=WEB.addresses, ports=WEB.ports)
    assert endpoints(WEB, other).find("172.17.0.2", 80, host_network=False) is None
    assert endpoints(WEB, other).find("127.0.0.1", 9090, host_network=True) is None
    pod = [
        Container(each * 64, each, "cri-o", addresses=("10.1.0.9",), pod_name="p", pod_uid="u")
        for each in "de"
    ]
    assert endpoints(*pod).find("10.1.0.9", 80, host_network=False) == pod[0]
