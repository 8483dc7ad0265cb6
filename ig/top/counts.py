"""Rows of what the kernel has counted in an interval: attempts, their latencies, and accepts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from ig.attempts import ESTABLISHED
from ig.container import HOST
from ig.ends import ADDRESSES
from ig.gadget import Batch
from ig.summary import ACCEPT, CONNECT, UNANSWERED, measures
from ig.top.rows import Row
from ig.top.traffic import End


def rows_of(batch: Batch, accepted: bool) -> list[Row]:
    """Return a row for each pair; of accepts if `accepted`, else of attempts to connect.

    The batch is one of a pipeline that counts (see ig.summary), with far ends named.
    """
    rows: dict[Hashable, Row] = {}
    fields = batch.fields
    ports = fields["sport" if accepted else "dport"]
    ends = zip(fields["version"], fields["daddr"], fields["other"], strict=True)
    peers = fields["peer"]
    for place, (end, measure) in enumerate(zip(ends, measures(batch), strict=True)):
        if measure.type != (ACCEPT if accepted else CONNECT) or not measure.number:
            continue
        owner, peer, port = batch.owners[place], peers[place], ports[place]
        key = id(owner), id(peer) if peer is not HOST else end[:2], port, end[2]
        row = rows.get(key)
        if row is None:
            near, far = (port, 0) if accepted else (0, port)
            address = "" if end[2] else ADDRESSES[end[:2]]
            row = rows[key] = Row(owner, accepted, peer, address, near, far)
            row.other = bool(end[2])
        if accepted or measure.outcome == ESTABLISHED:
            row.new += measure.number
        elif measure.outcome != UNANSWERED:
            row.failed += measure.number
        if not accepted:
            row.latencies.add(measure.bucket, measure.number, measure.longest)
    return list(rows.values())


def accepted_at(batch: Batch) -> Iterator[End]:
    """Yield where connections were accepted, of a batch as that of `rows_of`."""
    fields = batch.fields
    names = ("type", "other", "netns", "version", "saddr", "sport")
    for kind, other, netns, version, address, port in zip(
        *(fields[name] for name in names), strict=True
    ):
        if kind == ACCEPT and not other:
            yield netns, ADDRESSES[version, address], port
