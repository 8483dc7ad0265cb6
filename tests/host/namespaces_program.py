"""Forks processes that each open sockets in a network namespace of its own: HOW_MANY SOCKETS_EACH.

Says `ready`, and ends, with all of them, with its input.
"""

import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000


def inhabit(sockets, told, ended):
    if ctypes.CDLL(None).unshare(CLONE_NEWNET):
        os._exit(1)
    kept = []
    for place in range(sockets):
        sock = socket.socket()
        # The loopback interface of a new namespace is down, which a wildcard does not mind.
        sock.bind(("0.0.0.0", 10_000 + place))
        sock.listen()
        kept.append(sock)
    os.write(told, b"x")
    os.read(ended, 1)
    os._exit(0)


if __name__ == "__main__":
    count, sockets = int(sys.argv[1]), int(sys.argv[2])
    hear, tell = os.pipe()
    end, hold = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
            os.close(hold)
            os.close(hear)
            inhabit(sockets, tell, end)
    os.close(tell)
    os.close(end)
    for _ in range(count):
        if not os.read(hear, 1):
            sys.exit("a process failed")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    os.close(hold)
    for _ in range(count):
        os.wait()
