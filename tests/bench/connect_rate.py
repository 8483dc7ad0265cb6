"""Connects, accepts, closes RATE times a second on loopback; says `ready`, ends with its input.

Listens at PORT, if there is a second argument, and prints in the end how many it has made.
"""

import select
import socket
import struct
import sys
import threading
import time

PART = 0.01
"""Seconds between groups of connections."""
RESET = struct.pack("ii", 1, 0)
"""No TIME_WAIT: ports must not run out."""


def accept(listener):
    while True:
        listener.accept()[0].close()


if __name__ == "__main__":
    rate, port = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    listener = socket.create_server(("127.2.1.1", port), backlog=4096)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    began, made = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], PART)[0]:
        while made < rate * (time.monotonic() - began):
            with socket.create_connection(listener.getsockname()) as client:
                if port:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            made += 1
    if port:
        print(made)
