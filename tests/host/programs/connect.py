"""Make TCP connections and tell, one JSON line an attempt, what a tracer should have seen of it.

It runs inside containers and namespaces with the distribution's Python and nothing else.
"""

import argparse
import errno
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--kind", choices=("4", "6", "mapped", "udp", "unix"), default="4")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="each makes COUNT attempts")
    parser.add_argument("--children", type=int, default=0, help="each makes COUNT attempts")
    parser.add_argument("--nonblocking", action="store_true")
    parser.add_argument(
        "--timeout", type=float, default=0, help="seconds; then the socket is closed"
    )
    parser.add_argument(
        "--syn-count", type=int, default=0, help="SYNs sent again before the kernel gives up"
    )
    parser.add_argument("--source-port", type=int, default=0)
    parser.add_argument("--comm", default="")
    parser.add_argument(
        "--on-signal", action="store_true", help="print a ready line; begin at SIGUSR1"
    )
    parser.add_argument("--hold", action="store_true", help="keep the sockets open until SIGTERM")
    return parser.parse_args()


held: list[socket.socket] = []
printing = threading.Lock()


def report(**fields: object) -> None:
    with printing:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


def open_socket(options: argparse.Namespace) -> socket.socket:
    if options.kind == "unix":
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    family = socket.AF_INET6 if options.kind in ("6", "mapped") else socket.AF_INET
    kind = socket.SOCK_DGRAM if options.kind == "udp" else socket.SOCK_STREAM
    opened = socket.socket(family, kind)
    if options.syn_count:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, options.syn_count)
    if options.source_port:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", options.source_port))
    if options.timeout and not options.nonblocking:
        # Python's own settimeout() would make the socket non-blocking.
        whole = int(options.timeout)
        interval = struct.pack("ll", whole, int((options.timeout - whole) * 1e6))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
    opened.setblocking(not options.nonblocking)
    return opened


def target(options: argparse.Namespace) -> str | tuple[str, int]:
    if options.kind == "unix":
        return str(options.host)
    if options.kind == "mapped":
        return ("::ffff:" + options.host, options.port)
    return (options.host, options.port)


def attempt(options: argparse.Namespace) -> None:
    opened = open_socket(options)
    started = time.clock_gettime_ns(time.CLOCK_REALTIME)
    begun = time.monotonic_ns()
    error: int | None = opened.connect_ex(target(options))
    source = opened.getsockname()
    if error == errno.EINPROGRESS and options.nonblocking:
        writable = select.select([], [opened], [], options.timeout or None)[1]
        error = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if writable else None
    elif error in (errno.EINPROGRESS, errno.EAGAIN) and options.timeout:
        error = None  # SO_SNDTIMEO passed: the caller gives up
    took = time.monotonic_ns() - begun
    if error == 0:
        source = opened.getsockname()
    if options.hold:
        held.append(opened)
    else:
        opened.close()
    inet = options.kind != "unix"
    report(
        source=source[0].removeprefix("::ffff:") if inet else "",
        source_port=source[1] if inet else 0,
        destination=options.host,
        destination_port=options.port,
        error="" if not error else errno.errorcode[error],
        gave_up=error is None,
        started=started,
        nanoseconds=took,
        pid=os.getpid(),
        tid=threading.get_native_id(),
        uid=os.getuid(),
        gid=os.getgid(),
        parent=os.getppid(),
        mntns=os.stat("/proc/self/ns/mnt").st_ino,
        netns=os.stat("/proc/self/ns/net").st_ino,
    )


def attempts(options: argparse.Namespace) -> None:
    for _ in range(options.count):
        attempt(options)


def main() -> None:
    options = arguments()
    if options.comm:
        with open("/proc/self/comm", "w") as comm:
            comm.write(options.comm)
    if options.on_signal:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        report(ready=True)
        signal.sigwait({signal.SIGUSR1})
    children = []
    for _ in range(options.children):
        child = os.fork()
        if child == 0:
            attempts(options)
            os._exit(0)
        children.append(child)
    threads = [threading.Thread(target=attempts, args=(options,)) for _ in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        os.waitpid(child, 0)
    if not (threads or children):
        attempts(options)
    if options.hold:
        report(ready=True)
        signal.pause()


if __name__ == "__main__":
    main()
