"""`ig` in a container with what the DaemonSet gives it, with less, and as the image has it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ig.kernel.mounts import lists_tracepoints
from tests.host import daemonset, image
from tests.host.capable import run_with
from tests.host.engine import Engine, Running, some_engine
from tests.host.prometheus import read
from tests.host.tracer import IG
from tests.host.waiting import until

CHECKOUT = Path(__file__).parents[2]
BPF = 1 << 39
TRACEFS = "/sys/kernel/tracing"
Start = Callable[..., Running]


@pytest.fixture
def tracefs(tmp_path: Path) -> Iterator[str]:
    """Where tracefs is mounted: at its usual place, else at one of the test's own."""
    if lists_tracepoints(TRACEFS):
        yield TRACEFS
        return
    subprocess.run(["mount", "-t", "tracefs", "tracefs", tmp_path], check=True)
    yield str(tmp_path)
    subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def pod(engine: Engine, tracefs: str) -> Start:
    """Start ig as the DaemonSet does, with the checkout and this host's /usr as its image.

    `change` may change docker-py's options.
    """

    def start(
        *arguments: object, change: Callable[[dict[str, Any]], object] = lambda _: None
    ) -> Running:
        options = daemonset.options(engine.socket, tracefs)
        options["volumes"][str(CHECKOUT)] = {"bind": str(CHECKOUT), "mode": "ro"}
        options["environment"]["DOCKER_HOST"] = engine.socket
        change(options)
        return run_with(engine, "ig", [IG, *arguments], **options)

    return start


def output(running: Running) -> str:
    return "\n".join(running.reports.lines)


def says(running: Running, text: str) -> None:
    """Wait until a container has printed a text."""
    until(lambda: text in output(running), f"{text!r}")


def check_counts(engine: Engine, exporter: Running) -> None:
    """Check that a load of two other containers is counted exactly, by their names."""
    says(exporter, "serving http://0.0.0.0:9435/metrics")
    web, (db, port) = engine.idle("web"), engine.serve("db")
    engine.connect(web, db.address, port, "--count", 13)
    engine.connect(web, db.address, 9, "--count", 7)

    def counted() -> bool:
        page = read(f"http://{exporter.address}:9435/metrics")
        lines = re.findall(rf'^ig_tcp_connects_total{{container="{web.name}",.*', page, re.M)
        return sorted(line.partition('destination="')[2] for line in lines) == [
            f'c/{db.name}",port="9",outcome="refused"}} 7',
            f'c/{db.name}",port="ephemeral",outcome="established"}} 13',
        ]

    until(counted, "the counts")
    assert read(f"http://{exporter.address}:9435/healthz") == "ok\n"
    status = Path(f"/proc/{exporter.pid}/status").read_text()
    assert re.findall(r"Cap(?:Eff|Prm):\t(\w+)", status) == [f"{BPF:016x}"] * 2


def test_pod_counts_what_other_containers_do(engine: Engine, pod: Start) -> None:
    check_counts(engine, pod(*daemonset.arguments(), "--interval", 0.2))


def check_trace(engine: Engine, start: Start) -> None:
    """Check that one attempt of another container is reported, with all that is known of it."""
    web = engine.idle("web")
    words = ("trace", "tcpconnect", "-c", web.name, "-o", "json", "--ready-file", "/tmp/ready")
    tracer = start(*words)
    until(Path(f"/proc/{tracer.pid}/root/tmp/ready").exists, "ig to be ready")
    engine.connect(web, "127.0.0.1", 9)
    (event,) = tracer.reports.matching(lambda each: each.get("type") == "connect", 1)
    assert event["runtime"]["containerName"] == web.name
    assert event["k8s"]["node"] == daemonset.NODE
    assert (event["outcome"], event["proc"]["mntns_id"]) == ("refused", web.mntns)


def test_pod_traces_what_other_containers_do_and_names_its_node(engine: Engine, pod: Start) -> None:
    check_trace(engine, pod)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    """Return what takes a capability, a mount or another option from those of the pod."""

    def change(options: dict[str, Any]) -> None:
        volumes = options["volumes"]
        if name in options["cap_add"]:
            options["cap_add"].remove(name)
        elif name == "pid_mode":
            del options["pid_mode"]
        else:
            del volumes[next(path for path, to in volumes.items() if name in to["bind"])]

    return change


@pytest.mark.parametrize(
    ("missing", "command", "said"),
    [
        ("BPF", "export", "--cap-add BPF --cap-add PERFMON"),
        ("PERFMON", "export", "--cap-add BPF --cap-add PERFMON"),
        (TRACEFS, "export", f"--volume {TRACEFS}:{TRACEFS}:ro"),
        ("docker.sock", "export", "docker.sock (no such socket)"),
        ("pid_mode", "doctor", "only this PID namespace is visible, not the whole host"),
    ],
)
def test_pod_says_what_it_lacks(pod: Start, missing: str, command: str, said: str) -> None:
    words = daemonset.arguments() if command == "export" else [command]
    says(pod(*words, change=without(missing)), said)


@pytest.fixture(scope="module")
def builder() -> Iterator[tuple[Engine, str]]:
    """An engine, and the image that it has built."""
    with some_engine(image.storage()) as engine, image.built(engine) as name:
        yield engine, name


@pytest.mark.anywhere
def test_image_counts_and_traces_with_the_privileges_of_the_manifest(
    builder: tuple[Engine, str], tracefs: str
) -> None:
    engine, name = builder

    def start(*arguments: object) -> Running:
        options = daemonset.options(engine.socket, tracefs) | {"image": name}
        options["environment"]["DOCKER_HOST"] = engine.socket
        return run_with(engine, "ig", arguments, **options)

    sdk = "import opentelemetry.exporter.otlp.proto.http"
    found = engine.run(
        "sdk",
        ["-c", sdk],
        image=name,
        entrypoint="/usr/local/lib/ig/venv/bin/python",
        network_mode="none",
        read_only=True,
    )
    assert found.finished() == []
    engine.remove(found)
    exporter = start(*daemonset.arguments(), "--interval", 0.2)
    check_counts(engine, exporter)
    engine.clear()
    check_trace(engine, start)
