"""The virtual services of IPVS in this thread's network namespace.

Source: ip_vs_info_seq_show(), net/netfilter/ipvs/ip_vs_ctl.c; ip_vs_conn_seq_show(),
ip_vs_conn.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice

from ig.kernel.conntrack import Tuple

_SERVICES, _CONNECTIONS = "/proc/thread-self/net/ip_vs", "/proc/thread-self/net/ip_vs_conn"
_MOST = 100_000  # connections that are looked through

End = tuple[str, int]
"""An address and a port."""


@dataclass(frozen=True, slots=True)
class Service:
    """The virtual service that a connection may be of."""

    servers: tuple[End, ...] = ()
    """The servers that new connections are passed on to."""
    server: End | None = None
    """The one that this connection is passed on to, None if that is not known."""


def service(connection: Tuple) -> Service | None:
    """Return the virtual service of a TCP connection, None if there is none. Raises OSError."""
    try:
        with open(_SERVICES, encoding="ascii") as file:
            found = service_in(file, connection.address, connection.port)
    except FileNotFoundError:
        return None
    if found is None:
        return None
    server = found.servers[0] if len(found.servers) == 1 else None
    with suppress(OSError), open(_CONNECTIONS, encoding="ascii") as file:
        server = server_in(islice(file, _MOST), connection) or server
    return Service(found.servers, server)


def service_in(listing: Iterable[str], address: str, port: int) -> Service | None:
    """Return the service of an address and a port by the listing of services.

    One by a mark (FWM) may be for any address; then its servers are not told.
    """
    place = f"{_digits(address)}:{port:04X}"
    marked = found = inside = False
    servers: list[End] = []
    for line in listing:
        words = line.split()
        if line.startswith("  ->"):
            if inside and len(words) > 3 and words[3].isdecimal() and int(words[3]):
                servers.append(_end(words[1]))
            continue
        inside = line.startswith("TCP") and words[1] == place
        found |= inside
        marked |= line.startswith("FWM")
    return Service(tuple(servers)) if found else Service() if marked else None


def server_in(listing: Iterable[str], connection: Tuple) -> End | None:
    """Return the server of a connection by the listing of connections, None if it is not there."""
    source, address = (
        _digits(each).strip("[]") for each in (connection.source, connection.address)
    )
    wanted = ["TCP", source, f"{connection.source_port:04X}", address, f"{connection.port:04X}"]
    for line in listing:
        words = [word.strip("[]") for word in line.split()]
        if words[:5] == wanted and len(words) > 6:
            return _address(words[5]), int(words[6], 16)
    return None


def _digits(address: str) -> str:
    """Return an address as these listings have it."""
    given = ip_address(address or "0.0.0.0")
    return f"[{given.exploded}]" if given.version == 6 else f"{int(given):08X}"


def _end(text: str) -> End:
    address, _, port = text.rpartition(":")
    return _address(address.strip("[]")), int(port, 16)


def _address(digits: str) -> str:
    return str(ip_address(digits if ":" in digits else int(digits, 16)))
