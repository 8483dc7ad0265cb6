"""Keeps HOW_MANY connected TCP sockets on loopback, says `ready`, and ends with its input.

Run in a network namespace of its own: `unshare --net python3 sockets_load.py HOW_MANY`.
"""

import os
import socket
import subprocess
import sys

EACH = 8000
"""Connections of one process: well below the usual limit of open files and the ports of a host."""


def connect(address, count):
    listener = socket.socket()
    listener.bind((address, 8000))
    listener.listen(1024)
    kept = [listener]
    for _ in range(count):
        client = socket.create_connection((address, 8000))
        kept += [client, listener.accept()[0]]
    return kept


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    left, place = int(sys.argv[1]) // 2, 0
    hear, tell = os.pipe()
    end, hold = os.pipe()
    while left > 0:
        place += 1
        if os.fork() == 0:
            os.close(hold)
            kept = connect(f"127.1.{place}.1", min(EACH, left))
            os.write(tell, b"x")
            os.read(end, 1)
            os._exit(0)
        left -= EACH
    os.close(tell)
    os.close(end)
    for _ in range(place):
        if not os.read(hear, 1):
            sys.exit("a process failed")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    os.close(hold)
    for _ in range(place):
        os.wait()
