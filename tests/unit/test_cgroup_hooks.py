"""Programs of cgroups are attached only if they allow what they see, however they end."""

import struct

import pytest

from ig.bpf.cgroup_hooks import always_allows

EXIT = (0x95, 0, 0, 0)
ONE, ZERO = (0xB7, 0, 0, 1), (0xB7, 0, 0, 0)
TO_THE_EXIT = (0x55, 1, 1, 0)  # if r1 != 0, skip the next instruction


@pytest.mark.parametrize(
    ("code", "allows"),
    [
        ([ONE, EXIT], True),
        ([(0xB4, 0, 0, 1), EXIT], True),
        ([ZERO, EXIT], False),
        ([EXIT], False),
        ([ZERO, TO_THE_EXIT, ONE, EXIT], False),
        ([ZERO, (0x5D, 1, 0, 0), ONE, EXIT], True),  # a jump to the next instruction
        ([(0x18, 1, 0, 0), (0, 0, 0, 0), ONE, EXIT], True),
        ([ONE, EXIT, ZERO, EXIT], False),
        ([ONE, (0x85, 0, 0, 1), ONE, EXIT], True),
    ],
)
def test_programs_that_return_1_however_they_end_are_told_from_others(
    code: list[tuple[int, ...]], allows: bool
) -> None:
    assert always_allows(b"".join(struct.pack("=BBhi", *each) for each in code)) is allows
