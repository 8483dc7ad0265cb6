"""The virtual services of IPVS in this thread's network namespace.

Source: ip_vs_info_seq_show(), net/netfilter/ipvs/ip_vs_ctl.c.
"""

from __future__ import annotations

from ipaddress import ip_address

_SERVICES = "/proc/thread-self/net/ip_vs"


def serves(address: str, port: int) -> bool:
    """Return whether IPVS may pass on what is sent to a TCP port. Raises OSError if unreadable."""
    try:
        with open(_SERVICES, encoding="ascii") as file:
            return serves_by(file.read(), address, port)
    except FileNotFoundError:
        return False


def serves_by(listing: str, address: str, port: int) -> bool:
    """Return the same by that listing; a service by a mark (FWM) may be for any address."""
    given = ip_address(address)
    place = f"[{given.exploded}]" if given.version == 6 else f"{int(given):08X}"
    for line in listing.splitlines():
        kind, _, service = line.partition(" ")
        if kind == "FWM" or (kind == "TCP" and service.split()[0] == f"{place}:{port:04X}"):
            return True
    return False
