"""Listen on a TCP port, say which in a JSON line, and accept until SIGTERM.

`serve.py HOST PORT`; port 0 takes any. With `--deaf` nothing is accepted before
SIGUSR1. With `--reset` what was accepted is closed with a reset, else in the ordinary way once the
client has closed. With `--acceptors N` so many threads wait in accept(). With `--in-turn` each of
them closes what it has accepted before it accepts again. With `--v6only` it takes no IPv4, with
`--reuseport` others may listen there, too.
"""

import argparse
import json
import signal
import socket
import struct
import sys
import threading


def serve(connection: socket.socket, reset: bool) -> None:
    with connection:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        try:
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass


def accept(listener: socket.socket, reset: bool, in_turn: bool) -> None:
    while True:
        connection, _ = listener.accept()
        if in_turn:
            serve(connection, reset)
            continue
        threading.Thread(target=serve, args=(connection, reset), daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host", nargs="?", default="::")
    parser.add_argument("port", nargs="?", type=int, default=0)
    parser.add_argument("--backlog", type=int, default=4096)
    parser.add_argument("--acceptors", type=int, default=1)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--reset", action="store_true")
    parser.add_argument("--in-turn", action="store_true")
    parser.add_argument("--v6only", action="store_true")
    parser.add_argument("--reuseport", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGUSR1, lambda *_: setattr(options, "deaf", False))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.v6only:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if options.reuseport:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # A link-local address, fe80::1%eth0, has its interface in the last part; in bytes it
        # may have any name.
        listener.bind(socket.getaddrinfo(options.host.encode(), options.port, family)[0][4])
        listener.listen(options.backlog)
        print(json.dumps({"ready": True, "port": listener.getsockname()[1]}), flush=True)
        while options.deaf:
            signal.pause()
        arguments = (listener, options.reset, options.in_turn)
        for _ in range(options.acceptors - 1):
            threading.Thread(target=accept, args=arguments, daemon=True).start()
        accept(*arguments)


if __name__ == "__main__":
    main()
