"""`ig explain ADDRESS:PORT`: make one attempt to connect, and show its way and its cause.

Source: tcp(7) (TCP_SYNCNT), socket(7) (SO_ERROR).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ig import output
from ig.causes.cause import Attempt
from ig.causes.evidence import Counters
from ig.causes.find import Causes
from ig.causes.judge import judge
from ig.causes.places import Places, Unreachable
from ig.commands.answers import closing
from ig.commands.explained import OBJECT, STEPS, Explained
from ig.commands.setup import EXAMINING, follow, make_index, selection
from ig.commands.why import following
from ig.container import Container
from ig.containers.index import Index
from ig.errors import IgError, KernelRefused, UsageError
from ig.gadget import Column
from ig.kernel import monitor, netns
from ig.kernel.capabilities import Capability, holds
from ig.output.layout import watch
from ig.output.stream import ReaderGone, Stream
from ig.stop import Stop, Stopped
from ig.values import parse_port

_NAMED = 8  # containers that a message lists
_TIMEOUT = 4.0  # seconds: the kernel gives up on a neighbour after three
_SYN_REPEATS = 1  # the least that the kernel takes: the second SYN follows after a second
_OUTCOMES = {
    0: "established",
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timed-out",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to connect to."""

    address: str
    port: int
    zone: str = ""
    """The interface of a link-local address."""


def explain(options: Mapping[str, Any]) -> bool:
    """Print the way of one attempt; return whether it was established. Raises IgError."""
    name, port = _target(options["target"])
    mode, shown = output.parse_output(options.get("output") or "columns", STEPS)
    seconds = _TIMEOUT if options.get("timeout") is None else float(options["timeout"])
    if not seconds:
        raise UsageError("Invalid timeout 0.", "", "Use a time such as 500ms or 4s.")
    if not holds(Capability.CAP_SYS_ADMIN) or not holds(Capability.CAP_NET_ADMIN):
        raise KernelRefused(
            "Explaining a connection needs root.",
            f"This process runs as uid {os.geteuid()} without CAP_SYS_ADMIN or CAP_NET_ADMIN.",
            "Run it with sudo.",
        )
    attempt = None
    try:
        stop = Stop()
        stream = Stream(1, stop)
        index = make_index(options, detailed=True)
        causes = following(index)
        follow(index, options, EXAMINING)
        with closing(index):
            near, container = _near(index, options)
            found = _resolved(name, port, options, index.containers(stopped=True), seconds)
            attempt, before = _attempted(causes, near, found[0], seconds)
            evidence = causes.examine(attempt, before)
        addresses = tuple(each.address for each in found)
        cause = judge(attempt, evidence)
        explained = Explained(options["target"], container, addresses, attempt, evidence, cause)
        with stop.noted():
            _write(stream, explained, mode, shown)
    except (Stopped, ReaderGone):
        if attempt is None or attempt.outcome != "established":
            raise
    return attempt.outcome == "established"


def _write(stream: Stream, explained: Explained, mode: str, shown: Sequence[Column]) -> None:
    if mode in ("columns", "csv"):
        formatter = output.formatter(mode, STEPS, shown, screen=watch())
        batch = explained.table()
    else:
        formatter = output.formatter(mode, OBJECT, ())
        batch = explained.object()
    stream.write(formatter.header(batch) + formatter.format(batch) + formatter.footer())


def _target(text: str) -> tuple[str, int]:
    """Return the name or address, and the port, of `NAME:PORT` or `[ADDRESS]:PORT`."""
    name, colon, port = text.strip().rpartition(":")
    bracketed = name.startswith("[") and name.endswith("]")
    if not colon or not name or (":" in name and not bracketed):
        raise UsageError(
            f"Invalid destination {text[:64]!r}.",
            "",
            "Use ADDRESS:PORT or NAME:PORT, and brackets for IPv6: [2001:db8::1]:443.",
        )
    return (name[1:-1] if bracketed else name), parse_port(port)


def _near(index: Index, options: Mapping[str, Any]) -> tuple[int, str]:
    """Return the network namespace to connect from, and the container's name."""
    wanted = options.get("containername") or ()
    if not wanted:
        return netns.own(), ""
    chosen = selection(options)
    running = index.containers()
    found = [each for each in running if chosen.wants(each)]
    if len(found) != 1:
        names = _names(found or running)
        what = "Several running containers match" if found else "No running container matches"
        raise UsageError(
            f"{what} -c {wanted[0][:64]!r}.",
            f"Containers: {names or 'none'}",
            "" if running else "Run `ig doctor` to see which runtimes answer.",
        )
    container = index.details(found[0])
    inode = container.netns or (monitor.namespace(container.pid, "net") if container.pid else 0)
    if not inode:
        raise IgError(
            f"The network namespace of container {container.name} is not known.",
            "Its runtime reports no process of it.",
            "Run ig on the host, not in a PID namespace of its own.",
        )
    return inode, container.name


def _names(containers: Iterable[Container]) -> str:
    """Return the names of some containers, for a message."""
    return ", ".join(sorted(each.name for each in containers)[:_NAMED])


