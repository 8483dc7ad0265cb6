"""Trace random connections, and compare what is reported with what was done.

`python -m tests.bench.fuzz --seconds 60 --seed 1`, as root; `make fuzz` calls it. Exit code 1 if an
event is missing, wrong, or there twice.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.host.namespace import PYTHON, Namespace, Program
from tests.host.reports import Report, lost_by_cause
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE

LOAD = Path(__file__).with_name("fuzz_load.py")
ADDRESSES = 40
"""Loopback addresses of IPv6 that clients have, each with 50,000 ports."""
RESETS = {"", "ECONNRESET", "EPIPE", "ECONNABORTED"}
UNSEEN = "closes of connections never accepted missed (upper bound)"
ALWAYS = 2
"""What tells the kernel to use SYN cookies for every connection."""
MISSING = "['unknown'] was to be at the server"
Key = tuple[str, int, int]


def fuzz(seconds: float, seed: int) -> tuple[int, list[str]]:
    """Run for so long; return how many connections there were, and what was reported wrongly.

    A connection that nobody accepted may be counted as lost instead.
    """
    namespace = Namespace()
    only = ("-F", f"netns=={namespace.inode}")
    tracer = Tracer("trace", "tcp", "--host", "-o", "json", *only)
    try:
        prepare(namespace)
        # Never, where there is no room, or always.
        namespace.run("sysctl", "-qw", f"net.ipv4.tcp_syncookies={seed % 3}")
        load = Program(namespace.command(*PYTHON, LOAD, seed, seconds))
        expected = load.finished(seconds + PATIENCE)
        events, said, code = tracer.stop()
    finally:
        tracer.kill()
        namespace.remove()
    again = [each for each in expected if "again" in each]
    expected = [each for each in expected if "again" not in each]
    wrong = list(compare(expected, again, events, cookies=seed % 3 == ALWAYS))
    missing = [line for line in wrong if line.startswith(MISSING) and line.endswith(": []")]
    # Of those that were perhaps queued, the end is missed and counted, or there never was one.
    perhaps = sum(each["queued"] == "perhaps" for each in expected)
    if seed % 3 == ALWAYS:
        perhaps += sum(may_be_created_again(each) for each in expected)
    if len(missing) <= (unseen := counted(said)) <= len(missing) + perhaps:
        wrong = [line for line in wrong if line not in missing]
    else:
        wrong.append(f"{len(missing)} are missing, {unseen} were counted, {perhaps} unknown")
    if code or wrong:  # else what it says may have been lost at most was not
        wrong.insert(0, f"ig ended with {code}: {said}")
    return len(expected), wrong


def counted(said: str) -> int:
    """Return how many ends `ig` says at last that it has missed of what nobody accepted."""
    return lost_by_cause(said).get(UNSEEN, 0)


def prepare(namespace: Namespace) -> None:
    """Let clients have many addresses, listeners other ports, and SYNs data."""
    settings = ("net.ipv4.tcp_fastopen=0x403", "net.ipv4.ip_local_port_range=61000 65000")
    namespace.run("sysctl", "-qw", *settings)
    for number in range(2, ADDRESSES):
        namespace.ip("-6", "addr", "add", f"fd00::{number:x}/128", "dev", "lo", "nodad")


def may_be_created_again(connection: Report) -> bool:
    """Say whether a late packet may have created the listener's end again, from a SYN cookie."""
    return bool(connection["accepts"]) and not connection["written"][1]


def created_once(events: Sequence[Report], accepted_again: Sequence[int]) -> list[Report]:
    """Return the events of a listener's end without those of its being created again.

    Each process of `accepted_again` has accepted one and closed it; what nobody accepted is
    reported as `unknown`. Anything else stays.
    """
    first, rest = list(events[:2]), list(events[2:])
    for process in accepted_again:
        if [(each["type"], each["proc"]["pid"]) for each in rest[:2]] == [
            ("accept", process),
            ("close", process),
        ]:
            del rest[:2]
    return first + [each for each in rest if each["type"] != "unknown"]


