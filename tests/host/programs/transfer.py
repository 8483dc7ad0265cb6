"""Connect to a listener of its own, and transfer so many bytes; one JSON line when it is done.

`transfer.py HOST --count 3 --send 1000 --answer 500`: opens COUNT connections and says `ready`,
with the port. At SIGUSR1 it opens COUNT more, sends SEND bytes on each of all, and as many as
ANSWER back. At SIGUSR2 it closes all. It ends at SIGTERM.
"""

import argparse
import json
import signal
import socket
import sys

SIGNALS = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def pass_on(sender: socket.socket, receiver: socket.socket, count: int) -> None:
    sender.sendall(bytes(count))
    while count:
        count -= len(receiver.recv(count))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--send", type=int, default=1)
    parser.add_argument("--answer", type=int, default=1)
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    listener = socket.create_server((options.host, 0))
    address = listener.getsockname()
    pairs: list[tuple[socket.socket, socket.socket]] = []

    def connect() -> None:
        for _ in range(options.count):
            client = socket.create_connection(address)
            pairs.append((client, listener.accept()[0]))

    connect()
    say(ready=True, port=address[1])
    while (number := signal.sigwait(SIGNALS)) != signal.SIGTERM:
        if number == signal.SIGUSR1:
            connect()
            for client, server in pairs:
                pass_on(client, server, options.send)
                pass_on(server, client, options.answer)
        else:
            for pair in pairs:
                for each in pair:
                    each.close()
            pairs.clear()
        say(done=len(pairs))


main()
