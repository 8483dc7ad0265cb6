"""What is the same in the C text and in Python, and where nothing can be loaded."""

from __future__ import annotations

import platform
import re

import pytest

from ig import c_text
from ig.bpf import attach, session
from ig.errors import KernelRefused
from ig.trace import attribution


def test_sizes_of_maps_are_those_of_the_c_text() -> None:
    (cgroups,) = re.findall(r"^BPF_TABLE\(.+, cgroups, (\d+)\);", c_text.read("ig.h"), re.M)
    assert int(cgroups) == attribution.MOST_CGROUPS
    (sockets,) = re.findall(r"^BPF_HASH\(sockets, .+ \? (\d+) : \d+\);", c_text.read("tcp.h"), re.M)
    assert int(sockets) == session._MOST_SOCKETS


def test_numbers_of_accept_are_those_of_the_c_text() -> None:
    lines = c_text.read("ig.h").splitlines()
    found = [set(re.findall(r"NR_ACCEPT4? = (\d+)", line)) for line in lines]
    assert attach._ACCEPTS in found


def test_other_machines_are_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(KernelRefused) as refused:
        attach.load("", {}, ())
    assert refused.value.lines() == [
        "ig traces on x86-64 and arm64 only.",
        "This machine is riscv64.",
        "`ig snapshot socket` and `ig list-containers` work here, too.",
    ]