def compare(
    expected: Sequence[Report], again: Sequence[Report], events: Sequence[Report], *, cookies: bool
) -> Iterator[str]:
    """Yield what is wrong: about each connection, and events of no connection.

    `again` are the listeners' ends that were created a second time, and accepted; with `cookies`,
    others may have been, which nobody accepted.
    """
    ends: Mapping[str, dict[Key, list[Report]]] = {
        "client": defaultdict(list),
        "server": defaultdict(list),
    }
    keys = {tuple(each["key"]) for each in expected}
    for event in events:
        source, target = event["src"], event["dst"]
        here = (source["addr"], source["port"], target["port"])
        there = (target["addr"], target["port"], source["port"])
        # A client may have a port that a listener had at another time.
        if event["type"] == "connect" or (event["type"] != "accept" and here in keys):
            ends["client"][here].append(event)
        else:
            ends["server"][there].append(event)
    accepted_again: dict[Key, list[int]] = defaultdict(list)
    for each in again:
        accepted_again[tuple(each["key"])].append(each["again"])
    for each in expected:
        key: Key = (each["key"][0], each["key"][1], each["key"][2])
        itself = each["key"][1] == each["key"][2]
        for side in ("client",) if itself else ends:
            found = ends[side].pop(key, [])
            if side == "server" and cookies and may_be_created_again(each):
                found = created_once(found, accepted_again[key])
            if what := fault(each, side, found):
                shown = [
                    (
                        e["type"],
                        e["outcome"],
                        e["error"],
                        e["proc"]["pid"],
                        e["sent"],
                        e["received"],
                    )
                    for e in found
                ]
                yield f"{what} at the {side} of {each}: {shown}"
    yield from (f"of no connection: {each}" for side in ends.values() for each in side.values())


def fault(connection: Report, side: str, events: Sequence[Report]) -> str:
    """Return what is wrong with the events of one end of a connection, empty if nothing is."""
    if len(events) > 1 and events[1].get("update"):
        events = events[1:]  # the first said that a second had passed without an answer
    types = [event["type"] for event in events]
    wanted = types_of(connection, side)
    if side == "server" and connection["queued"] == "perhaps" and not types:
        wanted = []
    if types != wanted:
        return f"{wanted} was to be"
    owner = connection["connects" if side == "client" else "accepts"]
    if any(event["proc"]["pid"] != owner for event in events):
        return f"the owner is {owner}"
    if side == "client" and events[0]["outcome"] != connection["outcome"]:
        return "wrong outcome"
    if types[-1:] == ["close"] and not transferred(connection, side, events[-1]):
        return "wrong bytes, error, or time"
    return ""


def types_of(connection: Report, side: str) -> list[str]:
    """Return the types of the events that one end of a connection should have."""
    if side == "client":
        return ["connect", "close"] if connection["outcome"] == "established" else ["connect"]
    if connection["accepts"]:
        return ["accept", "close"]
    return [] if connection["queued"] == "never" else ["unknown"]


def transferred(connection: Report, side: str, close: Report) -> bool:
    """Say whether a close tells what was transferred; of one that was reset, whether it can be."""
    own = 0 if side == "client" else 1
    sent, received = connection["written"][own], connection["written"][1 - own]
    if close["half_closed_raw"] and not connection["half_closed"][own]:
        return False
    if not close["duration_raw"]:
        return False
    if connection["reset"]:
        less = close["sent"] <= sent and close["received"] <= max(received, sent)
        return less and close["error"] in RESETS
    return (close["sent"], close["received"], close["error"]) == (sent, received, "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    connections, wrong = fuzz(options.seconds, options.seed)
    for line in wrong[:20]:
        print(line)
    print(f"{connections} connections, {len(wrong)} reported wrongly")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
