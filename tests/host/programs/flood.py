"""Send COUNT SYNs of one address to another by a raw socket, each as of another attempt.

Tells how long it took.
"""

import json
import random
import socket
import struct
import sys
import time


def main() -> None:
    source, destination, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        addresses = socket.inet_aton(source) + socket.inet_aton(destination)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0) + addresses
        begun = time.monotonic()
        for _ in range(count):
            port, number = random.randrange(1024, 65536), random.getrandbits(32)
            tcp = struct.pack("!HHIIBBHHH", port, 80, number, 0, 0x50, 2, 1024, 0, 0)
            raw.sendto(header + tcp, (destination, 0))
        print(json.dumps({"sent": count, "seconds": time.monotonic() - begun}), flush=True)


if __name__ == "__main__":
    main()
