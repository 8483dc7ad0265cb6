"""Find the container runtimes: each is a class of this package with a line in `KNOWN`."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from importlib import import_module

from ig.container import Runtime
from ig.errors import UsageError

KNOWN = {
    "docker": ("ig.containers.runtimes.docker_api", "Docker"),
    "containerd": ("ig.containers.runtimes.containerd", "Containerd"),
    "podman": ("ig.containers.runtimes.docker_api", "Podman"),
    "cri-o": ("ig.containers.runtimes.cri", "Cri"),
}
"""Name on the command line -> module and class; of two that name a container, the first wins."""
ALIASES = {"crio": "cri-o"}
PLACES = {
    "containerd": (
        "/run/k3s/containerd/containerd.sock",  # and RKE2's
        "/run/k0s/containerd.sock",
        "/var/snap/microk8s/common/run/containerd.sock",
        "/run/docker/containerd/containerd.sock",  # of a dockerd that starts its own
    ),
}
"""Where else a runtime is, beside its usual place."""
OF_USERS = {"docker": "docker.sock", "podman": "podman/podman.sock"}
"""Where rootless engines are, below each user's folder."""
USERS = "/run/user"


def discover(
    names: Sequence[str] | None = None,
    *,
    docker_socket: str | None = None,
    containerd_socket: str | None = None,
    podman_socket: str | None = None,
    crio_socket: str | None = None,
    containerd_namespace: str | None = None,
) -> list[Runtime]:
    """Return the runtimes of those names, all if None, each at its sockets.

    Several sockets of one runtime are given with commas between. Where none is given, it is the
    usual one, and the others that exist. Nothing is asked of them yet. Raises UsageError for a name
    that is not known.
    """
    given = {
        "docker": docker_socket or os.environ.get("DOCKER_HOST"),
        "containerd": containerd_socket,
        "podman": podman_socket,
        "cri-o": crio_socket,
    }
    further = {"containerd": {"namespace": containerd_namespace}}
    wanted = set(KNOWN) if names is None else {_known(name) for name in names}
    found: list[Runtime] = []
    for name, (module, kind) in KNOWN.items():
        if name in wanted:
            make = getattr(import_module(module), kind)
            sockets = _split(given[name]) or [None, *_others(name)]
            found += (make(socket=socket, **further.get(name, {})) for socket in sockets)
    return found


def _split(given: str | None) -> list[str | None]:
    return [each.strip() for each in (given or "").split(",") if each.strip()]


def _others(name: str) -> list[str]:
    """Return the sockets of a runtime that exist beside its usual one."""
    found = [place for place in PLACES.get(name, ()) if os.path.exists(place)]
    below = OF_USERS.get(name)
    for user in sorted(os.listdir(USERS), key=_number) if below and os.path.isdir(USERS) else ():
        place = f"{USERS}/{user}/{below}"
        if user.isdecimal() and _is_socket(place):
            found.append(place)
    return found


def _number(name: str) -> int:
    return int(name) if name.isdecimal() else 0


def _is_socket(path: str) -> bool:
    """Return whether a socket is there, and no link: where that leads is for its user to choose."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def asked(
    names: Sequence[str] | None = None,
    *,
    docker_socket: str | None = None,
    containerd_socket: str | None = None,
    podman_socket: str | None = None,
    crio_socket: str | None = None,
) -> frozenset[str]:
    """Return the runtimes asked for by name, socket or DOCKER_HOST: their absence is reported."""
    docker_socket = docker_socket or os.environ.get("DOCKER_HOST")
    sockets = (docker_socket, containerd_socket, podman_socket, crio_socket)
    given = {name for name, socket in zip(KNOWN, sockets, strict=True) if socket}
    return frozenset(given | {_known(name) for name in names or ()})


def _known(name: str) -> str:
    plain = name.strip().lower()
    plain = ALIASES.get(plain, plain)
    if plain not in KNOWN:
        raise UsageError(
            f"Unknown container runtime {name!r}.", f"Known runtimes: {', '.join(KNOWN)}"
        )
    return plain
