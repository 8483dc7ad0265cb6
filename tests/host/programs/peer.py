"""Be the far side of a TUN device, and answer SYNs as told: late, by reset, by ICMP, or never.

`peer.py --delay MILLISECONDS --answer accept|reset|unreachable|nothing|open-and-reset` makes the
device in the network namespace that it runs in, with 198.51.100.1/24 and 2001:db8:51::1/64 as its
addresses (RFC 5737, RFC 3849), so every other address of these networks is the peer. Says when it
is ready in a JSON line, and tells each SYN in another. Needs no netem, and no second namespace.
"""

import argparse
import fcntl
import heapq
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000
FIN, SYN, RST, ACK = 1, 2, 4, 16
ICMP, ICMP6 = 1, 58


def make_device(name: str) -> int:
    device: int = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    for command in (
        ["link", "set", name, "up"],
        ["addr", "add", "198.51.100.1/24", "dev", name],
        ["addr", "add", "2001:db8:51::1/64", "dev", name, "nodad"],
    ):
        # A container's namespace may have IPv6 switched off: then IPv4 must do.
        subprocess.run(["ip", *command], check="nodad" not in command, stderr=subprocess.DEVNULL)
    return device


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def wrap(source: bytes, destination: bytes, protocol: int, body: bytes, checksum_at: int) -> bytes:
    """Put an IP header before `body`, whose checksum is filled in."""
    pseudo = source + destination + struct.pack("!II", len(body), protocol)
    value = checksum(body if protocol == ICMP else pseudo + body)
    body = body[:checksum_at] + struct.pack("!H", value) + body[checksum_at + 2 :]
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source + destination + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0)
    header += source + destination
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


class Segment:
    """A TCP segment that the near side sent."""

    def __init__(self, packet: bytes) -> None:
        self.packet = packet
        six = packet[0] >> 4 == 6
        start = 40 if six else (packet[0] & 15) * 4
        self.is_tcp = (packet[6] if six else packet[9]) == socket.IPPROTO_TCP
        self.source = packet[8:24] if six else packet[12:16]
        self.destination = packet[24:40] if six else packet[16:20]
        if self.is_tcp:
            ports_and_numbers = struct.unpack("!HHIIBB", packet[start : start + 14])
            self.sport, self.dport, self.seq, self.ack, offset, self.flags = ports_and_numbers
            self.length = len(packet) - start - (offset >> 4) * 4

    def reply(self, flags: int, seq: int = 0) -> bytes:
        past = self.length + bool(self.flags & (SYN | FIN))
        body = struct.pack(
            "!HHIIBBHHH",
            *(
                self.dport,
                self.sport,
                seq,
                (self.seq + past) & 0xFFFFFFFF,
                5 << 4,
                flags,
                65535,
                0,
                0,
            ),
        )
        return wrap(self.destination, self.source, socket.IPPROTO_TCP, body, 16)

    def unreachable(self) -> bytes:
        six = len(self.source) == 16
        kind = (1, 3) if six else (3, 1)  # address unreachable, host unreachable
        body = struct.pack("!BBHI", *kind, 0, 0) + self.packet[:128]
        return wrap(self.destination, self.source, ICMP6 if six else ICMP, body, 2)


def answer(segment: Segment, manner: str) -> bytes | None:
    """Return the packet that answers, or None."""
    if segment.flags & RST:
        return None
    if segment.flags & SYN and manner == "open-and-reset":  # a simultaneous open, given up
        return segment.reply(
            RST | ACK if segment.flags & ACK else SYN, 1000 + bool(segment.flags & ACK)
        )
    if segment.flags & SYN:
        if manner == "accept":
            return segment.reply(SYN | ACK, seq=1000)
        if manner == "reset":
            return segment.reply(RST | ACK)
        return segment.unreachable() if manner == "unreachable" else None
    if segment.flags & FIN:
        return segment.reply(FIN | ACK, seq=segment.ack)
    return segment.reply(ACK, seq=segment.ack) if segment.length else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--delay", type=float, default=0, help="milliseconds before a SYN is answered"
    )
    parser.add_argument(
        "--answer",
        choices=("accept", "reset", "unreachable", "nothing", "open-and-reset"),
        default="accept",
    )
    parser.add_argument("--device", default="tun0")
    options = parser.parse_args()
    device = make_device(options.device)
    print(json.dumps({"ready": True}), flush=True)
    waiting: list[tuple[float, bytes]] = []  # (when, packet), the next one first
    while True:
        pause = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([device], [], [], pause)[0]:
            segment = Segment(os.read(device, 65535))
            packet = answer(segment, options.answer) if segment.is_tcp else None
            is_syn = segment.is_tcp and segment.flags & SYN
            if is_syn:
                source = str(ipaddress.ip_address(segment.source))
                print(
                    json.dumps({"syn": True, "source": source, "source_port": segment.sport}),
                    flush=True,
                )
            if packet:
                delay = options.delay / 1000 if is_syn else 0
                heapq.heappush(waiting, (time.monotonic() + delay, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            os.write(device, heapq.heappop(waiting)[1])


if __name__ == "__main__":
    main()
