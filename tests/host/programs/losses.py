"""Lose a SYN, the answer to one, and data, and go on: firewall rules drop them where they arrive.

It prints the ports: of the SYN that is not heard, of that whose answer is not, and of the data.
"""

import json
import signal
import socket
import subprocess
import sys

address = sys.argv[1]
family = socket.AF_INET6 if ":" in address else socket.AF_INET


def lose(*match: object) -> None:
    table = "ip6tables" if ":" in address else "iptables"
    rule = [table, "-I", "INPUT", "-p", "tcp", *map(str, match), "-j", "DROP"]
    subprocess.run(rule, check=True)


listeners = [socket.create_server((address, 0), family=family) for _ in range(3)]
unheard, unanswered, broken = (listener.getsockname()[1] for listener in listeners)
data = socket.create_connection((address, broken))
server, _ = listeners[2].accept()
lose("--dport", unheard)
lose("--sport", unanswered, "--tcp-flags", "SYN,ACK", "SYN,ACK")
lose("--dport", broken)
data.sendall(b"x" * 1009)
clients = [socket.socket(family) for _ in range(2)]
for client, port in zip(clients, (unheard, unanswered), strict=True):
    client.setblocking(False)
    client.connect_ex((address, port))
report = {"ready": True, "unheard": unheard, "unanswered": unanswered, "broken": broken}
print(json.dumps(report), flush=True)
signal.pause()
