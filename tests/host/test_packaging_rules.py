"""The alerts and the dashboard of packaging/: a real Prometheus has what they ask for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.daemonset import PACKAGING, documents
from tests.host.engine import Engine
from tests.host.namespace import PYTHON
from tests.host.prometheus import Prometheus, need, read
from tests.host.test_export import SEND, served
from tests.host.tracer import Tracer
from tests.host.waiting import PATIENCE, until

VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "5m",
    "$instance": ".*",
    "$container": ".*",
}
_SELECTOR = re.compile(r"(\w+)\s*\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
_OF_PROMETHEUS = {"job", "instance"}


def promtool(*words: object) -> str:
    """Run promtool and return what it prints; it must find nothing wrong."""
    command = [need("promtool"), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=PACKAGING
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    """Return the alerts."""
    (document,) = documents("alerts.yaml")
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    found: dict[str, Any] = json.loads((PACKAGING / "dashboard.json").read_text())
    return found


def panels() -> dict[str, list[str]]:
    """Return the expressions of each panel by its title, with Grafana's variables replaced."""
    found: dict[str, list[str]] = {}
    for panel in dashboard()["panels"]:
        assert panel["title"] not in found
        found[panel["title"]] = [replaced(each["expr"]) for each in panel["targets"]]
    return found


def replaced(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.mark.anywhere
def test_alerts_pass_promtool_and_fire_when_they_should() -> None:
    assert "SUCCESS: 4 rules found" in promtool("check", "rules", "alerts.yaml")
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yaml")
    tested = {
        (each["alertname"], bool(each["exp_alerts"]))
        for test in documents("alerts_test.yaml")[0]["tests"]
        for each in test["alert_rule_test"]
    }
    assert tested == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


@pytest.mark.anywhere
def test_dashboard_panels_do_not_overlap_and_have_a_data_source_and_a_number_each() -> None:
    found = dashboard()
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in found["panels"])
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    numbers = [panel["id"] for panel in found["panels"]]
    assert len(numbers) == len(set(numbers))
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(panel["datasource"] == source for panel in found["panels"])
    names = {each["name"] for each in found["templating"]["list"]}
    assert names == {"datasource", "instance", "container"}


def named(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics and the labels that an expression names."""
    labels = {
        name for _, inner in _SELECTOR.findall(expression) for name in _MATCHER.findall(inner)
    }
    for inner in _GROUPING.findall(expression):
        labels |= {name.strip() for name in inner.split(",")}
    return set(re.findall(r"\big_\w+", expression)), labels - _OF_PROMETHEUS


@pytest.fixture
def scraped(
    start_ig: Callable[..., Tracer], engine: Engine, tmp_path: Path
) -> Iterator[tuple[Prometheus, str]]:
    """A Prometheus, and the page of the exporter that it scrapes, which counts all that it can."""
    exporter = start_ig(
        *("export", "--prometheus", "127.0.0.1:0", "--interval", "0.2", "-r", "docker"),
        *("--bytes", "--open-connections", "--why"),
        environment={"DOCKER_HOST": engine.socket},
    )
    prometheus = Prometheus(tmp_path, served(exporter))
    yield prometheus, f"http://{served(exporter)}/metrics"
    prometheus.stop()


@pytest.mark.anywhere
def test_alerts_and_panels_name_what_is_served_and_have_results_after_a_load(
    engine: Engine, scraped: tuple[Prometheus, str]
) -> None:
    prometheus, page = scraped
    web, (db, port) = engine.idle("web"), engine.serve("db")
    web.namespace.drop(7)
    engine.program("holder", "connect", db.address, port, "--hold")
    prometheus.wait('ig_tcp_open_connections{state="established"} > 0')
    expressions = [each for panel in panels().values() for each in panel]
    empty = set(expressions)

    def answered() -> bool:
        engine.exec(web, [*PYTHON, "-c", SEND, db.address, port]).all()
        engine.connect(web, db.address, 9)
        engine.connect(web, db.address, 7, "--timeout", "1.5")
        empty.difference_update([each for each in empty if prometheus.query(each)])
        return not empty

    try:
        until(answered, "results", 2 * PATIENCE)
    except TimeoutError:
        raise AssertionError(f"no results: {empty}") from None
    for rule in rules():
        prometheus.query(rule["expr"])
    text = read(page)
    served_metrics = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    for name in re.findall(r"^# TYPE (\S+) histogram", text, re.MULTILINE):
        served_metrics |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    served_labels = set(re.findall(r'[{,](\w+)="', text))
    for expression in (*expressions, *(rule["expr"] for rule in rules())):
        metrics, labels = named(expression)
        assert metrics <= served_metrics, expression
        assert labels <= served_labels, expression
    for variable in dashboard()["templating"]["list"][1:]:
        selected = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert selected
        assert selected[2] == variable["name"]
        assert prometheus.query(f"count by ({selected[2]}) ({replaced(selected[1])})")
