"""Questions about attempts: which are answered, when, and what ends them."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import pytest

from ig.causes import find
from ig.causes.cause import Attempt
from ig.causes.evidence import Evidence
from ig.causes.find import Answer, Causes, Examiner
from ig.causes.packet import Packet
from ig.causes.way import Hop, Way
from ig.container import Container
from ig.kernel import netns
from ig.kernel.routes import Route
from tests.host.waiting import PATIENCE, until

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
    monkeypatch.setattr(find, "_AT_END", 0.01)
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


class Given(Causes):
    """Gives the evidence of the test, once it lets it go; notes the local ports asked about."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(tuple, 1)
        self.evidence, self.asked, self.go = evidence, list[int](), threading.Event()

    def examine(self, attempt: Attempt, *_: object, **__: object) -> Evidence:
        self.asked.append(attempt.source_port)
        self.go.wait(PATIENCE)
        return self.evidence


SENT = Packet("192.0.2.1", 0, "192.0.2.2", 80)
HOP = Hop(1, Route("unicast"), "", went=SENT)
PLAIN = Evidence("this host", Way((HOP,)))
TRANSLATED = Evidence("this host", Way((replace(HOP, by="this host, by nftables"),)))


@pytest.mark.parametrize(
    ("evidence", "asked"),
    [(PLAIN, [1]), (TRANSLATED, [1, 2, 3, 4]), (replace(PLAIN, doubt="by IPVS"), [1, 2, 3, 4])],
)
def test_examiner_shares_answers_unless_the_destination_is_translated(
    evidence: Evidence, asked: list[int]
) -> None:
    causes = Given(evidence)
    with examining(causes) as running:
        answers = [running.ask(replace(ATTEMPT, source_port=port), ()) for port in (1, 2, 3)]
        causes.go.set()
        assert [answered(answer).evidence for answer in answers] == [evidence] * 3
        last = running.ask(replace(ATTEMPT, source_port=4), ())
        assert answered(last).evidence == evidence
    assert causes.asked == asked


def test_examiner_shares_no_answer_between_sources_and_interfaces() -> None:
    causes = Given(PLAIN)
    causes.go.set()
    with examining(causes) as running:
        other = replace(ATTEMPT, source="192.0.2.9")
        for port, each in enumerate((ATTEMPT, other, replace(ATTEMPT, interface="eth1"))):
            answered(running.ask(replace(each, source_port=port), ()))
    assert causes.asked == [0, 1, 2]


def test_examiner_keeps_answers_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    causes = Given(PLAIN)
    causes.go.set()
    with examining(causes) as running:
        for port in range(1, 6):
            answered(running.ask(replace(ATTEMPT, port=port), ()))
        later = time.monotonic() + find._FRESH
        monkeypatch.setattr(time, "monotonic", lambda: later)
        running.ask(ATTEMPT, ())
        assert len(running._answers) == 1
