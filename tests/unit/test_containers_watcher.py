"""Details are asked for until they come, of however many containers start at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ig.container import Change, Container
from ig.containers import watcher
from ig.containers.watcher import Detailer
from tests.host.waiting import PATIENCE

WEB = Container("a" * 64, "web", "docker", running=True)
Start = Callable[[Callable[[Container], bool]], Detailer]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(watcher, "FIRST_RETRY", 0.01)
    started: list[Detailer] = []

    def begin(ask: Callable[[Container], bool]) -> Detailer:
        started.append(Detailer(ask))
        started[-1].start()
        return started[-1]

    yield begin
    for each in started:
        each.stop()


def test_question_that_failed_is_asked_again(start: Start) -> None:
    asked: queue.Queue[Container] = queue.Queue()
    answers = iter([False, False, True])

    def ask(container: Container) -> bool:
        asked.put(container)
        return next(answers)

    start(ask).on_change(Change("started", WEB))
    assert [asked.get(timeout=PATIENCE) for _ in range(3)] == [WEB] * 3


def test_container_that_ended_is_asked_about_no_more(start: Start) -> None:
    asked: queue.Queue[Container] = queue.Queue()
    other = replace(WEB, id="b" * 64)

    def ask(container: Container) -> bool:
        asked.put(container)
        return container is other

    questions = start(ask)
    questions.on_change(Change("started", WEB))
    asked.get(timeout=PATIENCE)
    questions.on_change(Change("exited", replace(WEB, running=False)))
    assert not questions.busy
    while not asked.empty():
        asked.get()
    questions.on_change(Change("started", other))
    assert asked.get(timeout=PATIENCE) == other


def test_burst_of_five_thousand_containers_is_asked_about_whole(start: Start) -> None:
    held, all_asked = threading.Event(), threading.Event()
    asked: set[str] = set()

    def ask(container: Container) -> bool:
        held.wait(PATIENCE)
        asked.add(container.id)
        if len(asked) == 5003:
            all_asked.set()
        return True

    questions = start(ask)
    for number in range(5003):
        questions.on_change(Change("started", replace(WEB, id=f"{number:064x}")))
    held.set()
    assert all_asked.wait(PATIENCE)


def test_runtime_that_gives_no_answer_delays_no_other(start: Start) -> None:
    asked: queue.Queue[str] = queue.Queue()

    def ask(container: Container) -> bool:
        asked.put(container.runtime)
        return container.runtime == "podman"

    questions = start(ask)
    for number in range(101):
        questions.on_change(Change("started", replace(WEB, id=f"{number:064x}")))
    questions.on_change(Change("started", replace(WEB, runtime="podman")))
    before = 0
    while asked.get(timeout=PATIENCE) != "podman":
        before += 1
    assert before < 101


def test_bug_while_asking_is_kept() -> None:
    failed = threading.Event()

    def ask(_container: Container) -> bool:
        raise ZeroDivisionError

    questions = Detailer(ask, failed.set)
    questions.start()
    questions.on_change(Change("started", WEB))
    assert failed.wait(PATIENCE)
    assert isinstance(questions.failure, ZeroDivisionError)
    assert not questions.busy
