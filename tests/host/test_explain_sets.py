"""`ig explain` and rules of nftables that look something up in sets, maps and verdict maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.host.namespace import Namespace
from tests.host.test_explain import Explaining, causes, end, linked, nft

FAR = {"4": "192.0.2.2", "6": "2001:db8:2::2"}
NEAR = {"4": "192.0.2.1", "6": "2001:db8:2::1"}
NET = {"4": "192.0.2.0/25", "6": "2001:db8:2::/96"}
OTHER = {"4": "192.0.2.128-192.0.2.140", "6": "2001:db8:9::1-2001:db8:9::9"}
KIND = {"4": "ipv4_addr", "6": "ipv6_addr"}
IP = {"4": "ip", "6": "ip6"}
TABLE = """
table inet t {{
    set nets {{ type {kind}; flags interval; elements = {{ {net}, {other} }}; }}
    set hosts {{ type {kind}; elements = {{ {near} }}; }}
    set places {{ type {kind} . inet_service; flags interval; elements = {{ {net} . 20-29 }}; }}
    map verdicts {{ type inet_service : verdict; elements = {{ 40 : goto bad, 41 : accept }}; }}
    chain bad {{
        drop
    }}
    chain c {{
        type filter hook input priority 0
        tcp dport {{ 11, 12 }} drop
        tcp dport 13-19 {ip} saddr @nets drop
        {ip} saddr . tcp dport @places drop
        tcp dport 30 {ip} saddr != @hosts drop
        tcp dport 31 {ip} saddr @hosts drop
        tcp dport vmap @verdicts
        tcp dport 80 iifname vmap {{ "lo" : accept, "igt*" : drop }}
        tcp dport 81 iifname vmap {{ "lo" : drop, "igt" : drop }}
        ct state vmap {{ established : accept, invalid : drop, related : accept }}
        tcp dport 41 drop
        tcp dport {{ 50-59, 70 }} reject with tcp reset
        tcp dport 1-65535 fib daddr type != local drop
    }}
}}
"""


@pytest.mark.parametrize("version", ["4", "6"])
def test_sets_and_maps_are_evaluated(new_namespace: Callable[[], Namespace], version: str) -> None:
    here, there = linked(new_namespace)
    words = {"kind": KIND, "net": NET, "other": OTHER, "near": NEAR, "ip": IP}
    nft(there, TABLE.format(**{name: values[version] for name, values in words.items()}))
    dropped, allowed, rejected = (
        (12, 15, 22, 31, 40, 80),
        (9, 10, 30, 41, 42, 60, 69, 81),
        (50, 59, 70),
    )
    expected = dict.fromkeys(dropped, ("unanswered", "firewall-drop-in", "likely"))
    expected |= dict.fromkeys(allowed, ("refused", "no-listener", "likely"))
    expected |= dict.fromkeys(rejected, ("refused", "firewall-reject", "likely"))
    targets = {str(port): end(FAR[version], port) for port in expected}
    found = causes(here, targets, "--timeout", "1500ms")
    assert found == {str(port): outcome for port, outcome in expected.items()}
    told = Explaining(here, end(FAR[version], 40), "--timeout", "1500ms").finished()
    assert "table inet t, chain bad, rule 1" in told["cause"]["detail"]


def test_set_that_is_too_large_is_unknown_and_named(
    new_namespace: Callable[[], Namespace],
) -> None:
    here, there = linked(new_namespace)
    many = ", ".join(f"10.{n >> 8 & 255}.{n & 255}.0/25" for n in range(1, 20_000))
    nft(
        there,
        f"""
        table ip t {{
            set many {{ type ipv4_addr; flags interval; elements = {{ {many} }}; }}
            chain c {{
                type filter hook input priority 0
                tcp dport 10 ip saddr @many drop
                tcp dport 11 ip saddr != @many drop
            }}
        }}
    """,
    )
    refused = Explaining(here, "192.0.2.2:10").finished()
    dropped = Explaining(here, "192.0.2.2:11", "--timeout", "1500ms").finished()
    untouched = Explaining(here, "192.0.2.2:12").finished()
    line = "set many of table ip t is too large to be read"
    for told in (refused, dropped):
        assert any(line in each for each in told["unread"])
        assert any(
            each["step"] == "firewall" and each["result"] == "unknown" for each in told["steps"]
        )
    assert refused["cause"]["kind"] == "no-listener"
    assert dropped["cause"] is None
    assert not any("many" in each for each in untouched["unread"])


def test_set_that_rules_fill_is_unknown(new_namespace: Callable[[], Namespace]) -> None:
    here, there = linked(new_namespace)
    nft(
        there,
        """
        table ip t {
            set met { type ipv4_addr; size 100; flags dynamic, timeout; timeout 1h; }
            chain c {
                type filter hook input priority 0
                tcp dport 10 ip saddr @met drop
                tcp dport 10 add @met { ip saddr } drop
            }
        }
    """,
    )
    first = Explaining(here, "192.0.2.2:10", "--timeout", "1500ms").finished()
    # When it is looked at, the rule has added the address that it did not have.
    assert (first["outcome"], first["cause"]) == ("unanswered", None)
    assert any("set met of table ip t is changed by rules" in each for each in first["unread"])
