"""Connect and accept by MPTCP, print the ports: `multipath.py CLIENT SERVER ADDRESS PATH SUBFLOWS`.

CLIENT and SERVER are protocols, `tcp` or `mptcp`. The server listens at ADDRESS, in the network
namespace at PATH. Nothing ends before the connection has so many SUBFLOWS besides the first.
"""

import ctypes
import json
import os
import select
import socket
import sys

PROTOCOLS = {"tcp": 0, "mptcp": 262}
INFO = (284, 1)  # SOL_MPTCP, MPTCP_INFO: struct mptcp_info begins with the number of subflows


def enter(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    assert ctypes.CDLL(None).setns(descriptor, 0) == 0
    os.close(descriptor)


def connection(
    client_protocol: str, server_protocol: str, address: str, path: str
) -> tuple[socket.socket, socket.socket, socket.socket]:
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter(path)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, PROTOCOLS[server_protocol])
    listener.bind((address, 0))
    listener.listen()
    enter(f"/proc/self/fd/{home}")
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, PROTOCOLS[client_protocol])
    client.connect(listener.getsockname())
    return client, listener.accept()[0], listener


def exchange(source: socket.socket, target: socket.socket, size: int) -> None:
    while size:
        part = source.send(b"x" * min(size, 65536))
        size -= part
        while part:
            part -= len(target.recv(part))


if __name__ == "__main__":
    client, server, listener = connection(*sys.argv[1:5])
    sent = {"client": 0, "server": 0}
    while int(sys.argv[5]) and client.getsockopt(*INFO, 1)[0] < int(sys.argv[5]):
        exchange(client, server, 1)
        exchange(server, client, 1)
        sent = {side: size + 1 for side, size in sent.items()}
        select.select([], [], [], 0.01)
    exchange(client, server, 300_007)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    exchange(server, client, 1_000_003)
    sent = {"client": sent["client"] + 300_007, "server": sent["server"] + 1_000_003}
    ports = {"client": client.getsockname()[1], "server": server.getsockname()[1]}
    server.close()
    assert client.recv(1) == b""
    client.close()
    print(json.dumps({"ports": ports, "sent": sent}))
