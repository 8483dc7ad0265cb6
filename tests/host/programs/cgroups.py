"""Move into one cgroup after another, and connect once from each; tell the names, a JSON line each.

A plan is a list of paths below ROOT, or `--count N`: N names that look like containers' (64
hexadecimal digits, made of the number and `--seed`). ROOT is any hierarchy's folder; `--also` is
one of another hierarchy, in which the process moves into ALSO first and stays.
"""

import argparse
import hashlib
import json
import os
import socket
import sys
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", default="")
    parser.add_argument("--also", type=Path, help="another folder to move into")
    parser.add_argument("--uid", type=int, default=0, help="become this user before the last path")
    parser.add_argument("--remove", action="store_true", help="each after its connect")
    parser.add_argument("--times", type=int, default=1, help="connects from each")
    return parser.parse_args()


def move(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text("0")


def main() -> None:
    options = arguments()
    numbers = range(options.count)
    names = [hashlib.sha256(f"{options.seed}{n}".encode()).hexdigest() for n in numbers]
    before = None
    if options.also:
        move(options.also)
    for name in (*options.paths, *names):
        if options.uid and name == (*options.paths, *names)[-1]:
            os.setgid(options.uid)
            os.setuid(options.uid)
        folder = options.root / name
        move(folder)
        if before and options.remove:
            before.rmdir()
        before = folder
        for _ in range(options.times):
            with socket.socket() as client:
                client.connect_ex(("127.0.0.1", options.port))
    sys.stdout.write(json.dumps({"names": names}) + "\n")
    (options.root / "cgroup.procs").write_text("0") if not options.uid else None


main()
