"""Ring buffers as the kernel lays them out: two pages, and the data twice in a row."""

import mmap
import os
import struct

from ig.bpf.ringbuf import RecordRing, Ring
from ig.c_text import parse

BUSY, DISCARDED = 1 << 31, 1 << 30
LAYOUT = parse("struct event {\n\tu64 timestamp, number;\n};")


class Memory:
    """What the kernel would write into; `used` is how far."""

    def __init__(self, capacity: int = mmap.PAGESIZE) -> None:
        self.capacity = capacity
        self.descriptor = os.memfd_create("ring")
        os.ftruncate(self.descriptor, 2 * mmap.PAGESIZE + 2 * capacity)
        self._all = mmap.mmap(self.descriptor, 2 * mmap.PAGESIZE + 2 * capacity)
        self.used = 0

    def put(self, data: bytes, flags: int = 0) -> None:
        record = struct.pack("=II", len(data) | flags, 0) + data
        record += b"\0" * (-len(record) % 8)
        for place, value in enumerate(record):
            at = 2 * mmap.PAGESIZE + (self.used + place) % self.capacity
            self._all[at] = self._all[at + self.capacity] = value
        self.used += len(record)
        struct.pack_into("=Q", self._all, mmap.PAGESIZE, self.used)

    def submit(self, at: int, length: int) -> None:
        for copy in (0, self.capacity):
            place = 2 * mmap.PAGESIZE + at % self.capacity + copy
            struct.pack_into("=I", self._all, place, length)

    @property
    def consumed(self) -> int:
        (value,) = struct.unpack_from("=Q", self._all)
        return int(value)


def test_records_are_read_once_and_their_space_is_freed() -> None:
    memory = Memory()
    ring = RecordRing(memory.descriptor, LAYOUT, memory.capacity)
    assert list(ring.records()) == []
    for number in range(3):
        memory.put(struct.pack("=QQ", 100 + number, number))
    assert list(ring.records()) == [(100, 0), (101, 1), (102, 2)]
    assert list(ring.records()) == []
    assert memory.consumed == memory.used


def test_records_go_round_the_rings_end() -> None:
    memory = Memory()
    ring = RecordRing(memory.descriptor, LAYOUT, memory.capacity)
    for number in range(1_009):
        memory.put(struct.pack("=QQ", number, number))
        assert list(ring.records()) == [(number, number)]


def test_records_end_at_one_that_is_not_submitted() -> None:
    memory = Memory()
    ring = RecordRing(memory.descriptor, LAYOUT, memory.capacity)
    memory.put(struct.pack("=QQ", 1, 1))
    busy = memory.used
    memory.put(struct.pack("=QQ", 2, 2), BUSY)
    memory.put(struct.pack("=QQ", 3, 3))
    assert list(ring.records()) == [(1, 1)]
    memory.submit(busy, 16)
    assert list(ring.records()) == [(2, 2), (3, 3)]


def test_records_are_given_4096_at_a_time() -> None:
    memory = Memory(1 << 20)
    ring = RecordRing(memory.descriptor, LAYOUT, memory.capacity)
    for number in range(5_003):
        memory.put(struct.pack("=QQ", number, number))
    assert len(list(ring.records())) == 4096
    assert len(list(ring.records())) == 5_003 - 4096


def test_pieces_have_any_length_and_discarded_ones_are_left_out() -> None:
    memory = Memory()
    ring = Ring(memory.descriptor, memory.capacity)
    for number in range(1_009):
        data = bytes([number % 256]) * (number % 301)
        memory.put(b"x" * 5, DISCARDED)
        memory.put(data)
        assert list(ring.pieces()) == [data]
    at = memory.used
    memory.put(b"late", BUSY)
    assert list(ring.pieces()) == []
    memory.submit(at, 4)
    assert list(ring.pieces()) == [b"late"]
