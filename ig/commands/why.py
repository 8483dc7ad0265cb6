"""`--why`: adds the cause to each attempt that failed or was repeated, before output."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ig import c_text
from ig.attempts import OUTCOMES, TYPES
from ig.bpf.session import Source
from ig.causes.cause import Attempt, Cause
from ig.causes.find import Answer, Causes, Examiner, words_of
from ig.causes.signals import LEAVING, Signals, find
from ig.columns import STRINGS, enum_names
from ig.commands.setup import EXAMINING
from ig.commands.snapshot import known_by
from ig.containers.index import Index
from ig.ends import ADDRESSES
from ig.gadget import Batch
from ig.kernel.capabilities import holds
from ig.output.sink import Sink
from ig.output.stream import say

Result = TypeVar("Result")

_MOST_WAIT = 4.0  # seconds that an event waits for what is found about it, at most
_AT_END = 1.0  # the same when the trace has ended
_MOST_HELD = 65536  # events; with more, the first do not wait
_POLL = 0.01  # seconds
_CONNECT = TYPES.index("connect")
_WELL = {OUTCOMES.index(""), OUTCOMES.index("established")}
_DROPS = enum_names("tcp_why.c", "drop")
_LAYOUT = c_text.parse(c_text.read("tcp_why.c"), "signals")
_UNPACK = struct.Struct(f"={_LAYOUT.format}").unpack
_PARTS = ("kind", "where", "detail", "confidence")


def following(index: Index) -> Causes:
    """Return the finder of causes, subscribed to the index: it must precede the first change."""
    causes = Causes(index.containers, known=partial(known_by, index))
    index.subscribe(causes.on_change)
    return causes


@contextmanager
def explaining(sink: Sink, causes: Causes, source: Source) -> Iterator[CauseSink]:
    """Yield the sink that adds causes before another; report at the end what it could not see."""
    if missing := [each.name for each in EXAMINING if not holds(each)]:
        say(f"warning: --why: this host cannot be looked at in full without {', '.join(missing)}")
    examiner = Examiner(causes)
    explained = CauseSink(sink, examiner, source.signals_are_complete)
    try:
        yield explained
    finally:
        examiner.close()
        explained.report_missing()
        if missed := source.missed_signals():
            say(f"--why: the kernel skipped {missed} signals, of whatever connections")


@dataclass(slots=True)
class _Held:
    batch: Batch
    answers: dict[int, Answer]
    """By the place of the event in the batch."""
    due: float
    """When it is passed on in any case."""


class CauseSink:
    """The sink that holds events until their causes are found, and passes them on in order."""

    def __init__(self, sink: Sink, examiner: Examiner, complete: Callable[[], bool]) -> None:
        """`complete` returns whether no signal was missed."""
        self._sink, self._examiner, self._complete = sink, examiner, complete
        self.interval = sink.interval
        self._held: deque[_Held] = deque()
        self._reported: set[str] = set()
        self.unexamined = 0
        """Attempts for which the host was not looked at: too many failed, for example."""
        self.unjudged = 0
        """Attempts without a cause because of a bug of `ig`."""

    @property
    def held(self) -> int:
        """The number of events that are held."""
        return sum(len(each.batch) for each in self._held)

    def open(self) -> None:
        """Open the sink."""
        self._sink.open()

    def write(self, batch: Batch) -> None:
        """Ask about attempts that failed or were repeated, and pass on the events that are due."""
        sought = {
            place: self._sought(partial(self._asked, batch, place)) for place in _unwell(batch)
        }
        answers = {place: answer for place, answer in sought.items() if answer}
        self._held.append(_Held(batch, answers, time.monotonic() + _MOST_WAIT))
        self.release()

    def release(self) -> None:
        """Pass on the events that wait for nothing any more. Raises ReaderGone."""
        while self._held and self._is_due(self._held[0]):
            first = self._held[0]
            self._sink.write(self._with_causes(first))
            self._held.popleft()

    def tick(self, now: int) -> None:
        """End the sink's interval."""
        self._sink.tick(now)

    def lost(self, counts: Mapping[str, int]) -> None:
        """Pass the counts to the sink."""
        self._sink.lost(counts)

    def finish(self) -> None:
        """Pass on all events; wait a second at most for what is found. Raises ReaderGone."""
        ends = time.monotonic() + _AT_END
        while self._held:
            for each in self._held:
                each.due = min(each.due, ends)
            self.release()
            if self._held:
                time.sleep(_POLL)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()

    def report_missing(self) -> None:
        """Report how many causes may be missing."""
        if self.unjudged:
            say(f"--why: {self.unjudged} attempts have no cause because of a bug in ig")
        if self.unexamined:
            say(
                f"--why: {self.unexamined} attempts were not examined: too many failed at once, it "
                "took too long or failed; they have a cause only where the kernel gave a signal"
            )

    def _asked(self, batch: Batch, place: int) -> Answer:
        signals = _signals(batch, place)
        return self._examiner.ask(
            _attempt(batch, place), (signals.drop_netns, signals.answer_netns)
        )

    def _is_due(self, held: _Held) -> bool:
        if self.held > _MOST_HELD or time.monotonic() >= held.due:
            return True
        return all(each.ready for each in held.answers.values())

    def _with_causes(self, held: _Held) -> Batch:
        count = len(held.batch)
        columns: dict[str, list[str]] = {f"cause_{part}": [""] * count for part in _PARTS}
        complete = bool(held.answers) and self._complete()
        for place, answer in held.answers.items():
            cause = self._sought(partial(self._cause, held.batch, place, answer, complete))
            for part in _PARTS if cause else ():
                columns[f"cause_{part}"][place] = getattr(cause, part)
        return held.batch.adding(columns)

    def _cause(self, batch: Batch, place: int, answer: Answer, complete: bool) -> Cause | None:
        evidence = answer.evidence if answer.ready else None
        self.unexamined += evidence is None
        self._report_bug("this host was not looked at", self._examiner.bug)
        retransmits = batch.fields["retransmits"][place]
        attempt, signals = _attempt(batch, place), _signals(batch, place)
        return find(attempt, signals, answer.owner, evidence, retransmits, complete=complete)

    def _sought(self, seek: Callable[[], Result | None]) -> Result | None:
        """Return what is found of one attempt's cause, None also if a bug prevents that."""
        try:
            return seek()
        except Exception as error:
            self.unjudged += 1
            self._report_bug("an attempt has no cause", words_of(error))
            return None

    def _report_bug(self, what: str, words: str) -> None:
        """Report the first bug of a kind."""
        if words and what not in self._reported:
            self._reported.add(what)
            say(f"warning: --why: {what} because of a bug in ig: {words}")


