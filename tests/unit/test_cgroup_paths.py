"""Paths of cgroups, decoded from the kernel's text."""

from hypothesis import given
from hypothesis import strategies as st

from ig.kernel.cgroupfs import CgroupPath, decode, socket_only, unified_id


def text(*levels: str) -> bytes:
    return b"".join(level.encode() + b"\0" for level in levels)


def test_path_is_given_from_the_root_down() -> None:
    assert decode(text("rweb", "rdocker", "r")) == (CgroupPath(("docker", "web"), 2),)
    assert decode(text("rweb", "rdocker", "r/")) == (CgroupPath(("docker", "web"), 2),)
    assert decode(text("r")) == (CgroupPath((), 0),)


def test_path_below_another_users_cgroup_is_not_trusted() -> None:
    path = text("ufake", "uuser@1000.service", "ruser.slice", "r")
    assert decode(path) == (CgroupPath(("user.slice", "user@1000.service", "fake"), 2),)
    assert decode(text("rfake", "u")) == (CgroupPath(("fake",), 0),)


def test_path_in_both_hierarchies() -> None:
    unified, legacy = decode(text("rshim", "r", "+", "rweb+", "rdocker", "r"))
    assert unified.names == ("shim",)
    assert legacy.names == ("docker", "web+")


def test_path_that_is_cut_short_is_incomplete_and_not_trusted() -> None:
    assert decode(text("ra", "rb", "!")) == (CgroupPath(("b", "a"), 0, complete=False),)
    unified, legacy = decode(text("r", "+", "ra", "!"))
    assert (unified.complete, legacy.complete) == (True, False)


def test_ids_of_two_hierarchies() -> None:
    assert unified_id(4711) == 4711
    assert unified_id(1 << 63 | 5 << 32 | 4711) == 4711
    assert unified_id(1 << 62 | 4711) == 4711
    assert socket_only(1 << 62 | 4711)
    assert not socket_only(1 << 63 | 1 << 62 | 4711)
    assert not socket_only(4711)


@given(st.binary(max_size=300))
def test_cgroup_path_of_any_text_is_no_error(data: bytes) -> None:
    for path in decode(data):
        assert 0 <= path.trusted <= len(path.names)
        assert all(name.isprintable() or name for name in path.names)
