"""What `ig` knows of a container, whatever runtime reported it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

Identity = tuple[str, str, str]
"""Who reported a container, what its id is unique in, and the id."""


def is_id(text: str) -> bool:
    """Return whether a text is 64 hexadecimal digits and no more."""
    return re.match(r"[0-9a-f]{64}\Z", text) is not None


@dataclass(frozen=True, slots=True)
class Container:
    """One container; the empty strings and zeroes stand for what its runtime did not report."""

    id: str
    name: str
    runtime: str
    image: str = ""
    pid: int = 0
    """The first process, in the host's process namespace; 0 while none runs."""
    started: int = 0
    """Nanoseconds since the epoch."""
    running: bool = False
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    addresses: tuple[str, ...] = ()
    """The container's own IP addresses, as the runtime reports them."""
    ports: tuple[tuple[str, int, int], ...] = ()
    """Published ports: host address, host port, container port."""
    pod_namespace: str = ""
    pod_name: str = ""
    pod_container: str = ""
    pod_uid: str = ""
    sandbox: bool = False
    """A pause container: it holds a pod's namespaces and is hidden from lists."""
    scope: str = ""
    """What its id is unique in (a containerd namespace); empty for ids unique by themselves."""
    nested: str = ""
    """The id of a container within this one, of an engine that runs in it, where that is meant."""
    source: str = ""
    """Which of several sockets reported it (see `Index`); empty if the runtime's name says it."""
    cgroups: tuple[tuple[str, ...], ...] = ()
    """The cgroups of its first process: the names of each from its hierarchy's root down."""
    mntns: int = 0
    """The inode of its mount namespace, if no cgroup of its first process is its own; else 0."""
    networks: tuple[str, ...] = ()
    """The network of each of `addresses`; empty where networks are not reported."""
    netns: int = 0
    """The inode of its network namespace; 0 where it is not known."""
    joined: str = ""
    """The id of the container whose network namespace it was started in, if any."""
    exposed: tuple[int, ...] = ()
    """The TCP ports that it is made to listen on, as its image and its runtime say."""
    addressed: int = 0
    """When its addresses last changed, in ns since the epoch; 0 if that is not reported."""
    base: int = 0
    """The inode of the network namespace that its engine is in; 0 for the host's, -1 for another
    whose inode is unknown."""
    moved: bool = False
    """Whether its addresses may have changed since they were asked for."""
    service: str = ""
    """The name of a Kubernetes Service, in `pod_namespace`; for a far end that is one, not a
    container."""

    def copy(self, **changes: Any) -> "Container":
        """Return the container with other values in those fields.

        It takes a fifth of the time of `dataclasses.replace`, and each change of a container needs
        several. Raises KeyError for a field that there is not.
        """
        values = list(_VALUES(self))
        for name, value in changes.items():
            values[_PLACES[name]] = value
        other = object.__new__(Container)
        any(map(_SET, repeat(other), _FIELDS, values))  # a loop, twice as fast; each returns None
        return other

    @property
    def identity(self) -> Identity:
        """What distinguishes it from those of other engines too, also when its details change."""
        # Docker's containers are containerd's too: whoever reported one first, it is the same.
        return (self.source, "" if is_id(self.id) else self.scope, self.id)

    @property
    def engine(self) -> str:
        """The source of the runtime that reported it: no other has the same."""
        return self.source or self.runtime

    @property
    def named(self) -> bool:
        """Whether its name says more than its id."""
        return self.name not in ("", self.id, self.id[:12])

    @property
    def known(self) -> bool:
        """Whether a runtime reported it; else only its cgroup showed that it is a container."""
        return self.runtime != UNKNOWN_RUNTIME


_FIELDS = tuple(each.name for each in fields(Container))
_PLACES = {name: place for place, name in enumerate(_FIELDS)}
_VALUES = attrgetter(*_FIELDS)
_SET = object.__setattr__

UNKNOWN_RUNTIME = "unknown"
HOST = Container(id="", name="", runtime="")
"""The owner of what belongs to no container."""


class Change(NamedTuple):
    """One thing that a runtime reported: `container` as it is now, after `kind` happened to it.

    `kind` is one of `exists` (it was there when watching began), `created`, `started`, `renamed`,
    `updated` (its details became known), `exited`, `removed`, `synced` (no container: all that
    exist have been reported; what was not since the last `synced` is gone) and `resumed` (no
    container: changes are reported again, and none was missed; of Kubernetes alone).
    """

    kind: str
    container: Container = HOST


class Runtime(Protocol):
    """A container runtime that can be asked. None knows of the others."""

    name: str
    """What the runtime is called in columns and on the command line: `docker`, `podman`, …"""
    socket: str
    """Where it is asked: a path, or an address such as `tcp://…`."""

    def watch(self, stopped: Callable[[], bool]) -> Iterator[Change]:
        """Yield an `exists` for each container, one `synced`, then changes as they happen.

        Subscribes before it lists, so nothing is missed in between. Yields until `stop` is
        called or `stopped()` is true. Raises RuntimeUnavailable when the runtime does not answer,
        or no longer does.
        """
        ...

    def stop(self) -> None:
        """Make a blocked `watch` in another thread return soon."""
        ...

    def details(self, container: Container) -> Container:
        """Return the container with what events and lists leave out: pid, start, addresses, ports.

        Asks the runtime, so it may take seconds. Raises RuntimeUnavailable when it does not
        answer, or no longer knows the container.
        """
        ...

    def version(self) -> str:
        """Ask the runtime for its version, in its own words. Raises RuntimeUnavailable."""
        ...


class Cluster(Protocol):
    """The pods and Services of a Kubernetes cluster: ig.kubernetes.cluster.Cluster."""

    url: str
    """Where the API is asked."""
    files: Sequence[str]
    """The files that are read again and again, to ask it."""

    @property
    def pending(self) -> bool:
        """Whether the API has neither listed all nor failed."""

    def start(self) -> None:
        """Begin to follow them, without waiting."""

    def wait_synced(self, timeout: float) -> None:
        """Wait until all were listed or asking has failed, `timeout` seconds at most."""

    def close(self) -> None:
        """Stop following them. Raises what ended a thread of ours: a bug."""

    def find(self, address: str, port: int, moment: int, outgoing: bool) -> Container | None:
        """Return whose a far end was at a moment, in ns since the epoch; None if not known.

        `outgoing` is whether the near end is known to have connected to it.
        """


@runtime_checkable
class Listing(Protocol):
    """A runtime that is asked for its list again and again, since it reports no changes."""

    def wanted(self, identifier: str) -> None:
        """Have the list asked for soon, the first time that this container is wanted."""


@runtime_checkable
class Batching(Protocol):
    """A runtime that can read several changes at once instead of each as it comes."""

    def batch(self, batches: bool) -> None:
        """Read changes in batches from now on while they keep coming, or each as it comes."""

    def catch_up(self, seconds: float) -> bool:
        """Return whether there were changes to read; wait that long until they are applied."""
