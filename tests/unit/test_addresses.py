"""What the kernel tells of this network namespace's addresses and of the way to others."""

from __future__ import annotations

import os

import pytest

from ig.kernel import monitor
from ig.kernel.processes import has_address
from ig.kernel.routes import is_on_link

TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.4.0.0/24 2 0 2
        |-- 10.4.0.0
           /24 link UNICAST
        |-- 10.4.0.7
           /28 link UNICAST
           /32 host LOCAL
        |-- 10.4.0.70
           /32 link UNICAST
        |-- 10.4.0.255
           /32 link BROADCAST
     |-- 10.5.0.0
        /16 host LOCAL
"""


def test_address_is_a_namespaces_if_the_kernel_has_it_as_local(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert has_address(os.getpid(), "127.0.0.1")
    assert not has_address(os.getpid(), "198.51.100.7")
    assert not has_address(os.getpid(), "2001:db8::7")
    assert not has_address(2**22 + 1, "127.0.0.1")
    monkeypatch.setattr(monitor, "read", lambda *_: TRIE)
    given = ("10.4.0.7", "10.4.0.0", "10.4.0.70", "10.4.0.255", "10.5.0.0", "0.0.0.0", "10.4.0.1")
    assert [each for each in given if has_address(1, each)] == ["10.4.0.7"]
    line = "fd00000000000000000000000000000a 04 40 00 82     eth0\n"
    monkeypatch.setattr(monitor, "read", lambda *_: line)
    assert has_address(1, "fd00::a")
    assert not has_address(1, "fd00::b")


def test_own_address_is_not_anothers_on_a_network() -> None:
    assert not is_on_link("127.0.0.1")
    assert not is_on_link("::1")