def _unwell(batch: Batch) -> list[int]:
    """Return the places of the attempts that failed or are unanswered, or repeated their SYN."""
    outcomes, retransmits = batch.fields["outcome"], batch.fields["retransmits"]
    if not any(retransmits) and _WELL.issuperset(outcomes):
        return []
    return [
        place
        for place, (kind, outcome, repeated) in enumerate(
            zip(batch.fields["type"], outcomes, retransmits, strict=True)
        )
        if kind == _CONNECT and (repeated or outcome not in _WELL)
    ]


def _attempt(batch: Batch, place: int) -> Attempt:
    fields = {name: values[place] for name, values in batch.fields.items()}
    version = fields["version"]
    source = ADDRESSES[version, fields["saddr"]]
    return Attempt(
        fields["netns"],
        ADDRESSES[version, fields["daddr"]],
        fields["dport"],
        OUTCOMES[fields["outcome"]],
        fields["error"],
        "" if source in ("0.0.0.0", "::") else source,
        fields["sport"],
        fields["timestamp"],
        fields["waited"],
        STRINGS[fields["zone"]],
    )


def _signals(batch: Batch, place: int) -> Signals:
    values = _UNPACK(batch.fields["signals"][place])
    fields = dict(zip(_LAYOUT.names, values, strict=True))
    return Signals(
        _DROPS[fields["drop"]] if fields["drop"] else "",
        fields["dropped"] & ~LEAVING,
        bool(fields["dropped"] & LEAVING),
        fields["drop_netns"],
        fields["answer_netns"],
        fields["server_port"],
        (fields["icmp_type"], fields["icmp_code"]),
        fields["reset"],
        fields["drops"],
    )
