"""Docker, containerd and Podman as they are: what each tells of its containers is known in time."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ig.container import HOST
from ig.errors import RuntimeUnavailable
from tests.host.runtime_drivers import ContainerdEngine, DockerEngine, Engine, PodmanEngine, serving
from tests.host.runtimes import BOUND, cgroup_of, followed
from tests.host.waiting import until


@pytest.fixture(scope="module", params=[DockerEngine, ContainerdEngine, PodmanEngine])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, image: Path
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("e")
    with serving(request.param(folder), folder, image) as started:
        yield started


@pytest.fixture
def web(engine: Engine) -> Iterator[str]:
    engine.run("web")
    yield "web"
    engine.remove("web")


def test_container_that_was_there_is_known_at_once(engine: Engine, web: str) -> None:
    with followed(engine.runtime()) as following:
        container = following.named(web)
        assert container.runtime == engine.runtime().name
        assert container.image.endswith("ig-box:latest")
        assert container.labels["ig.test"] == "1"
        assert container.started > 0
        path = cgroup_of(container.pid)
        found, final = following.index.find(path)
        assert (found.id, found.name, final) == (container.id, "web", True)
        assert following.index.find([*path, "container", "init.scope"])[0].id == container.id
        assert following.index.find(cgroup_of(1)) == (HOST, True)


@pytest.mark.anywhere
def test_it_prints_its_version(engine: Engine) -> None:
    def told() -> str:
        with suppress(RuntimeUnavailable):  # a slow machine's engine takes its time
            return engine.runtime().version()
        return ""

    assert re.match(r"v?\d+\.\d+", until(told, "the version"))


def test_new_container_is_reported_as_it_comes_and_goes(engine: Engine) -> None:
    with followed(engine.runtime()) as following:
        engine.run("fresh")
        try:
            following.expect("created", "fresh")
            following.expect("started", "fresh")
            assert following.named("fresh").pid > 0
        finally:
            engine.remove("fresh")
        following.expect("removed", "fresh")
        assert not following.index.containers()


def test_container_that_lived_an_instant_is_still_found(engine: Engine) -> None:
    with followed(engine.runtime()) as following:
        for number in range(3):
            engine.run_briefly(f"shorty-{number}")
            gone = following.expect("removed", f"shorty-{number}")
            found, final = following.index.find([gone.scope, gone.id])
            assert (found.name, final) == (f"shorty-{number}", True)


def test_name_is_the_id_where_there_are_no_names_or_follows_a_rename(
    engine: Engine, web: str
) -> None:
    with followed(engine.runtime()) as following:
        if isinstance(engine, ContainerdEngine):
            assert following.named(web).id == web
            return
        engine.rename(web, "shop")
        try:
            container = following.expect("renamed", "shop")
            assert following.index.find([container.id])[0].name == "shop"
        finally:
            engine.rename("shop", web)


def test_restarted_container_has_its_new_process(engine: Engine, web: str) -> None:
    with followed(engine.runtime()) as following:
        before = following.named(web)
        engine.restart(web)
        following.expect("exited", web)
        following.expect("started", web)
        after = following.named(web)
        assert after.id == before.id
        assert after.pid not in (0, before.pid)
        assert after.started > before.started


def test_engine_may_stop_and_come_back(engine: Engine) -> None:
    with followed(engine.runtime()) as following:
        engine.server.stop()
        assert "does not answer" in following.said.get(timeout=BOUND)
        engine.server.start()
        assert "answers again" in following.said.get(timeout=BOUND)
        assert following.said.empty()
        engine.run("later")
        try:
            container = following.expect("started", "later")
            assert following.index.find([container.scope, container.id])[0].name == "later"
        finally:
            engine.remove("later")


def test_blocked_watch_ends_when_it_is_stopped(engine: Engine) -> None:
    runtime = engine.runtime()
    synced = threading.Event()

    def follow() -> None:
        for change in runtime.watch(lambda: False):
            if change.kind == "synced":
                synced.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert synced.wait(BOUND)
    # The watch may not yet be reading again: it is told until it ends.
    for _ in range(10):
        runtime.stop()
        thread.join(BOUND / 10)
        if not thread.is_alive():
            break
    assert not thread.is_alive()
