"""Read a container's id off the name of its cgroup."""

import re

ID_LENGTH = 64
ID = re.compile(r"[0-9a-f]{64}\Z")

# `<id>`, `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>`, `libpod-<id>.scope`, …:
# the systemd drivers put their name before the id, and new engines come with new names.
_COMPONENT = re.compile(r"(?:([A-Za-z][A-Za-z0-9_.:\\-]{0,127})-)?([0-9a-f]{64})(?:\.scope)?\Z")


def container_id(component: str) -> str:
    """Give the 64 hexadecimal digits in one cgroup's name if that is a container's, else "".

    The monitors that sit beside containers (`crio-conmon-<id>.scope`, `libpod-conmon-<id>.scope`)
    belong to the host.
    """
    if len(component) < ID_LENGTH:
        return ""
    match = _COMPONENT.match(component)
    if match is None:
        return ""
    owner, identifier = match.groups()
    if owner is not None and owner.endswith("conmon"):
        return ""
    return str(identifier)