def _addresses(container: Container, family: socket.AddressFamily) -> list[str]:
    """Return the addresses of a container, of one family unless it is AF_UNSPEC, if it runs."""
    six = family == socket.AF_INET6
    every = family == socket.AF_UNSPEC
    addresses = container.addresses if container.running else ()
    return [each for each in addresses if every or (":" in each) == six]


def _resolved(
    name: str,
    port: int,
    options: Mapping[str, Any],
    containers: Sequence[Container],
    seconds: float,
) -> list[Destination]:
    """Return the addresses of a name, as this host resolves it; else those of a container."""
    four, six = options.get("ipv4"), options.get("ipv6")
    families = {(True, False): socket.AF_INET, (False, True): socket.AF_INET6}
    family = families.get((bool(four), bool(six)), socket.AF_UNSPEC)
    plain, _, zone = name.partition("%")
    try:
        given = ipaddress.ip_address(plain)
        address = str(getattr(given, "ipv4_mapped", None) or given)
    except ValueError:
        pass
    else:
        return [Destination(address, port, zone)]
    try:
        answers = _answers(name, port, family, seconds)
    except (OSError, UnicodeError) as error:
        named = [each for each in containers if each.name == name]
        reachable = [each for each in containers if _addresses(each, family)]
        kept = [a for each in reachable if each.name == name for a in _addresses(each, family)]
        if kept:
            return [Destination(address, port) for address in kept]
        why = error.strerror if isinstance(error, OSError) else "it is no name"
        ended = named and not any(each.running for each in named)
        which = "the container of this name has ended" if ended else ""
        what = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}.get(family, "IP")
        raise IgError(
            f"Cannot resolve {name[:255]!r}.",
            f"{why}; {which or f'no running container has this name and an {what} address'}.",
            "Names are resolved as this host does, not as a container does: use the address"
            + (f", or the name of a container: {_names(reachable)}." if reachable else "."),
        ) from error
    texts = [(str(answer[4][0]).partition("%")[0], answer[4]) for answer in answers]
    return [
        Destination(text, port, socket.if_indextoname(place[3]) if place[3:] and place[3] else "")
        for text, place in dict(texts).items()
    ]


def _answers(
    name: str, port: int, family: socket.AddressFamily, seconds: float
) -> list[tuple[Any, ...]]:
    """Return what getaddrinfo does. Raises its errors, and IgError if it takes longer.

    It cannot be interrupted, so it runs in a thread that is left behind.
    """
    results: queue.SimpleQueue[list[tuple[Any, ...]] | Exception] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            results.put(list(socket.getaddrinfo(name.encode(), port, family, socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            results.put(error)

    threading.Thread(target=resolve, name="resolver", daemon=True).start()
    try:
        found = results.get(timeout=seconds)
    except queue.Empty:
        raise IgError(
            f"Cannot resolve {name[:255]!r}.",
            f"It was not resolved within {seconds:g} s.",
            "Check the name servers of this host, use the address, or raise --timeout.",
        ) from None
    if isinstance(found, Exception):
        raise found
    return found


def _attempted(
    causes: Causes, near: int, to: Destination, seconds: float
) -> tuple[Attempt, Counters]:
    try:
        before = causes.counters()
        return connect(Places(), near, to, seconds), before
    except (Unreachable, OSError) as error:
        raise IgError(f"Cannot connect from network namespace {near}.", str(error)) from error


def connect(places: Places, netns: int, to: Destination, seconds: float) -> Attempt:
    """Connect once from a namespace, waiting so long, and close. Raises Unreachable, OSError."""
    return places.inside(netns, lambda: _connect(netns, to, seconds))


def _connect(netns: int, to: Destination, seconds: float) -> Attempt:
    six = ":" in to.address
    place = (to.address, to.port, 0, _index(to.zone)) if six else (to.address, to.port)
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET) as client:
        client.setblocking(False)
        with suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, _SYN_REPEATS)
        began, moment = time.monotonic_ns(), time.time_ns()
        error: int | None = client.connect_ex(place)
        sent = error in (0, errno.EINPROGRESS)
        if error == errno.EINPROGRESS:
            error = _awaited(client, seconds)
        latency = time.monotonic_ns() - began
        source, source_port, *_ = client.getsockname()
    outcome = "unanswered" if error is None else _OUTCOMES.get(error, "failed")
    if not sent:
        outcome = "failed" if error != errno.ECONNREFUSED else "refused"
    unbound = source in ("0.0.0.0", "::")
    return Attempt(
        netns,
        to.address,
        to.port,
        outcome,
        error or 0,
        "" if unbound else source.partition("%")[0],
        source_port,
        moment,
        latency,
        to.zone,
    )


def _awaited(client: socket.socket, seconds: float) -> int | None:
    """Return the error that an attempt ends with, 0 for none, None if it has not ended."""
    poll = select.poll()
    poll.register(client, select.POLLOUT)
    ended = poll.poll(seconds * 1000)
    # An ICMP error that came while connect() ran is kept there too (sk_err_soft).
    error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return error if ended or error else None


def _index(zone: str) -> int:
    if not zone:
        return 0
    try:
        return socket.if_nametoindex(zone)
    except OSError as error:
        raise OSError(errno.ENODEV, f"{os.strerror(errno.ENODEV)}: {zone}") from error
