"""Functions that read the current task are refused where it need not be the owner."""

import struct
from pathlib import Path

import pytest

from ig import c_text
from ig.bpf.contract import check_owner, event_of
from ig.bpf.instructions import does_nothing
from ig.errors import IgError

OWN = """
#include "ig.h"
#include "socket_owner.h"
OWNER_IS_CURRENT(own_event)
"""


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Return the text of a program of another package."""
    (tmp_path / "own.c").write_text(OWN)
    return c_text.read(str(tmp_path / "own.c"))


def calls(helper: int) -> bytes:
    return struct.pack("=BBhi", 0x85, 0, 0, helper)


@pytest.mark.parametrize("helper", [14, 37, 120, 123, 158])
@pytest.mark.parametrize(
    "function",
    [
        "fexit__tcp_v4_do_rcv",
        "raw_tp__tcp_retransmit_skb",
        "raw_tp__inet_sock_set_state__own",
        "cgroup_skb__ingress",
        "cgroup__sock_release",
    ],
)
def test_helpers_of_the_current_task_are_refused_outside_of_system_calls(
    text: str, function: str, helper: int
) -> None:
    event = event_of(function)
    with pytest.raises(IgError) as refused:
        check_owner(text, function, event, calls(helper))
    said = str(refused.value)
    assert (f"declare OWNER_IS_CURRENT({event})" in said) is ("/" not in event)
    check_owner(text, function, event, calls(1))


@pytest.mark.parametrize(
    "function",
    [
        "fexit__sys_accept",
        "tp__raw_syscalls__sys_exit",
        "raw_tp__own_event",
        "raw_tp__inet_sock_set_state",
        "tp__sock__inet_sock_set_state",
        "cgroup__sock_create",
    ],
)
def test_helpers_of_the_current_task_are_allowed_where_it_is_the_owner(
    text: str, function: str
) -> None:
    check_owner(text, function, event_of(function), calls(14))


def test_functions_that_only_return_0_do_nothing_in_either_encoding() -> None:
    end = struct.pack("=BBhi", 0x95, 0, 0, 0)
    for code, value, nothing in ((0xB7, 0, True), (0xB4, 0, True), (0xB7, 1, False)):
        assert does_nothing(struct.pack("=BBhi", code, 0, 0, value) + end) is nothing
