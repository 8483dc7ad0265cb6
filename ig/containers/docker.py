"""Docker, asked through its HTTP API."""

from __future__ import annotations

import os

from ig.containers.engine_api import Engine

NAME = "docker"
SOCKET = "/var/run/docker.sock"
EVENTS = ("create", "start", "rename", "die", "destroy")


class Docker(Engine):
    """A Docker engine: the `Runtime` at the given socket, DOCKER_HOST, or Docker's usual one."""

    def __init__(self, socket: str | None = None) -> None:
        super().__init__(NAME, socket or os.environ.get("DOCKER_HOST") or SOCKET, EVENTS)
