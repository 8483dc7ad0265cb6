"""Columns of addresses, and of the ends of connections: an address, a port, and whose it is."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from ig.columns import STRINGS, integer
from ig.container import HOST, Container
from ig.gadget import Address, Batch, Column, End, Kind, Param, of_each
from ig.memo import Cache

ADDRESSES: Cache[tuple[int, bytes], str] = Cache(
    lambda key: (
        ""
        if key[0] not in (4, 6)
        else socket.inet_ntop(
            socket.AF_INET if key[0] == 4 else socket.AF_INET6, key[1][: 4 if key[0] == 4 else 16]
        )
    )
)
"""(IP version, 16 bytes with the address in front, network byte order) to text."""
ZONED: Cache[Address, str] = Cache(
    lambda key: f"{ADDRESSES[key[:2]]}%{STRINGS[key[2]]}" if key[2] else ADDRESSES[key[:2]]
)
"""The same with its zone, as `zones` returns it, to text: `fe80::1%eth0` (RFC 4007)."""
BRACKETED: Cache[Address, str] = Cache(lambda key: f"[{ZONED[key]}]" if key[0] == 6 else ZONED[key])
"""The same as it stands before a port."""
_NO_DEVICE = bytes(16)
_IPV4: Cache[bytes, Address] = Cache(lambda raw: (4, raw, b""))
PROTOCOLS = ("TCP", "UDP")
_LINK_LOCAL = ("fe8", "fe9", "fea", "feb")
"""What addresses of fe80::/10 begin with: they mean something only beside an interface."""
_NOTHING = frozenset({("0.0.0.0", 0), ("[::]", 0)})
"""The far end of a socket that is connected to nothing."""
_BOUND = frozenset({"LISTEN", "INACTIVE", "PUBLISHED"})
"""The states in which a socket receives whatever is sent to its address."""
_owners: Callable[[Batch], Sequence[Container]] = attrgetter("owners")


def zones(batch: Batch, address: str) -> Sequence[bytes]:
    """Return the device that each link-local address belongs to, b"" for other addresses."""
    versions, devices = batch.fields["version"], batch.fields.get("zone", ())
    if 6 not in versions or devices.count(_NO_DEVICE) == len(devices):
        return [b""] * len(batch)
    return [
        device if version == 6 and raw[0] == 0xFE and raw[1] & 0xC0 == 0x80 and device[0] else b""
        for version, raw, device in zip(versions, batch.fields[address], devices, strict=True)
    ]


def addresses(batch: Batch, address: str) -> list[Address]:
    """Return (IP version, bytes, zone) of each address: what ZONED and BRACKETED are asked for."""
    versions, raw = batch.fields["version"], batch.fields[address]
    if versions.count(4) == len(versions):
        return _IPV4.of(raw)  # as most are: a new tuple for each costs more
    return list(zip(versions, raw, zones(batch, address), strict=True))


def zone_column(name: str, address: str, path: str = "") -> Column:
    """Return the column of the device that a link-local address belongs to."""
    return Column(
        name,
        path,
        width=10,
        read=lambda batch: STRINGS.of(zones(batch, address)),
        description="Interface of a link-local address.",
    )


def peers(batch: Batch) -> Sequence[Container]:
    """Return the owner of the far end, HOST if unknown."""
    return batch.fields.get("peer") or [HOST] * len(batch)


END_KINDS = ("container", "pod", "svc", "raw")
NAMED_ENDS = ("c/", "p/", "s/")
"""What the names of ends begin with."""


def end_kind(container: Container) -> str:
    """Return the kind of an end of a connection: `svc`, `pod`, `container`, or `raw` (none)."""
    if container.service:
        return "svc"
    if container.pod_name:
        return "pod"
    return "container" if container.name else "raw"


def end_name(container: Container) -> str:
    """Return the name of a service, a pod or a container, empty for what is none."""
    return container.service or container.pod_name or container.name


def shown_end(container: Container) -> str:
    """Return the name as Inspektor Gadget shows it; empty for none of these."""
    if container.service:
        return f"s/{container.pod_namespace}/{container.service}"
    if container.pod_name:
        return f"p/{container.pod_namespace}/{container.pod_name}"
    return f"c/{container.name}" if container.name else ""


def named_end(
    addresses: Sequence[str], ports: Sequence[int], whose: Sequence[Container]
) -> list[str]:
    """Return each end as `c/NAME:PORT`, `p/…/POD:PORT`, `s/…/SERVICE:PORT` or `r/ADDRESS:PORT`."""
    names = of_each(whose, shown_end)
    return [
        f"{name or f'r/{address}'}:{port}"
        for name, address, port in zip(names, addresses, ports, strict=True)
    ]


def end_columns(
    name: str, whose: Callable[[Batch], Sequence[Container]] | None, *, paths: bool = False
) -> tuple[Column, ...]:
    """Return the columns that name an end of a connection; in JSON of their own with `paths`.

    The end is the events' owners' where `whose` is None.
    """
    parts: Mapping[str, Callable[[Container], str]] = {
        "name": end_name,
        "namespace": attrgetter("pod_namespace"),
        "kind": end_kind,
    }

    def column(part: str, of: Callable[[Container], str]) -> Column:
        path = f"{name}.{part}" if paths else ""
        return Column(
            f"{name}.{part}",
            path,
            least=0 if part == "kind" else 8,
            read=(lambda batch: of_each(whose(batch), of)) if whose else None,
            of_owner=None if whose else of,
            values=END_KINDS if part == "kind" else (),
            description=_END_PARTS[part],
        )

    return tuple(column(part, of) for part, of in parts.items())


_END_PARTS = {
    "name": "Service, pod or container with this address, empty if unknown.",
    "namespace": "Kubernetes namespace of that service or pod, empty if none.",
    "kind": "Kind of this end: container, pod, svc, or raw (unknown).",
}


def endpoint_columns(
    name: str, address: str, port: str, *, far: bool = False, proto: str = "TCP", width: int = 22
) -> tuple[Column, ...]:
    """Return the columns of one end of a connection: `name` as ADDR:PORT, `name.addr`, …

    `address` and `port` are fields of the record; its `version` field is 4 or 6. The near end
    belongs to the event's owner, the `far` one to the container with that address.
    """
    whose = peers if far else _owners

    def keys(batch: Batch) -> Sequence[Address]:
        return addresses(batch, address)

    def both(batch: Batch) -> Sequence[str]:
        ends = zip(keys(batch), batch.fields[port], strict=True)
        return [f"{BRACKETED[key]}:{number}" for key, number in ends]

    def named(batch: Batch) -> Sequence[str]:
        return named_end(BRACKETED.of(list(keys(batch))), batch.fields[port], whose(batch))

    def alone(batch: Batch) -> Sequence[str]:
        return ADDRESSES.of(list(zip(batch.fields["version"], batch.fields[address], strict=True)))

    def zoned(batch: Batch) -> Sequence[str]:
        return ZONED.of(list(keys(batch)))

    return (
        Column(
            name,
            name,
            width=width,
            drop=0 if far else 2,
            hidden=False,
            read=both,
            end=End(keys, port, whose, proto),
            resolved=named,
            description=f"{'Far' if far else 'Near'} end, as ADDRESS:PORT.",
        ),
        Column(f"{name}.addr", read=alone, text=zoned, description="IP address."),
        zone_column(f"{name}.zone", address),
        Column(
            f"{name}.port",
            kind=Kind.INTEGER,
            width=5,
            right=True,
            read=lambda b: b.fields[port],
            description="Port.",
        ),
        *end_columns(name, peers if far else None),
    )


RESOLVE = Param(
    "resolve",
    ("--resolve",),
    "flag",
    "Show addresses as names: c/CONTAINER, p/NAMESPACE/POD, s/NAMESPACE/SERVICE, r/ADDRESS "
    "(unknown).",
)


def _bound(named: str, plain: str) -> str:
    """Return an address that is bound and, in parentheses, whose it is if that is known."""
    name = named.rpartition(":")[0]
    return f"{plain}({name})" if plain and name.startswith(NAMED_ENDS) else plain


def _text_zones(batch: Batch, address: str) -> Sequence[str]:
    """Return the interface of each link-local address, "" for the others."""
    interfaces = batch.fields["interface"]
    if not any(interfaces):
        return interfaces
    return [
        interface if text.startswith(_LINK_LOCAL) else ""
        for text, interface in zip(batch.fields[address], interfaces, strict=True)
    ]


def _bracketed(batch: Batch, address: str) -> list[str]:
    """Return each address as it stands before a port: `[fe80::1%eth0]` is RFC 4007's form."""
    return [
        (f"[{text}%{zone}]" if zone else f"[{text}]") if ":" in text else text
        for text, zone in zip(batch.fields[address], _text_zones(batch, address), strict=True)
    ]


