"""Recognise containers by the names of their cgroups."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ig.container import UNKNOWN_RUNTIME, Container

ID_LENGTH = 64

# `<id>`, `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>`, `libpod-<id>.scope`, …:
# the systemd drivers put their name before the id, and new engines come with new names. A cgroup
# driver that is given systemd's form makes one directory of it: `kubepods-pod<uid>.slice:cri-
# containerd:<id>`.
_WITH_ID = r"(?s)(?:(.{1,190})[-:_])?([0-9a-f]{64})(?:\.scope)?\Z"

_ESCAPED = r"\\x([0-9a-f]{2})"


def container_id(component: str) -> str:
    """Return the 64 hexadecimal digits in one cgroup's name if that is a container's, else "".

    The monitors that sit beside containers (`crio-conmon-<id>.scope`, `libpod-conmon-<id>.scope`)
    belong to the host.
    """
    if len(component) < ID_LENGTH:
        return ""
    match = re.match(_WITH_ID, component)
    if match is None:
        return ""
    owner, identifier = match.groups()
    if owner is not None and (owner.endswith("conmon") or not owner[0].isalpha()):
        return ""
    return str(identifier)


# A cgroup's parent and its own name, and the runtime whose naming that is. The group `name` is the
# container's name, `id` its id; either stands for the other where there is but one.
_NAMINGS = tuple(
    (runtime, rf"(?s)(?:{pattern})\Z")
    for runtime, pattern in (
        # LXC since 4.0, 3.1, and before; Incus, LXD and Proxmox are the same.
        ("lxc", r"[^/]*/lxc\.payload\.(?P<name>[^/]+)"),
        ("lxc", r"(?:lxc|lxc\.payload)/(?P<name>[^/]+)"),
        # systemd-machined's: systemd-nspawn, libvirt's machines and containers.
        ("machine", r"machine\.slice/machine-(?P<name>[^/]+)\.scope"),
        ("machine", r"machine\.slice/systemd-nspawn@(?P<name>[^/]+)\.service"),
        ("machine", r"machine/(?P<name>[^/]+)\.libvirt-(?:qemu|lxc)"),
        # A step of a build, by dockerd or by buildkitd.
        ("buildkit", r"(?:buildkit|[^/]*-buildkit)/(?P<id>[a-z0-9]{25})"),
        ("buildkit", r"[^/]*/(?:runc|buildkit)-(?P<id>[a-z0-9]{25})\.scope"),
        # A task of ECS on Fargate: the task's id and a number.
        ("ecs", r"[^/]*/(?P<id>[0-9a-f]{32}-\d{1,20})"),
        # Nomad's allocations.
        ("nomad", r"[^/]*/(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(?P<name>[^/]+?))"
                  r"(?:\.scope)?"),
        # Cloud Foundry's Garden.
        ("garden", r"(?:garden|[^/]*)/(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){4})"),
        ("mesos", r"mesos/(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
        ("apptainer", r"[^/]*/(?P<id>(?:apptainer|singularity)-\d+)\.scope"),
        # runc and crun with systemd's driver and no engine above them.
        ("runc", r"[^/]*/runc-(?P<name>[^/]+)\.scope"),
        ("crun", r"[^/]*/crun-(?P<name>[^/]+)\.scope"),
    )
)  # fmt: skip
_MARKS = ("lxc", "machine", "buildkit", "-", "mesos")
"""One of these is in whatever fits a naming: what has none need not be matched."""


def recognised(parent: str, component: str) -> Container | None:
    """Return the container whose cgroup this must be by its name alone; None for any other.

    `parent` is the name of the cgroup above it, `component` its own. The runtime is the one whose
    naming it is, `unknown` where several name theirs so.
    """
    identifier = container_id(component)
    if identifier:
        # A pod of Podman's is a folder that holds its containers.
        if parent == "libpod_parent" and component == identifier:
            return None
        return Container(identifier, identifier[:12], UNKNOWN_RUNTIME)
    together = f"{parent}/{component}"
    if not any(mark in together for mark in _MARKS):
        return None
    for runtime, naming in _NAMINGS:
        match = re.match(naming, together)
        if match is not None:
            found = match.groupdict()
            name = _unescaped(found.get("name") or found["id"])
            return Container(found.get("id") or name, name, runtime, scope=runtime)
    return None


def _unescaped(name: str) -> str:
    """Return a unit's name as it was before systemd escaped it (systemd.unit(5))."""
    raw = re.sub(_ESCAPED, lambda match: chr(int(match[1], 16)), name)
    return raw.encode("latin-1", "replace").decode("utf-8", "replace") if raw != name else name


def normalised(path: Sequence[str], trusted: int | None) -> tuple[tuple[str, ...], int]:
    """Return a cgroup's path without the root's empty name, and how much of it is `trusted`."""
    names = tuple(path)
    limit = len(names) if trusted is None else trusted
    if "" not in names:
        return names, limit
    return tuple(filter(None, names)), sum(1 for name in names[: max(0, limit)] if name)
