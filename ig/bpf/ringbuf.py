"""Read a BPF ring buffer in batches, straight from its memory.

Source: kernel/bpf/ringbuf.c and Documentation/bpf/ringbuf.rst.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Any

from ig.c_text import Layout

_HEADER = 8  # length and flags, page offset
_BUSY = 1 << 31  # reserved, not yet submitted
_DISCARDED = 1 << 30
_MOST = 4096  # records a batch: what bounds the reader's memory


class Ring:
    """The reading end of a ring whose records have any length. Closing unmaps it.

    `capacity` is the ring's size in bytes, a power of two.
    """

    def __init__(self, descriptor: int, capacity: int) -> None:
        self._mask = capacity - 1
        page = mmap.PAGESIZE
        self._consumer_page = mmap.mmap(descriptor, page)
        # The kernel maps the data twice in a row, so a batch never wraps.
        self._pages = mmap.mmap(descriptor, page + 2 * capacity, prot=mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._consumer_page).cast("Q")
        self._producer = memoryview(self._pages)[:8].cast("Q")
        self._data = memoryview(self._pages)[page:]
        self._words = self._data.cast("I")

    def pieces(self) -> Iterator[bytes]:
        """Yield what was submitted since the last call, a record at a time; free its space."""
        while (consumer := self._consumer[0]) < self._producer[0]:
            start = consumer & self._mask
            header = self._words[start // 4]
            if header & _BUSY:
                return
            length = header & ~_DISCARDED
            piece = bytes(self._data[start + _HEADER : start + _HEADER + length])
            self._consumer[0] = consumer + (_HEADER + length + 7) // 8 * 8
            if not header & _DISCARDED:
                yield piece

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be read."""
        return self._consumer[0] >= self._producer[0]

    def close(self) -> None:
        """Unmap the ring."""
        for view in (self._consumer, self._producer, self._words, self._data):
            view.release()
        self._consumer_page.close()
        self._pages.close()


class RecordRing(Ring):
    """The reading end of a ring whose records all have one layout: a batch is unpacked at once."""

    def __init__(self, descriptor: int, layout: Layout, capacity: int) -> None:
        super().__init__(descriptor, capacity)
        self.fields = layout.names
        self._unpack = struct.Struct(f"={_HEADER}x{layout.format}").iter_unpack
        self._stride = layout.size + _HEADER

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Unpack what was submitted since the last call (4096 records at most), free its space."""
        consumer = self._consumer[0]
        start = consumer & self._mask
        count = min((self._producer[0] - consumer) // self._stride, _MOST)
        words = self._words[start // 4 : (start + count * self._stride) // 4 : self._stride // 4]
        # Headers are looked at before the data is copied: a record is whole once it is not busy.
        headers = words.tolist()
        if headers and max(headers) >= _BUSY:
            count = next(index for index, header in enumerate(headers) if header >= _BUSY)
        batch = bytes(self._data[start : start + count * self._stride])
        self._consumer[0] = consumer + len(batch)
        return self._unpack(batch)
