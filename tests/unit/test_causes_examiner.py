"""Questions about attempts: which are answered, when, and what ends them."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from ig.causes import examiner
from ig.causes.cause import Attempt
from ig.causes.examiner import Answer, Examiner
from ig.causes.find import Causes
from ig.container import Container
from ig.kernel import netns
from tests.host.waiting import until

ATTEMPT = Attempt(netns.own(), "127.0.0.1", 9, "refused")


@contextmanager
def examining(causes: Causes) -> Iterator[Examiner]:
    running = Examiner(causes)
    try:
        yield running
    finally:
        running.close()


def answered(answer: Answer) -> Answer:
    until(lambda: answer.ready, "an answer")
    return answer


def test_examiner_goes_on_after_a_bug_and_says_where_it_was() -> None:
    def containers() -> NoReturn:
        raise ZeroDivisionError("bug")

    with examining(Causes(containers, 1)) as running:
        for port in (9, 10):
            answer = answered(running.ask(Attempt(ATTEMPT.netns, "127.0.0.1", port, "refused"), ()))
            assert answer.evidence is None
    assert running.bug.startswith("ZeroDivisionError: bug (test_causes_examiner.py:")


def test_examiner_ends_although_a_question_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examiner, "_AT_END", 0.01)
    asked, ending = threading.Event(), threading.Event()

    def containers() -> Iterable[Container]:
        asked.set()
        ending.wait()
        return ()

    try:
        with examining(Causes(containers, 1)) as running:
            answer = running.ask(ATTEMPT, ())
            asked.wait()
        assert not answer.ready
    finally:
        ending.set()
    answered(answer)
