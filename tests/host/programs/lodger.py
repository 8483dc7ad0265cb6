"""Listen in a new network namespace, and keep that alive in one way only: HOW.

`thread`: a thread that is not the first is in it; `descriptor`: a descriptor is open; `mount`: it
is mounted, at FILE, in a mount namespace of this process's own. Says where, waits for SIGTERM.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_BIND, MS_PRIVATE = 0x1000, 0x44000
LIBC = ctypes.CDLL(None, use_errno=True)
KEEP: list[object] = []


def done(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def listen() -> None:
    """Move this thread into a new namespace, and say what listens there."""
    done(LIBC.unshare(CLONE_NEWNET))
    listener = socket.create_server(("0.0.0.0", 0))
    KEEP.append(listener)
    inode = os.stat("/proc/thread-self/ns/net").st_ino
    KEEP.append({"ready": True, "port": listener.getsockname()[1], "netns": inode})


def ready() -> None:
    print(json.dumps(KEEP[-1]), flush=True)
    signal.pause()


def held(how: str, file: str) -> None:
    """Listen, leave the namespace again, and hold it."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    listen()
    report = KEEP.pop()
    if how == "mount":
        done(LIBC.unshare(CLONE_NEWNS))
        done(LIBC.mount(b"none", b"/", None, MS_PRIVATE, None))
        subprocess.run(["touch", file], check=True)
        done(LIBC.mount(b"/proc/thread-self/ns/net", file.encode(), None, MS_BIND, None))
    else:
        KEEP.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
    done(LIBC.setns(before, CLONE_NEWNET))
    os.close(before)
    KEEP.append(report)


def stay(inside: threading.Event) -> None:
    listen()
    inside.set()
    threading.Event().wait()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    how, file = sys.argv[1:3]
    if how == "thread":
        inside = threading.Event()
        threading.Thread(target=stay, args=(inside,), daemon=True).start()
        inside.wait()
    else:
        held(how, file)
    ready()


if __name__ == "__main__":
    main()
