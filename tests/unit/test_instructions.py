"""Programs of cgroups are attached only if they allow what they see, however they end."""

import struct

import pytest

from ig.bpf.instructions import always_allows, may_change

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
def test_programs_that_return_1_however_they_end_are_distinguished_from_others(
    code: list[tuple[int, ...]], allows: bool
) -> None:
    assert always_allows(b"".join(struct.pack("=BBhi", *each) for each in code)) is allows


COPY = (0xBF, 0x16, 0, 0)  # r6 = r1
STORE_R6 = (0x62, 6, 8, 1)  # *(u32 *)(r6 + 8) = 1
SPILL, FILL = (0x7B, 0x1A, -8, 0), (0x79, 0xA6, -8, 0)  # *(u64 *)(r10 - 8) = r1, r6 = that
LOOKUP = (0x85, 0, 0, 1)
ELEMENT = (0xBF, 0x06, 0, 0)  # r6 = r0


@pytest.mark.parametrize(
    ("code", "may"),
    [
        ([(0x62, 1, 8, 1), ONE, EXIT], True),  # *(u32 *)(r1 + 8) = 1
        ([(0x63, 0x21, 8, 0), ONE, EXIT], True),  # *(u32 *)(r1 + 8) = r2
        ([COPY, STORE_R6, ONE, EXIT], True),
        ([COPY, (0x07, 6, 0, 8), STORE_R6, ONE, EXIT], True),  # r6 += 8
        ([SPILL, FILL, STORE_R6, ONE, EXIT], True),
        ([SPILL, (0x7A, 10, -16, 0), FILL, ONE, EXIT], False),
        ([COPY, LOOKUP, (0x7B, 0x60, 0, 0), ONE, EXIT], True),  # *(u64 *)r0 = r6
        ([COPY, LOOKUP, ELEMENT, STORE_R6, ONE, EXIT], False),
        ([COPY, LOOKUP, (0x15, 0, 1, 0), ELEMENT, STORE_R6, ONE, EXIT], True),  # if r0 is 0
        ([COPY, LOOKUP, (0x15, 0, 2, 0), ELEMENT, STORE_R6, ONE, EXIT], False),
        ([(0x05, 0, 1, 0), (0x62, 1, 8, 1), ONE, EXIT], False),  # never executed
        ([(0x18, 1, 0, 0), (0, 0, 0, 0), (0x62, 1, 8, 1), ONE, EXIT], False),
        ([(0x85, 0, 0, 187), ONE, EXIT], True),  # bpf_set_retval()
        ([(0x85, 0x10, 0, 1), ONE, EXIT], True),  # a function of the program
    ],
)
def test_programs_that_may_write_to_their_argument_are_distinguished_from_others(
    code: list[tuple[int, ...]], may: bool
) -> None:
    assert may_change(b"".join(struct.pack("=BBhi", *each) for each in code)) is may
