"""Make many attempts to connect at once, and tell how many there were when all have ended.

`failures.py SECONDS HOST:PORT:TIMES ...`: in an order of its own; each is closed after so
many seconds, or 0.3 where the host ends with `!`.
"""

import json
import random
import select
import socket
import sys
import time


def main() -> None:
    patience = float(sys.argv[1])
    wanted: list[tuple[str, int, float]] = []
    for target in sys.argv[2:]:
        host, port, times = target.rsplit(":", 2)
        seconds = 0.3 if host.endswith("!") else patience
        wanted += [(host.rstrip("!"), int(port), seconds)] * int(times)
    random.shuffle(wanted)
    waiting: dict[socket.socket, float] = {}
    for address, number, seconds in wanted:
        opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        opened.connect_ex((address, number))
        waiting[opened] = time.monotonic() + seconds
    while waiting:
        soonest = max(0.0, min(waiting.values()) - time.monotonic())
        ended = set(select.select([], list(waiting), [], soonest)[1])
        ended |= {each for each, ends in waiting.items() if ends <= time.monotonic()}
        for each in ended:
            del waiting[each]
            each.close()
    print(json.dumps({"made": len(wanted)}), flush=True)


if __name__ == "__main__":
    main()