def text_end_columns(
    name: str, address: str, port: str, *, far: bool = False, **shown: Any
) -> tuple[Column, ...]:
    """Return the columns of one end of sockets whose addresses are text; see `endpoint_columns`.

    The field `proto` is its protocol. In JSON each part is its own column: most are the same in
    many rows, and so cost nothing.
    """
    whose = peers if far else _owners

    def both(batch: Batch) -> Sequence[str]:
        ends = zip(_bracketed(batch, address), batch.fields[port], strict=True)
        return ["" if end in _NOTHING else f"{end[0]}:{end[1]}" for end in ends]

    def named(batch: Batch) -> Sequence[str]:
        shown = named_end(_bracketed(batch, address), batch.fields[port], whose(batch))
        return [
            _bound(text, plain) if state in _BOUND else text
            for text, plain, state in zip(shown, both(batch), batch.fields["state"], strict=True)
        ]

    return (
        Column(
            name,
            width=22,
            drop=12 if far else 0,
            read=both,
            resolved=named,
            **shown,
            description=f"{'Far' if far else 'Near'} end, as ADDRESS:PORT.",
        ),
        Column(
            f"{name}.addr",
            f"{name}.addr",
            read=lambda batch: batch.fields[address],
            description="IP address.",
        ),
        Column(
            f"{name}.zone",
            f"{name}.zone",
            width=10,
            read=lambda batch: _text_zones(batch, address),
            description="Interface of a link-local address.",
        ),
        integer(f"{name}.port", f"{name}.port", port, width=5, right=True, description="Port."),
        Column(
            f"{name}.proto",
            f"{name}.proto",
            read=lambda batch: batch.fields["proto"],
            width=5,
            values=PROTOCOLS,
            description="Protocol: TCP or UDP.",
        ),
        integer(
            f"{name}.version",
            f"{name}.version",
            "version",
            width=3,
            description="IP version, 4 or 6.",
        ),
        *end_columns(name, whose if far else None, paths=True),
    )
