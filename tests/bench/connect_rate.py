"""Connects, accepts, closes RATE times a second on loopback; says `ready`, ends with its input."""

import select
import socket
import sys
import threading
import time

PART = 0.01
"""Seconds between groups of connections."""


def accept(listener):
    while True:
        listener.accept()[0].close()


if __name__ == "__main__":
    rate = int(sys.argv[1])
    listener = socket.create_server(("127.2.1.1", 0), backlog=4096)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    began, made = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], PART)[0]:
        while made < rate * (time.monotonic() - began):
            socket.create_connection(listener.getsockname()).close()
            made += 1
