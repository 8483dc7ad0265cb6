"""Podman as root, asked through its Docker-compatible API with the docker SDK."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ig.containers.container import Change, Container
from ig.containers.engine_api import Engine

NAME = "podman"
SOCKET = "/run/podman/podman.sock"
EVENTS = ("create", "start", "rename", "die", "died", "remove")


class Podman:
    """Podman's service: the `Runtime` at the given socket, or the rootful one."""

    name = NAME

    def __init__(self, socket: str | None = None) -> None:
        self._engine = Engine(NAME, socket or SOCKET, EVENTS)
        self.socket = self._engine.socket

    def watch(self, stopped: Callable[[], bool]) -> Iterator[Change]:
        """Yield the containers, then their changes: see `Runtime.watch`."""
        return self._engine.watch(stopped)

    def stop(self) -> None:
        """Make a blocked `watch` in another thread return soon."""
        self._engine.stop()

    def details(self, container: Container) -> Container:
        """Give the container with its pid, start, addresses and ports."""
        return self._engine.details(container)

    def version(self) -> str:
        """Ask the engine for its version."""
        return self._engine.version()
