"""Leave out of a table of sockets those that hardly anybody asks for, and say how many they are."""

from __future__ import annotations

from ig.gadget import Batch
from ig.sockets.fields import TIME_WAIT

_RESOLVER = "127.0.0.11"
"""Where Docker's engine answers names, in each container of a user's network."""


def folded(batch: Batch, host: int, waiting: bool) -> tuple[Batch, str]:
    """Return the sockets without those in TIME_WAIT and the engine's, and a line that counts these.

    `host` is the id of the host's network namespace. Those in TIME_WAIT stay where `waiting`.
    """
    states, namespaces = batch.fields["state_raw"], batch.fields["netns_id"]
    waits = [state == TIME_WAIT and not waiting for state in states]
    resolves = [
        address == _RESOLVER and not port and namespace != host
        for address, port, namespace in zip(
            batch.fields["saddr"], batch.fields["dport"], namespaces, strict=True
        )
    ]
    counts = {"TIME_WAIT": sum(waits), f"of the engine's resolver ({_RESOLVER})": sum(resolves)}
    said = ", ".join(f"+{count} {what}" for what, count in counts.items() if count)
    if not said:
        return batch, ""
    keep = [not (one or other) for one, other in zip(waits, resolves, strict=True)]
    return batch.select(keep), f"{said}; --all shows them."
