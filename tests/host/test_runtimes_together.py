"""Several runtimes at once, and many containers of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ig.containers.index import Index
from ig.containers.runtimes.containerd import Containerd
from ig.containers.runtimes.docker_api import Docker
from tests.host.runtime_drivers import ContainerdEngine, DockerEngine, serving
from tests.host.runtimes import BOUND, IMAGE, SLEEP, cgroup_of, followed

MANY = 500


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[DockerEngine]:
    folder = tmp_path_factory.mktemp("d")
    with serving(DockerEngine(folder), folder, image) as engine:
        yield engine


@pytest.fixture
def containerd(tmp_path: Path, image: Path) -> Iterator[ContainerdEngine]:
    with serving(ContainerdEngine(tmp_path), tmp_path, image) as engine:
        yield engine


def test_container_of_the_same_name_in_two_runtimes_is_two(
    docker: DockerEngine, containerd: ContainerdEngine
) -> None:
    docker.run("twin")
    containerd.run("twin")
    try:
        with followed(docker.runtime(), containerd.runtime()) as following:
            twins = [following.index.details(each) for each in following.index.containers()]
            assert sorted(twin.runtime for twin in twins) == ["containerd", "docker"]
            assert [twin.name for twin in twins] == ["twin", "twin"]
            for twin in twins:
                assert following.index.find(cgroup_of(twin.pid))[0].runtime == twin.runtime
    finally:
        docker.remove("twin")
        containerd.remove("twin")


def test_docker_and_its_containerd_show_one_container_with_dockers_name(
    docker: DockerEngine,
) -> None:
    # containerd first: its word must not count for more because it is heard first.
    with followed(Containerd(docker.containerd), Docker(docker.socket)) as following:
        docker.run("once")
        try:
            started = following.until(
                lambda change: change.container.name == "once" and change.container.running
            )
            assert following.index.find([started.id]) == (started, True)
            assert [each.name for each in following.index.containers()] == ["once"]
            assert following.named("once").runtime == "docker"
        finally:
            docker.remove("once")


def test_lost_docker_leaves_its_names_while_its_containerd_goes_on(
    docker: DockerEngine, containerd: ContainerdEngine
) -> None:
    containerd.run("steady")
    try:
        with followed(docker.runtime(), containerd.runtime()) as following:
            docker.server.stop()
            assert following.said.get(timeout=BOUND).startswith("docker ")
            containerd.run("newcomer")
            try:
                following.expect("started", "newcomer")
            finally:
                containerd.remove("newcomer")
            docker.server.start()
            assert "docker answers again" in following.said.get(timeout=BOUND)
    finally:
        containerd.remove("steady")


def test_details_of_a_container_that_starts_are_asked_for(docker: DockerEngine) -> None:
    with followed(docker.runtime(), detailed=True) as following:
        docker.run("asked")
        try:
            # This engine has no bridge, so the pid is what shows that it was asked.
            following.until(
                lambda change: change.container.name == "asked" and change.container.pid > 0
            )
        finally:
            docker.remove("asked")


@pytest.mark.anywhere
def test_five_hundred_containers_are_all_known_once_synced(docker: DockerEngine) -> None:
    from docker import APIClient

    client = APIClient(f"unix://{docker.socket}", version="auto")
    made = [
        client.create_container(IMAGE, list(SLEEP), name=f"many-{number}", labels={"n": "1"})["Id"]
        for number in range(MANY)
    ]
    try:
        said: list[str] = []
        index = Index([docker.runtime()], said.append)
        index.start()
        index.wait_synced(BOUND)
        assert len(index.containers(stopped=True)) == MANY
        paths = [["docker", identifier] for identifier in made]
        assert all(index.find(path)[1] for path in paths)
        index.close()
    finally:
        for identifier in made:
            client.remove_container(identifier)
        client.close()
