"""Add connections to the connection tracking of the network namespace, and say how many were tried.

`track.py COUNT`: TCP connections over IPv4 that are established, so none is given up for another.
"""

import json
import socket
import struct
import sys

NETFILTER = 12
NEW = 1 << 8  # IPCTNL_MSG_CT_NEW of NFNL_SUBSYS_CTNETLINK
REQUEST, CREATE = 1, 0x400
NESTED = 0x8000
SEEN_REPLY, ASSURED, CONFIRMED = 2, 4, 8
ESTABLISHED = 3  # TCP_CONNTRACK_ESTABLISHED
BATCH = 256


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(values))


def way(kind: int, source: tuple[bytes, int], destination: tuple[bytes, int]) -> bytes:
    return nested(
        kind,
        nested(1, attribute(1, source[0]), attribute(2, destination[0])),
        nested(
            2,
            attribute(1, bytes([socket.IPPROTO_TCP])),
            attribute(2, struct.pack("!H", source[1])),
            attribute(3, struct.pack("!H", destination[1])),
        ),
    )


def message(number: int) -> bytes:
    client = socket.inet_aton(f"10.{number >> 16}.0.1"), number & 0xFFFF
    server = socket.inet_aton("10.255.0.1"), 80
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + b"".join(
        (
            way(1, client, server),
            way(2, server, client),
            attribute(3, struct.pack("!I", SEEN_REPLY | ASSURED | CONFIRMED)),
            nested(4, nested(1, attribute(1, bytes([ESTABLISHED])))),
            attribute(7, struct.pack("!I", 86400)),
        )
    )
    return struct.pack("=IHHII", 16 + len(body), NEW, REQUEST | CREATE, number, 0) + body


def main() -> None:
    count = int(sys.argv[1])
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER) as kernel:
        for first in range(0, count, BATCH):
            last = min(first + BATCH, count)
            kernel.send(b"".join(map(message, range(first, last))))
    print(json.dumps({"tried": count}), flush=True)


if __name__ == "__main__":
    main()
