"""`ig explain` where rules exist that are not evaluated: it says so, and claims no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from ig.causes.places import Places
from ig.kernel import nftables, routes
from tests.host.namespace import Namespace
from tests.host.test_explain import Explaining, linked, nft

LEGACY = "iptables-legacy"


def test_tables_beside_the_hooks_of_ip_are_named(new_namespace: Callable[[], Namespace]) -> None:
    here, there = linked(new_namespace)
    (device,) = (
        link.split(":")[1].strip().partition("@")[0]
        for link in there.ip("-o", "link", "show", "type", "veth").splitlines()
    )
    nft(
        there,
        f"""
        table netdev early {{
            chain c {{
                type filter hook ingress device "{device}" priority 0
                tcp dport 80 drop
            }}
        }}
        table bridge empty {{
            chain c {{
                type filter hook input priority 0
            }}
        }}
        table bridge b {{
            chain c {{
                type filter hook input priority 0; policy drop;
            }}
        }}
        table inet i {{
            chain c {{
                type filter hook ingress device "{device}" priority 0
                tcp dport 81 drop
            }}
        }}
    """,
    )
    told = Explaining(here, "192.0.2.2:80", "--timeout", "1500ms").finished()
    assert (told["outcome"], told["cause"]) == ("unanswered", None)
    named = "tables are not evaluated (bridge b, inet (ingress) i, netdev early)"
    assert any(named in line for line in told["unread"])


@pytest.mark.skipif(not shutil.which(LEGACY), reason=f"{LEGACY} is not installed")
def test_translation_by_iptables_legacy_makes_what_follows_unknown(
    new_namespace: Callable[[], Namespace],
) -> None:
    here, there = linked(new_namespace)
    there.serve("192.0.2.2", 80)
    there.run(
        *(LEGACY, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", 80),
        *("-j", "REDIRECT", "--to-ports", 9),
    )
    told = Explaining(here, "192.0.2.2:80").finished()
    assert (told["outcome"], told["cause"]) == ("refused", None)
    assert any(
        "translation of the destination (by iptables-legacy" in line for line in told["unread"]
    )
    there.run(LEGACY, "-t", "nat", "-F")
    there.serve("192.0.2.2", 9)
    assert Explaining(here, "192.0.2.2:9").finished()["outcome"] == "established"


def test_rules_that_are_too_many_are_not_read(
    new_namespace: Callable[[], Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = new_namespace()
    nft(here, "table ip t { chain c { type filter hook output priority 0; tcp dport 80 drop; }; }")
    places = Places()
    assert not places.inside(here.inode, nftables.read).unread
    monkeypatch.setattr(nftables, "_MOST", 16)
    read = places.inside(here.inode, nftables.read)
    assert (read.chains, read.hides) == ({}, "nftables")
    assert "more than 16 bytes" in read.unread
    assert places.complete
    monkeypatch.setattr(routes, "_MOST", 16)
    assert places.interfaces(here.inode) == ()
    assert not places.complete
