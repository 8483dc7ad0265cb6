"""What tests of this kernel and of a real engine share."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ig.kernel import netns
from tests.features import sees_every_task
from tests.host.engine import Engine, PrivateEngine, some_engine
from tests.host.namespace import Namespace, stop_programs
from tests.host.runtimes import archive
from tests.host.terminal import Terminal
from tests.host.tracer import IG, Tracer
from tests.host.watched import WatchedNamespace
from tests.host.why import Traced

HERE = Path(__file__).parent
BENCH = HERE.parent / "bench"


ENGINES = {"engine", "private_engine", "docker_host", "docker", "kubelet", "town"}
"""Fixtures that start an engine."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts an engine, and what is run again; skip what needs root without it."""
    for item in items:
        for marker in item.iter_markers("shows"):
            item.user_properties += [("shows", kind) for kind in marker.args]
        if ENGINES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.engine)
    if os.geteuid() == 0:
        marked = [item for item in items if item.get_closest_marker("interrupts")]
        if marked and not sees_every_task():
            for item in marked:
                item.add_marker(pytest.mark.flaky(reruns=3))
        return
    skip = pytest.mark.skip(reason="needs root: sudo make test")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _no_program_stays() -> Iterator[None]:
    yield
    stop_programs()


@pytest.fixture(scope="session")
def _shared_engine() -> Iterator[Engine]:
    with some_engine() as shared:
        yield shared


@pytest.fixture
def engine(_shared_engine: Engine) -> Iterator[Engine]:
    """An engine to run containers with; those left at the test's end are removed."""
    yield _shared_engine
    _shared_engine.clear()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of an image for engines other than that one."""
    return archive(tmp_path_factory.mktemp("image"))


@pytest.fixture
def private_engine() -> Iterator[PrivateEngine]:
    """An engine of the test's own, not yet started, that it may stop and start again."""
    private = PrivateEngine()
    try:
        yield private
    finally:
        private.remove()


@pytest.fixture
def docker_host(
    new_namespace: Callable[[], Namespace],
) -> Iterator[tuple[Namespace, Engine]]:
    """A network namespace that forwards, and an engine with its usual bridge and rules there."""
    host = new_namespace()
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    private = PrivateEngine(host)
    try:
        private.start()
        engine = Engine(private.socket)
        try:
            yield host, engine
        finally:
            engine.close()
    finally:
        private.remove()


@pytest.fixture
def new_namespace() -> Iterator[Callable[[], Namespace]]:
    """Make network namespaces, for tests that need several."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    yield make
    for namespace in made:
        namespace.remove()


@pytest.fixture
def namespace(new_namespace: Callable[[], Namespace]) -> Namespace:
    """A network namespace of the test's own: nothing but `lo`."""
    return new_namespace()


@pytest.fixture
def start_ig() -> Iterator[Callable[..., Tracer]]:
    """Start the real command (see Tracer); it ends with the test at the latest."""
    assert IG.exists(), f"{IG} is not there: run the tests by `make test`"
    started: list[Tracer] = []

    def start(*arguments: object, **options: object) -> Tracer:
        started.append(Tracer(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for tracer in started:
        tracer.kill()


@pytest.fixture
def note_cause(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note a kind of cause that the test has seen, and its confidence, for the table of kernels."""
    noted = request.node.user_properties
    return lambda cause: noted.append(("cause", cause))


@pytest.fixture
def traced(start_ig: Callable[..., Tracer], note_cause: Callable[[str], None]) -> Traced:
    """Trace all connects of other network namespaces than the host's, with their causes."""
    others = ("--host", "-o", "json", "-F", f"netns!={netns.own()}")
    return Traced(start_ig("trace", "tcpconnect", "--why", *others), note_cause)


@pytest.fixture(scope="module")
def _shared_traces() -> Iterator[Callable[..., Tracer]]:
    started: dict[tuple[object, ...], Tracer] = {}

    def start(*arguments: object) -> Tracer:
        if arguments not in started:
            started[arguments] = Tracer(*arguments)
        return started[arguments]

    yield start
    try:
        for tracer in started.values():
            assert tracer.stop()[2] == 0
    finally:
        for tracer in started.values():
            tracer.kill()


@pytest.fixture
def watch(
    _shared_traces: Callable[..., Tracer], namespace: Namespace
) -> Callable[..., WatchedNamespace]:
    """Watch the test's namespace by a trace that all tests of a module share (JSON, `--host`)."""

    def start(*arguments: object) -> WatchedNamespace:
        return WatchedNamespace(_shared_traces(*arguments, "--host", "-o", "json"), namespace)

    return start


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., Terminal]]:
    """Start the real command on a terminal (see Terminal); it ends with the test at the latest."""
    started: list[Terminal] = []

    def start(*arguments: object, **options: Any) -> Terminal:
        started.append(Terminal(*arguments, **options))
        return started[-1]

    yield start
    for terminal in started:
        terminal.kill()


@pytest.fixture
def ig(start_ig: Callable[..., Tracer], engine: Engine) -> Callable[..., Tracer]:
    """Start the real command against the tests' engine (by DOCKER_HOST), JSON out."""

    def start(*arguments: object, **options: object) -> Tracer:
        options.setdefault("environment", {"DOCKER_HOST": engine.socket})
        return start_ig(*arguments, "-o", "json", **options)

    return start


@pytest.fixture
def connect_loop(tmp_path: Path) -> Path:
    """A program that connects, accepts and closes as fast as it can, so many times."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    built = tmp_path / "connect_loop"
    subprocess.run([compiler, "-O2", "-o", built, BENCH / "connect_loop.c"], check=True)
    return built
