"""What packaging/ has for Kubernetes, OpenTelemetry and Docker is valid, and says the same."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.features import collector
from tests.host import daemonset
from tests.host.daemonset import PACKAGING, documents
from tests.host.test_packaging_rules import promtool
from tests.host.waiting import PATIENCE

pytestmark = pytest.mark.anywhere
VERSIONS = ("1.30", "1.35")
SOCKET = "/run/docker.sock"
GUIDE = PACKAGING.parent / "docs" / "guide.md"


def changed(name: str) -> list[dict[str, Any]]:
    """Return the objects of a file as kubernetes-names.yaml says to change them."""
    text = (PACKAGING / name).read_text().replace("# - --kubernetes", "- --kubernetes")
    lines = [line for line in text.splitlines() if "automountServiceAccountToken" not in line]
    return list(yaml.safe_load_all("\n".join(lines)))


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(version: str) -> None:
    for objects in (
        documents("daemonset.yaml"),
        documents("kubernetes-names.yaml"),
        changed("daemonset.yaml"),
    ):
        for each in objects:
            kubernetes_validate.validate(each, version, strict=True)


def test_manifest_with_names_has_the_option_and_the_token_of_its_account() -> None:
    *_, account, pods = changed("daemonset.yaml")
    assert "automountServiceAccountToken" not in f"{account}{pods}"
    pod = pods["spec"]["template"]["spec"]
    assert "--kubernetes" in pod["containers"][0]["args"]
    role, binding = documents("kubernetes-names.yaml")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": pod["serviceAccountName"], "namespace": "ig"}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (rule,) = role["rules"]
    assert f"      resources: [{', '.join(rule['resources'])}]\n" in GUIDE.read_text()
    assert f"      verbs: [{', '.join(rule['verbs'])}]\n" in GUIDE.read_text()


def test_manifest_gives_no_token_and_probes_the_port_that_is_served() -> None:
    _, account, pods = documents("daemonset.yaml")
    pod, holder = pods["spec"]["template"]["spec"], daemonset.container()
    assert account["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False
    assert "hostNetwork" not in pod
    (port,) = holder["ports"]
    assert f"--prometheus=0.0.0.0:{port['containerPort']}" in holder["args"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert holder[name]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    annotations = pods["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])


def words(options: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the options of `docker run` that docker-py's are."""
    yield "--pid", options.pop("pid_mode")
    yield "--user", options.pop("user")
    yield "--cpus", f"{options.pop('nano_cpus') / 10**9:g}"
    yield "--memory", str(options.pop("mem_limit"))
    if options.pop("read_only"):
        yield ("--read-only",)
    for name, option in (
        ("cap_add", "--cap-add"),
        ("cap_drop", "--cap-drop"),
        ("security_opt", "--security-opt"),
    ):
        for value in options.pop(name):
            yield option, value
    for path, mount in options.pop("volumes").items():
        yield "--volume", f"{path}:{mount['bind']}:{mount['mode']}"
    for path, size in options.pop("tmpfs").items():
        yield "--tmpfs", f"{path}:{size}"
    assert options.keys() == {"environment"}


def test_docker_run_of_the_readme_gives_what_the_manifest_gives() -> None:
    text = (PACKAGING / "README.md").read_text()
    command = re.search(r"^    (docker run (?:.*\\\n)+.*)$", text, re.MULTILINE)
    assert command
    given = shlex.split(command[1].replace("\\\n", ""))
    image = daemonset.container()["image"]
    place = given.index(image)
    assert given[place + 1 :] == daemonset.arguments()
    found = re.findall(r" (--[a-z-]+)(?: (?!--)(\S+))?", " ".join(given[:place]))
    wanted = {(*each, "") if len(each) == 1 else each for each in words(daemonset.options(SOCKET))}
    ours = {"--name", "--detach", "--restart", "--publish"}
    assert {each for each in found if each[0] not in ours} == wanted
    assert ("--publish", "127.0.0.1:9435:9435") in found


@pytest.mark.needs("OpenTelemetry Collector")
def test_collector_takes_its_configuration() -> None:
    command = [str(collector()), "validate", f"--config={PACKAGING / 'otel-collector.yaml'}"]
    environment = {"OTLP_ENDPOINT": "http://127.0.0.1:4319"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_collector_scrapes_with_a_configuration_that_prometheus_takes(tmp_path: Path) -> None:
    (document,) = documents("otel-scrape.yaml")
    scrape = tmp_path / "prometheus.yaml"
    scrape.write_text(yaml.safe_dump(document["receivers"]["prometheus"]["config"]))
    promtool("check", "config", scrape)
    (together,) = documents("otel-collector.yaml")
    added = document["service"]["pipelines"]["metrics"]["receivers"]
    assert set(added) == {*together["receivers"], *document["receivers"]}
