"""What all tests share: how skips count, and where nothing may be written."""

import os
import signal
import tempfile
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

from tests.features import FEATURES

CI = os.environ.get("CI") == "true"

# Tests run as root must leave nothing of root's in the checkout.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", f"{tempfile.gettempdir()}/ig-hypothesis")
settings.register_profile("ig", database=None, deadline=None, derandomize=CI)
settings.load_profile("ig")


def pytest_configure() -> None:
    """Let SIGTERM end the tests as Ctrl-C does, so that what they started is stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a feature that this kernel lacks."""
    for marker in item.iter_markers("needs"):
        for feature in marker.args:
            if not FEATURES[feature]():
                pytest.skip(f"no {feature} here; where there is, this is covered")


def pytest_exception_interact(node: pytest.Item | pytest.Collector, report: Any) -> None:
    """Print a failure at once too where a run is so long that its end may not be seen."""
    reporter = node.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and os.environ.get("IG_TESTS_AT_ONCE"):
        reporter.write_line(f"\n{node.nodeid}\n{report.longreprtext}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail in CI what was skipped for another reason than a kernel's feature."""
    report = yield
    allowed = any(True for _ in item.iter_markers("needs"))
    if CI and report.skipped and not allowed and not hasattr(report, "wasxfail"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail in CI a module that was skipped as a whole."""
    report = yield
    if CI and report.skipped:
        _fail(report)
    return report


def _fail(report: Any) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"skipped, which CI does not allow: {reason}"
