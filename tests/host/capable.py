"""Containers with capabilities that an engine may be too old to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from docker.errors import APIError

from tests.host.engine import Engine, Running

_NEW = {"BPF", "PERFMON"}


def run_with(
    engine: Engine, name: str, command: Sequence[object], *, cap_add: Sequence[str], **options: Any
) -> Running:
    """Start a container as `Engine.run`, also with what Docker 20.10 of Debian 12 does not know.

    There a wrapper of runc adds these (`programs/runtime.py`).
    """
    try:
        return engine.run(name, command, cap_add=cap_add, **options)
    except APIError as error:
        if "unknown capability" not in str(error):
            raise
    known = [each for each in cap_add if each not in _NEW]
    given = ",".join(f"CAP_{each}" for each in cap_add if each in _NEW)
    options["environment"] = {**options.get("environment", {}), "IGT_CAPABILITIES": given}
    try:
        return engine.run(name, command, cap_add=known, runtime="igt", **options)
    except APIError as error:
        pytest.skip(f"this engine knows no CAP_BPF: {error}")
