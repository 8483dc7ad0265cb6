"""A Prometheus of the test's own, on loopback, and what it answers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.host.waiting import PATIENCE, until

CONFIGURATION = """
global: {{scrape_interval: 2s, scrape_timeout: 2s}}
scrape_configs:
  - job_name: ig
    static_configs: [{{targets: ['{target}']}}]
"""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def read(url: str) -> str:
    """Return what is at a URL of this host."""
    with _DIRECT.open(url, timeout=PATIENCE) as answer:
        return str(answer.read(), "utf-8")


def need(name: str) -> str:
    """Return the path of a program of Prometheus, or skip the test."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name} of the package prometheus")
    return path


class Prometheus:
    """A server that scrapes one target, and keeps what it got in a folder."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        configuration = folder / "prometheus.yml"
        configuration.write_text(CONFIGURATION.format(target=target))
        self.process = subprocess.Popen(
            [
                need("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.address}",
                "--log.level=error",
            ],
            start_new_session=True,
        )

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the number of each series; none while it does not answer yet."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            answer: dict[str, Any] = json.loads(read(url))
        except OSError:
            return []
        assert answer["status"] == "success", answer
        return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]

    def counts(self, expression: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return the last numbers of a metric by the values of these labels, `-` for a missing one.

        One scrape that the machine was too busy for changes nothing.
        """
        series = self.query(f"last_over_time({expression}[1h])")
        return {tuple(found.get(label, "-") for label in labels): n for found, n in series}

    def wait(self, expression: str) -> None:
        """Wait until the expression has a result: a comparison that holds."""
        until(lambda: self.query(expression), f"{expression} in Prometheus")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(PATIENCE)
