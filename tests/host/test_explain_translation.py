"""`ig explain` where this host translates the destination: the way goes on to where it leads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.host.namespace import Namespace
from tests.host.test_explain import Explaining, end, linked, nft

SERVICE = {"4": "203.0.113.7", "6": "2001:db8:3::7"}
BACKEND = {"4": "198.18.0.2", "6": "2001:db8:18::2"}
ROUTER = {"4": "192.0.2.2", "6": "2001:db8:2::2"}
OWN = {"4": "192.0.2.1", "6": "2001:db8:2::1"}
IP = {"4": "ip", "6": "ip6"}


def routed(new_namespace: Callable[[], Namespace]) -> tuple[Namespace, Namespace, Namespace]:
    """Return a client, a router that it reaches services by, and a backend behind that."""
    here, router = linked(new_namespace)
    there = new_namespace()
    router.link(there, "198.18.0")
    for namespace, last in ((router, 1), (there, 2)):
        (device,) = (
            link.split()[1].rstrip(":")
            for link in namespace.ip("-o", "-4", "addr", "show", "to", "198.18.0.0/24").splitlines()
        )
        namespace.ip("addr", "add", f"2001:db8:18::{last}/64", "dev", device, "nodad")
    for version in "46":
        here.ip(f"-{version}", "route", "add", "default", "via", ROUTER[version])
        gateway = BACKEND[version][:-1] + "1"
        there.ip(f"-{version}", "route", "add", "default", "via", gateway)
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    return here, router, there


def found(near: Namespace, target: str, *arguments: object) -> dict[str, Any]:
    told = Explaining(near, target, "--timeout", "1500ms", *arguments).finished()
    told["cause"] = told["cause"] or {"kind": "", "where": "", "detail": "", "confidence": ""}
    return told


def step(told: dict[str, Any], name: str) -> list[tuple[str, str]]:
    return [(each["result"], each["found"]) for each in told["steps"] if each["step"] == name]


@pytest.mark.parametrize("version", ["4", "6"])
@pytest.mark.parametrize("where", ["router", "own"])
def test_translation_by_iptables_is_followed_to_the_backend(
    new_namespace: Callable[[], Namespace], version: str, where: str
) -> None:
    here, router, there = routed(new_namespace)
    port = there.serve(BACKEND[version])
    translator, chain = (router, "PREROUTING") if where == "router" else (here, "OUTPUT")
    tables = "iptables" if version == "4" else "ip6tables"
    for service, to in ((80, port), (81, 9), (82, 10)):
        rule = ("-d", SERVICE[version], "-p", "tcp", "--dport", service, "-j", "DNAT")
        translator.run(
            *(tables, "-t", "nat", "-A", chain, *rule),
            *("--to-destination", end(BACKEND[version], to)),
        )
    there.run(tables, "-A", "INPUT", "-p", "tcp", "--dport", 10, "-j", "DROP")
    good = found(here, end(SERVICE[version], 80))
    assert (good["outcome"], good["cause"]["kind"]) == ("established", "")
    (followed,) = step(good, "translation")
    assert followed[0] == "ok"
    change = f"{end(SERVICE[version], 80)} is translated to {end(BACKEND[version], port)}"
    assert followed[1].startswith(f"{change}: ")
    assert f"network namespace {translator.inode}" in followed[1]
    assert step(good, "listener") == [("ok", end(BACKEND[version], port))]
    wrong = found(here, end(SERVICE[version], 81))
    assert (wrong["outcome"], wrong["cause"]["kind"]) == ("refused", "no-listener")
    assert f"network namespace {there.inode}" in wrong["cause"]["where"]
    assert f"no listener on port 9 (listens on {port})" in wrong["cause"]["detail"]
    dropped = found(here, end(SERVICE[version], 82))
    assert (dropped["outcome"], dropped["cause"]["kind"]) == ("unanswered", "firewall-drop-in")
    assert f"network namespace {there.inode}" in dropped["cause"]["where"]
    assert dropped["cause"]["confidence"] == "seen"
    assert not any(
        "translation" in line for told in (good, wrong, dropped) for line in told["unread"]
    )


@pytest.mark.parametrize("version", ["4", "6"])
def test_redirection_leads_to_the_namespace_itself(
    new_namespace: Callable[[], Namespace], version: str
) -> None:
    here, there = linked(new_namespace)
    for near, chain in ((here, "output"), (there, "prerouting")):
        nft(
            near,
            f"""table {IP[version]} t {{ chain c {{
            type nat hook {chain} priority -100
            tcp dport {{ 80, 81 }} redirect to tcp dport map {{ 80 : 8080, 81 : 9 }}
        }}
        }}""",
        )
    there.serve(ROUTER[version], 9)
    own = found(here, end(ROUTER[version], 81))
    assert own["cause"]["kind"] == "no-listener"
    assert "no listener on port 9 " in own["cause"]["detail"]
    nft(here, f"flush table {IP[version]} t")
    far = found(here, end(ROUTER[version], 80))
    assert far["cause"]["kind"] == "no-listener"
    assert f"network namespace {there.inode}" in far["cause"]["where"]
    assert "no listener on port 8080 (listens on 9)" in far["cause"]["detail"]
    assert found(here, end(ROUTER[version], 81))["outcome"] == "established"


def services(router: Namespace, version: str, *backends: str) -> None:
    """Translate port 80 of the service as kube-proxy does."""
    chosen = ", ".join(f"{place} : goto end-{place}" for place in range(len(backends)))
    chains = "".join(
        f"chain end-{place} {{ meta l4proto tcp dnat to {to}; }}\n"
        for place, to in enumerate(backends)
    )
    kind = "ipv4_addr" if version == "4" else "ipv6_addr"
    nft(
        router,
        f"""table {IP[version]} kube-proxy {{
        map service-ips {{
            type {kind} . inet_proto . inet_service : verdict
        }}
        {chains}
        chain service-1 {{ numgen random mod {len(backends)} vmap {{ {chosen} }}; }}
        chain services {{
            {IP[version]} daddr . meta l4proto . th dport vmap @service-ips
        }}
        chain nat-prerouting {{ type nat hook prerouting priority -100
            jump services
        }}
    }}""",
    )
    key = f"{SERVICE[version]} . tcp . 80 : goto service-1"
    nft(router, f"add element {IP[version]} kube-proxy service-ips {{ {key} }}")


@pytest.mark.parametrize("version", ["4", "6"])
def test_translation_by_chance_is_what_connection_tracking_says(
    new_namespace: Callable[[], Namespace], version: str
) -> None:
    here, router, there = routed(new_namespace)
    family = IP[version]
    nft(
        there,
        f"""table {family} f {{ chain c {{
        type filter hook input priority 0
        tcp dport {{ 9, 10 }} counter drop
    }}
    }}""",
    )
    services(router, version, end(BACKEND[version], 9), end(BACKEND[version], 10))
    told = found(here, end(SERVICE[version], 80))
    (followed,) = step(told, "translation")
    assert "by connection tracking" in followed[1]
    assert (told["cause"]["kind"], told["cause"]["confidence"]) == ("firewall-drop-in", "seen")
    assert f"network namespace {there.inode}" in told["cause"]["where"]
    nft(there, f"flush table {family} f")
    refused = found(here, end(SERVICE[version], 80))
    assert (refused["outcome"], refused["cause"]["kind"]) == ("refused", "")
    (line,) = (line for line in refused["unread"] if "translation" in line)
    both = f"to one of {end(BACKEND[version], 9)}, {end(BACKEND[version], 10)}"
    assert both in line


def test_translation_to_the_only_backend_needs_no_entry(
    new_namespace: Callable[[], Namespace],
) -> None:
    here, router, there = routed(new_namespace)
    services(router, "4", "198.18.0.2:9")
    refused = found(here, "203.0.113.7:80")
    assert (refused["outcome"], refused["cause"]["kind"]) == ("refused", "no-listener")
    assert f"network namespace {there.inode}" in refused["cause"]["where"]
    other = found(here, "203.0.113.7:81")
    assert step(other, "translation") == []
    assert not any("translation" in line for line in other["unread"])


def test_masked_source_is_not_taken_for_the_own(new_namespace: Callable[[], Namespace]) -> None:
    here, router, there = routed(new_namespace)
    router.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
    there.run("iptables", "-A", "INPUT", "-s", "198.18.0.1", "-j", "ACCEPT")
    there.run("iptables", "-A", "INPUT", "-s", "192.0.2.1", "-j", "DROP")
    told = found(here, "198.18.0.2:9")
    assert (told["outcome"], told["cause"]["kind"]) == ("refused", "no-listener")
