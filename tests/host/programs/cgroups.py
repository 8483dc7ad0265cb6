"""Move into one cgroup after another, and connect once from each; tell the names, a JSON line each.

A plan is a list of paths below ROOT, or `--count N`: N names that look like containers' (64
hexadecimal digits, made of the number and `--seed`). `--also` is a folder of another hierarchy,
which the process moves into first. With `--until-signal` it goes on with N names after N others
until SIGTERM, and is called in each what the name's second quarter is.
"""

import argparse
import hashlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", default="")
    parser.add_argument("--prefix", default="", help="what each name of --count begins with")
    parser.add_argument("--also", type=Path, help="another folder to move into")
    parser.add_argument("--uid", type=int, default=0, help="become this user before the last path")
    parser.add_argument("--remove", action="store_true", help="each after its connect")
    parser.add_argument("--until-signal", action="store_true")
    return parser.parse_args()


def move(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text("0")


def names_of(options: argparse.Namespace, around: int = 0) -> list[str]:
    seed = options.seed + str(around) * options.until_signal
    digits = (hashlib.sha256(f"{seed}-{n}".encode()).hexdigest() for n in range(options.count))
    return [options.prefix + each[len(options.prefix) :] for each in digits]


def connect(port: int) -> None:
    with socket.socket() as client:
        client.connect_ex(("127.0.0.1", port))


def go_on(options: argparse.Namespace) -> None:
    """Come and go until told to stop: some hundred cgroups a second."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    made, before = 0, None
    while not stopped.is_set():
        for name in names_of(options, made):
            folder = options.root / name
            move(folder)
            Path("/proc/self/comm").write_text(name[16:31])
            if before:
                before.rmdir()
            before = folder
            connect(options.port)
            made += 1
            if stopped.wait(0.003):
                break
    sys.stdout.write(json.dumps({"made": made}) + "\n")


def visit(options: argparse.Namespace) -> None:
    names = names_of(options)
    plan = (*options.paths, *names)
    before = None
    for place, name in enumerate(plan):
        if options.uid and place == len(plan) - 1:
            os.setgid(options.uid)
            os.setuid(options.uid)
        folder = options.root / name
        move(folder)
        if before and options.remove:
            before.rmdir()
        before = folder
        connect(options.port)
    sys.stdout.write(json.dumps({"names": names}) + "\n")


def main() -> None:
    options = arguments()
    if options.also:
        move(options.also)
    (go_on if options.until_signal else visit)(options)


main()
