"""Connect, or accept, by io_uring: `uring.py connect HOST PORT [async]` or `uring.py accept PORT`.

There is no library for it here, so the ring is set up by hand: io_uring(7), io_uring_setup(2).
"""

import ctypes
import json
import mmap
import os
import socket
import struct
import sys

SETUP, ENTER = 425, 426
ACCEPT, CONNECT = 13, 16
ASYNC = 1 << 4  # by a thread of the kernel's
PARAMETERS, ENTRY = 120, 64
RING, COMPLETIONS, ENTRIES = 0, 0x8000000, 0x10000000

libc = ctypes.CDLL(None, use_errno=True)


class Ring:
    """A ring for one request at a time."""

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(PARAMETERS)
        self.descriptor = libc.syscall(SETUP, 1, parameters)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        words = struct.unpack("=30I", parameters.raw)
        entries, completions = words[0], words[1]
        # Offsets of tail, array; and of head, tail, entries.
        self.tail, self.array = words[11], words[16]
        self.completed, self.done, self.results = words[20], words[21], words[25]
        self.ring = mmap.mmap(self.descriptor, self.array + entries * 4, offset=RING)
        size = self.results + completions * 16
        self.completions = mmap.mmap(self.descriptor, size, offset=COMPLETIONS)
        self.entries = mmap.mmap(self.descriptor, entries * ENTRY, offset=ENTRIES)

    def ask(
        self, operation: int, descriptor: int, address: int = 0, length: int = 0, flags: int = 0
    ) -> int:
        """Have one request done; give its result, negative an errno."""
        asked = (operation, flags, 0, descriptor, length, address, 0, 0, 1)
        request = struct.pack("=BBHiQQIIQ", *asked)
        self.entries[:ENTRY] = request.ljust(ENTRY, b"\0")
        struct.pack_into("=I", self.ring, self.array, 0)
        (tail,) = struct.unpack_from("=I", self.ring, self.tail)
        struct.pack_into("=I", self.ring, self.tail, tail + 1)
        if libc.syscall(ENTER, self.descriptor, 1, 1, 1, None, 0) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        (head,) = struct.unpack_from("=I", self.completions, self.completed)
        place = self.results + head % 2 * 16
        _, result, _ = struct.unpack_from("=QiI", self.completions, place)
        struct.pack_into("=I", self.completions, self.completed, head + 1)
        return int(result)


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main() -> None:
    ring = Ring()
    with socket.socket() as opened:
        if sys.argv[1] == "connect":
            host, port = sys.argv[2], int(sys.argv[3])
            packed = struct.pack("=H", socket.AF_INET) + struct.pack(
                "!H4s8x", port, socket.inet_aton(host)
            )
            buffer = ctypes.create_string_buffer(packed, 16)
            flags = ASYNC if "async" in sys.argv else 0
            result = ring.ask(CONNECT, opened.fileno(), ctypes.addressof(buffer), 16, flags)
            say(error=-result, source_port=opened.getsockname()[1], pid=os.getpid())
            return
        opened.bind(("127.0.0.1", int(sys.argv[2])))
        opened.listen()
        say(ready=True, port=opened.getsockname()[1])
        accepted = ring.ask(ACCEPT, opened.fileno())
        while os.read(accepted, 4096):
            pass
        os.close(accepted)
        say(error=0, pid=os.getpid())


if __name__ == "__main__":
    main()
