"""The order of events, who waits for whom, the limits, and the reports of losses."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest

from ig.bpf.session import ring_full
from ig.container import HOST, Change, Container
from ig.gadget import Batch, Column, Kind
from ig.kernel.cgroupfs import CgroupPath, Paths
from ig.output import stream
from ig.output.csv import CsvFormatter
from ig.output.sink import Chain, Formatter, Printer
from ig.output.stream import ReaderGone, Stream
from ig.query import Limit
from ig.trace import pipeline
from ig.trace.attribution import Attribution
from ig.trace.losses import UNNAMED, UNREAD
from ig.trace.pipeline import Pipeline
from tests.unit.test_attribution import Filter, Runtimes

WEB = Container("a" * 64, "web", "docker", running=True)
LATE = Container("b" * 64, "late", "docker", running=True)
SECOND = 1_000_000_000

Record = tuple[int, ...]


class Source:
    """Events given by the test: (time, cgroup, mntns, number), and the process where it matters."""

    fields: Sequence[str] = ("timestamp", "cgroup", "mntns", "number")

    def __init__(self) -> None:
        self.coming: list[list[Record]] = []
        self.paths: dict[int, Paths] = {}
        self.counted: dict[str, int] = {}

    def records(self) -> Iterator[Record]:
        return iter(self.coming.pop(0) if self.coming else ())

    def cgroups(self) -> Iterator[tuple[int, Paths]]:
        paths, self.paths = self.paths, {}
        return iter(paths.items())

    def lost(self) -> Mapping[str, int]:
        return dict(self.counted)

    counts = False

    def collect(self) -> None:
        pass

    def warning(self) -> str:
        return ""


class Output(Printer):
    """A printer that notes reported losses."""

    def __init__(self, formatter: Formatter, stream: Stream, lost: list[Mapping[str, int]]) -> None:
        super().__init__(formatter, stream)
        self._lost = lost

    def lost(self, counts: Mapping[str, int]) -> None:
        self._lost.append(counts)


class Trace:
    """A pipeline into a pipe, stepped by the test."""

    def __init__(self, *known: Container, wanted: str = "", max_events: int = 0) -> None:
        self.runtimes = Runtimes(*known)
        self.source = Source()
        self.stopped = False
        self.lost: list[Mapping[str, int]] = []
        self._read, write = os.pipe()
        out = Stream(write, lambda: self.stopped)
        self.limit = Limit(max_events)
        os.set_blocking(self._read, False)
        columns = (
            Column("number", kind=Kind.INTEGER),
            Column("owner", read=lambda batch: [owner.name for owner in batch.owners]),
        )
        attribution = Attribution(
            self.runtimes,
            lambda owner: owner.name == wanted if wanted else owner is not HOST,
            Filter(),
            lambda _: {},
        )
        self.pipeline = Pipeline(
            self.source,
            attribution,
            Chain([self.limit], Output(CsvFormatter(columns), out, self.lost)),
            out,
            lambda: self.stopped,
            self.limit.reached,
        )

    def path(self, cgroup: int, container: Container) -> None:
        self.source.paths[cgroup] = (CgroupPath(("docker", container.id), 2),)

    def step(self, *records: Record) -> list[str]:
        """Let these events come, and return what is printed."""
        self.source.coming.append(list(records))
        self.pipeline._step()
        return self.printed()

    def printed(self) -> list[str]:
        try:
            text = os.read(self._read, 1 << 20).decode()
        except BlockingIOError:
            return []
        return text.split()


def ago(seconds: float) -> int:
    return time.monotonic_ns() - int(seconds * SECOND)


def test_events_are_printed_by_time() -> None:
    trace = Trace(WEB)
    trace.path(1, WEB)
    assert trace.step((ago(0.1), 1, 0, 2), (ago(0.2), 1, 0, 1)) == ["1,web", "2,web"]


def test_event_is_held_until_none_before_it_can_come() -> None:
    trace = Trace(WEB)
    trace.path(1, WEB)
    assert trace.step((time.monotonic_ns() + SECOND, 1, 0, 2)) == []
    assert trace.step((ago(0.1), 1, 0, 1)) == ["1,web"]


def test_event_has_changes_read_that_were_not_yet() -> None:
    trace = Trace(WEB)
    trace.path(2, LATE)
    trace.runtimes.unread.append(("created", LATE))
    assert trace.step((ago(0.1), 2, 0, 1)) == ["1,late"]
    trace.runtimes.unread.append(("renamed", replace(LATE, name="later")))
    assert trace.step() == []
    assert trace.runtimes.unread
    assert trace.step((ago(0.1), 2, 0, 2)) == ["2,later"]


def test_only_events_of_the_undecided_cgroup_wait() -> None:
    trace = Trace(WEB)
    trace.path(1, WEB)
    trace.path(2, LATE)
    assert trace.step((ago(0.3), 2, 0, 1), (ago(0.2), 1, 0, 2)) == ["2,web"]
    assert trace.step((ago(0.1), 2, 0, 3)) == []
    trace.runtimes.tell("created", LATE)
    assert trace.step() == ["1,late", "3,late"]


def test_events_wait_for_their_owner_for_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = Trace(WEB)
    trace.path(2, LATE)
    assert trace.step((ago(0.3), 2, 0, 1)) == []
    began = time.monotonic_ns()
    for tenths in (3, 6, 9, 12):
        monkeypatch.setattr(time, "monotonic_ns", lambda now=tenths: began + SECOND * now // 10)
        more = [(began + SECOND // 2, 2, 0, 2)] if tenths == 6 else []
        shown = trace.step(*more)
        assert shown == (["1,bbbbbbbbbbbb", "2,bbbbbbbbbbbb"] if tenths == 12 else [])


def test_largest_of_those_that_wait_is_given_up_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "_MOST_HELD", 100)
    trace = Trace()
    trace.path(1, WEB)
    trace.path(2, LATE)
    assert trace.step((ago(0.3), 1, 0, 0)) == []
    flood = [(ago(0.2), 2, 0, number) for number in range(1, 101)]
    assert trace.step(*flood) == [f"{number},bbbbbbbbbbbb" for number in range(1, 101)]
    trace.runtimes.tell("created", WEB)
    assert trace.step() == ["0,web"]


def test_what_a_choice_hides_while_names_are_missing_is_counted() -> None:
    trace = Trace(WEB, wanted="web")
    trace.runtimes.unlisted = frozenset({"docker"})
    trace.path(1, WEB)
    trace.path(2, LATE)
    trace.step((ago(5), 1, 0, 1), (ago(5), 2, 0, 2), (ago(5), 2, 0, 3))
    trace.pipeline.attribution.give_up(2)
    trace.step()
    assert trace.pipeline.losses.counts() == {UNNAMED: 2}


def test_container_without_a_cgroup_is_identified_by_its_mount_namespace() -> None:
    trace = Trace(WEB)
    trace.source.paths[1] = (CgroupPath(("user.slice",), 1),)
    trace.runtimes.strays.by_mntns = {4711: WEB}
    assert trace.step((ago(1), 1, 4711, 1), (ago(1), 1, 4712, 2)) == ["1,web"]


def test_container_without_a_cgroup_is_identified_by_its_first_process() -> None:
    trace = Trace(WEB)
    trace.source.fields = (*Source.fields, "pid", "parent_pid")
    trace.source.paths[1] = (CgroupPath(("user.slice",), 1),)
    trace.runtimes.strays.by_pid = {42: WEB}
    unrelated, child = (ago(1), 1, 4712, 1, 44, 1), (ago(1), 1, 4711, 2, 43, 42)
    assert trace.step(unrelated, child, (ago(1), 1, 4711, 3, 45, 43)) == ["2,web", "3,web"]


def test_no_more_events_are_printed_than_asked_for() -> None:
    trace = Trace(WEB, max_events=2)
    trace.path(1, WEB)
    events = [(ago(1 - number / 100), 1, 0, number) for number in range(5)]
    assert trace.step(*events) == ["0,web", "1,web"]


def test_second_event_of_an_attempt_does_not_count() -> None:
    trace = Trace(WEB, max_events=2)
    repeated = Batch({"update": [0, 1, 1, 0, 1, 0]}, [WEB] * 6)
    assert len(trace.limit.feed(repeated)) == 5
    assert trace.limit.reached()


def test_zero_seconds_print_what_is_there_and_end() -> None:
    trace = Trace(WEB)
    trace.path(1, WEB)
    trace.source.coming.append([(ago(1), 1, 0, 1)])
    trace.pipeline.run(0)
    assert trace.printed() == ["number,owner", "1,web"]


def test_losses_are_reported_at_the_end_once_and_without_those_of_none() -> None:
    trace = Trace()
    trace.source.counted = {ring_full(): 3, "other": 0}
    trace.pipeline.run(0)
    assert trace.lost == [{ring_full(): 3}]


def test_trace_without_losses_reports_none() -> None:
    trace = Trace()
    trace.pipeline.run(0)
    assert trace.lost == []


def test_change_between_the_steps_is_taken_in_before_new_events() -> None:
    trace = Trace(WEB)
    trace.path(1, WEB)
    trace.step((ago(1), 1, 0, 1))
    trace.runtimes.tell("renamed", Container(WEB.id, "other", "docker"))
    assert trace.step((ago(0.5), 1, 0, 2)) == ["2,other"]


def test_removed_container_keeps_its_name_for_events_that_come_late() -> None:
    trace = Trace(WEB)
    trace.path(1, WEB)
    for told in trace.runtimes._told:
        told(Change("removed", WEB))
    assert trace.step((ago(1), 1, 0, 1)) == ["1,web"]


def test_events_that_a_reader_leaves_at_the_end_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "_FINAL_WRITE_TIMEOUT", 0.1)
    trace = Trace(WEB)
    trace.path(1, WEB)
    # More than a pipe holds, and a few that come meanwhile.
    trace.source.coming.append([(ago(2), 1, 0, 10**20 + number) for number in range(60_000)])
    trace.source.coming.append([(ago(1), 1, 0, number) for number in range(7)])
    trace.stopped = True
    with pytest.raises(ReaderGone):
        trace.pipeline.run()
    (lost,) = trace.lost
    readable = len(trace.printed()) - 1  # without the heading
    assert readable >= pipeline._MOST_PASSED
    assert 0 <= lost[UNREAD] - (60_007 - readable) <= pipeline._MOST_PASSED


def test_events_that_wait_for_late_changes_are_bounded_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "_MOST_WAITING", 8)
    monkeypatch.setattr(pipeline, "_MOST_PASSED", 3)
    trace = Trace(WEB)
    trace.path(1, WEB)
    trace.pipeline._stepped -= SECOND  # as after a suspension
    for number in range(6):
        assert trace.step(*((ago(1), 1, 0, 4 * number + each) for each in range(4))) == []
        assert len(trace.pipeline._waiting) <= 8
    assert len(trace.source.coming) == 4  # as a ring keeps them
    trace.pipeline._resumed = 0
    found: list[str] = []
    while trace.pipeline._step():
        rows = trace.printed()
        assert len(rows) <= 3
        found += rows
    found += trace.printed()
    assert [row.partition(",")[0] for row in found] == list(map(str, range(24)))


def test_events_of_unknown_owners_are_counted_also_where_a_record_counts_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = Trace(WEB, wanted="web")
    trace.source.fields = ("timestamp", "cgroup", "mntns", "number", "count")
    trace.source.counts = True
    began = time.monotonic_ns()
    assert trace.step((began - SECOND, 2, 0, 1, 17), (began - SECOND, 2, 0, 2, 5)) == []
    monkeypatch.setattr(pipeline, "_SUSPENDED", 9 * SECOND)
    monkeypatch.setattr(time, "monotonic_ns", lambda: began + 3 * SECOND)
    assert trace.step() == []
    trace.pipeline.losses.report(trace.pipeline.sink, last=True)
    assert trace.lost == [{UNNAMED: 22}]


@pytest.mark.parametrize(("last", "kept"), [(False, ["2,web"]), (True, [])])
def test_events_that_come_while_counts_are_read_are_kept_unless_it_is_the_end(
    monkeypatch: pytest.MonkeyPatch, last: bool, kept: list[str]
) -> None:
    trace = Trace(WEB)
    trace.path(1, WEB)
    began = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: began)
    trace.source.coming = [[(began - SECOND, 1, 0, 1)], [(began + 1, 1, 0, 2)]]
    trace.pipeline._finish(last)
    assert trace.printed() == ["1,web"]
    monkeypatch.setattr(time, "monotonic_ns", lambda: began + SECOND // 10)
    assert trace.step() == kept


def test_events_wait_for_the_runtimes_news_after_a_suspension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = Trace(WEB)
    trace.path(1, WEB)
    later = time.monotonic_ns() + 10 * SECOND
    monkeypatch.setattr(time, "monotonic_ns", lambda: later)
    assert trace.step((later - SECOND, 1, 0, 1)) == []
    trace.runtimes.tell("renamed", Container(WEB.id, "other", "docker"))
    monkeypatch.setattr(time, "monotonic_ns", lambda: later + SECOND * 3 // 10)
    assert trace.step() == ["1,other"]


def test_containers_without_a_cgroup_are_not_looked_for_where_records_have_no_process() -> None:
    trace = Trace(WEB)
    trace.source.paths[1] = (CgroupPath(("user.slice",), 1),)
    trace.runtimes.strays.by_pid = {42: WEB}
    trace.runtimes.strays.by_mntns = {4711: WEB}
    assert trace.step((ago(1), 1, 4711, 1)) == ["1,web"]


def test_interval_after_a_late_one_is_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(WEB)
    trace.pipeline.interval, trace.pipeline._tick_due = 1.0, 1.0
    ticks = []
    for now in (1.1, 2.1, 4.5, 4.6, 5.4, 5.6, 6.4, 6.6):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        before = trace.pipeline._ticks
        trace.pipeline._tick()
        ticks += [now] * (trace.pipeline._ticks - before)
    assert ticks == [1.1, 2.1, 4.5, 5.6, 6.6]


class Held:
    """A sink that passes events on only at the end."""

    interval = 0.0

    def __init__(self, sink: Chain) -> None:
        self._sink, self._batches = sink, list[Batch]()
        self.open, self.tick, self.lost, self.close = sink.open, sink.tick, sink.lost, sink.close

    @property
    def held(self) -> int:
        return sum(map(len, self._batches))

    def write(self, batch: Batch) -> None:
        self._batches.append(batch)

    def release(self) -> None:
        pass

    def finish(self) -> None:
        while self._batches:
            self._sink.write(self._batches[0])
            self._batches.pop(0)


def test_events_that_a_sink_holds_at_the_end_are_passed_on_or_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "_FINAL_WRITE_TIMEOUT", 0.1)
    for big, printed, lost in (
        (0, ["number,owner", "1,web"], []),
        (1, ["number,owner"], [{UNREAD: 60_001 - 4 * pipeline._MOST_PASSED}]),  # fit into the pipe
    ):
        trace = Trace(WEB)
        sink = trace.pipeline.sink
        assert isinstance(sink, Chain)
        trace.pipeline.sink = trace.pipeline.holding = Held(sink)
        trace.path(1, WEB)
        events = [(ago(2), 1, 0, 10**20 + number) for number in range(60_000 * big)]
        trace.source.coming.append([*events, (ago(1), 1, 0, 1)])
        trace.stopped = True
        with pytest.raises(ReaderGone) if lost else nullcontext():
            trace.pipeline.run()
        assert trace.printed()[: len(printed)] == printed
        assert trace.lost == lost
