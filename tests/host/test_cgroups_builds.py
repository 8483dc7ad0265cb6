"""Steps of a build: BuildKit runs them in cgroups of its own, and no engine lists them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.host.engine import Engine
from tests.host.tracer import Tracer

Start = Callable[..., Tracer]
PORT = 7123
STEP = f"nc -w 1 127.0.0.1 {PORT} </dev/null || true"


def context(engine: Engine) -> bytes:
    """Return a build's files, packed."""
    text = f"FROM {engine.image}\nRUN {STEP}\n".encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return packed.getvalue()


def build(engine: Engine, version: int) -> Iterator[str]:
    """Build by the old builder (1) or by BuildKit (2), and yield what it says of errors."""
    api: Any = engine.client.api
    answer = api._post(
        api._url("/build"),
        data=context(engine),
        params={"version": str(version), "nocache": "1", "t": f"{engine.prefix}-built"},
        headers={"Content-Type": "application/x-tar"},
        timeout=60,
    )
    for line in answer.iter_lines():
        if error := json.loads(line).get("error"):
            yield error


@pytest.mark.parametrize(("version", "runtime"), [(2, "buildkit"), (1, "docker")])
def test_step_of_a_build_is_a_container(
    start_ig: Start, engine: Engine, version: int, runtime: str
) -> None:
    environment = {"DOCKER_HOST": engine.socket}
    choice = ("-o", "json", "-F", f"dst.port=={PORT}", "--max-events", 1)
    tracer = start_ig("trace", "tcpconnect", *choice, environment=environment)
    assert list(build(engine, version)) == []
    try:
        (event,), _, _ = tracer.finished()
        assert event["runtime"]["runtimeName"] == runtime
        assert event["runtime"]["containerName"]
    finally:
        engine.client.images.remove(f"{engine.prefix}-built", force=True)
