"""What a line of mountinfo means."""

from __future__ import annotations

import pytest

from ig.kernel.mounts import Mount, parse_mount


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        (
            rb"42 27 0:38 / /mnt/a\040b\011\012\134 rw shared:2 master:1 - cgroup2 none rw,x",
            Mount("/mnt/a b\t\n\\", "cgroup2", ("rw", "rw", "x"), "/"),
        ),
        (
            b"43 27 0:4 net:[4026532008] /run/netns/x rw - nsfs nsfs rw",
            Mount("/run/netns/x", "nsfs", ("rw", "rw"), "net:[4026532008]"),
        ),
        (
            b"44 27 0:38 /../..\\040c /b\xc3\xa9\xff rw - cgroup  rw,memory",
            Mount("/bé\udcff", "cgroup", ("rw", "rw", "memory"), "/../.. c"),
        ),
    ],
)
def test_mount_is_read_with_its_paths_unescaped(line: bytes, mount: Mount) -> None:
    assert parse_mount(line) == mount
