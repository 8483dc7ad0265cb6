"""Podman as root, asked through its Docker-compatible API."""

from __future__ import annotations

from ig.containers.engine_api import Engine

NAME = "podman"
SOCKET = "/run/podman/podman.sock"
EVENTS = ("create", "start", "rename", "die", "died", "remove")


class Podman(Engine):
    """Podman's service: the `Runtime` at the given socket, or the rootful one."""

    def __init__(self, socket: str | None = None) -> None:
        super().__init__(NAME, socket or SOCKET, EVENTS)
