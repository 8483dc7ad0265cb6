"""Find the container of each published port of the host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ig.container import HOST, Container
from ig.gadget import Batch
from ig.sockets import proc
from ig.sockets.proc import LISTEN

PUBLISHED = "PUBLISHED"
"""The state of a published port without a socket: only the firewall forwards it."""

_PROXIES = frozenset(
    {"docker-proxy", "rootlesskit", "rootlesskit-doc", "rootlessport", "slirp4netns", "conmon"}
)
"""The names of processes that listen for a container, or keep its port from others."""
_ALL4, _ALL6 = "0.0.0.0", "::"


class Port(NamedTuple):
    """A published port: a port of the host that is forwarded to a container."""

    address: str
    number: int
    container: Container
    inside: int
    """The port in the container."""


class Published:
    """The current published ports of all containers."""

    def __init__(self, containers: Iterable[Container], host: int) -> None:
        """Take the containers, and the id of the host's network namespace."""
        self._host = host
        self._ports = {
            (address or _ALL4, number): Port(address or _ALL4, number, each, inside)
            for each in containers
            for address, number, inside in each.ports
        }

    def add(self, batch: Batch, silent: Callable[[Port], bool]) -> Batch:
        """Return the sockets with the container and port of each published port: `behind`,
        `behind_port`.

        Each port without a socket for which `silent` is true gets a row of its own, as for an
        engine without a proxy process. The batch must have all listeners of the host then.
        """
        found = self._held(batch)
        count = len(batch)
        behind: list[Container] = [HOST] * count
        inside = [0] * count
        for place, port in found.items():
            behind[place], inside[place] = port.container, port.inside
        known = set(found.values())
        more = [port for port in self._ports.values() if port not in known and silent(port)]
        rows = [_row(port, self._host) for port in more]
        fields = {**batch.fields, "behind": behind, "behind_port": inside}
        if rows:
            fields = {
                name: [*values, *(row.get(name, 0) for row in rows)]
                for name, values in fields.items()
            }
        return Batch(fields, [*batch.owners, *[HOST] * len(rows)])

    def _held(self, batch: Batch) -> dict[int, Port]:
        """Return the places of the sockets by which an engine keeps ports, and these."""
        fields = batch.fields
        if not self._ports or self._host not in fields["netns_id"]:
            return {}
        names = ("state_raw", "netns_id", "saddr", "sport")
        found = {
            place: port
            for place, (state, namespace, address, number) in enumerate(
                zip(*(fields[name] for name in names), strict=True)
            )
            if state == LISTEN and namespace == self._host
            if (port := self._port(address, number))
        }
        inodes = {fields["ino"][place] for place in found}
        # Anybody may listen there, too, where the firewall takes what comes before it arrives.
        held = proc.holders(_proxies(), inodes) if inodes else {}
        return {place: port for place, port in found.items() if fields["ino"][place] in held}

    def _port(self, address: str, number: int) -> Port | None:
        found = self._ports.get((address, number))
        if found is None and address == _ALL6:  # a socket of both families
            found = self._ports.get((_ALL4, number))
        return found


def silent(options: Mapping[str, Any], host: bool) -> Callable[[Port], bool]:
    """Return whether a snapshot with these options, and perhaps the `host`, has such a port."""
    tcp = options.get("tcp") or not options.get("udp")
    proto = (options.get("proto") or "all").lower() in ("all", "tcp")
    wanted = bool(host and options.get("listening") and tcp and proto)
    ports = options.get("port") or ()
    return lambda port: wanted and (not ports or port.number in ports)


def _proxies() -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in pids if proc.comm(pid) in _PROXIES]


def _row(port: Port, host: int) -> Mapping[str, Any]:
    """Return the fields of a port without a socket; those that are left out are 0."""
    ipv6 = ":" in port.address
    return {
        "proto": "TCP",
        "version": 6 if ipv6 else 4,
        "saddr": port.address,
        "sport": port.number,
        "daddr": _ALL6 if ipv6 else _ALL4,
        "state": PUBLISHED,
        "interface": "",
        "cgroup": "",
        "comm": "",
        "processes": (),
        "netns_id": host,
        "shared": False,
        "peer": HOST,
        "behind": port.container,
        "behind_port": port.inside,
    }
