"""Find the container runtimes: each is a module of this package with a line in `KNOWN`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module

from ig.containers.container import Runtime
from ig.errors import UsageError

KNOWN = {
    "docker": ("ig.containers.docker", "Docker"),
    "containerd": ("ig.containers.containerd", "Containerd"),
    "podman": ("ig.containers.podman", "Podman"),
    "cri-o": ("ig.containers.cri", "Cri"),
}
"""Name on the command line -> module and class; of two that name a container, the first wins."""
ALIASES = {"crio": "cri-o"}


def discover(
    names: Sequence[str] | None = None,
    *,
    docker_socket: str | None = None,
    containerd_socket: str | None = None,
    podman_socket: str | None = None,
    crio_socket: str | None = None,
    containerd_namespace: str | None = None,
) -> list[Runtime]:
    """Give the runtimes of those names, all if None, each at its socket, the usual one if None.

    Nothing is asked of them yet. Raises UsageError for a name that is not known.
    """
    arguments = {
        "docker": {"socket": docker_socket},
        "containerd": {"socket": containerd_socket, "namespace": containerd_namespace},
        "podman": {"socket": podman_socket},
        "cri-o": {"socket": crio_socket},
    }
    wanted = set(KNOWN) if names is None else {_known(name) for name in names}
    found: list[Runtime] = []
    for name, (module, kind) in KNOWN.items():
        if name in wanted:
            found.append(getattr(import_module(module), kind)(**arguments[name]))
    return found


def asked(
    names: Sequence[str] | None = None,
    *,
    docker_socket: str | None = None,
    containerd_socket: str | None = None,
    podman_socket: str | None = None,
    crio_socket: str | None = None,
) -> frozenset[str]:
    """Give the runtimes asked for by name, socket or DOCKER_HOST: their absence is worth a word."""
    docker_socket = docker_socket or os.environ.get("DOCKER_HOST")
    sockets = (docker_socket, containerd_socket, podman_socket, crio_socket)
    given = {name for name, socket in zip(KNOWN, sockets, strict=True) if socket}
    return frozenset(given | {_known(name) for name in names or ()})


def _known(name: str) -> str:
    plain = name.strip().lower()
    plain = ALIASES.get(plain, plain)
    if plain not in KNOWN:
        raise UsageError(
            f"There is no container runtime {name!r}.", remedy=f"Known are: {', '.join(KNOWN)}."
        )
    return plain
