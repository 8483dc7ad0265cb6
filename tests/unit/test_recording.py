"""Recordings: what is read is what was written, and whatever else a file has is an error."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.attempts import OUTCOMES, failed
from ig.commands import replay
from ig.container import HOST, Container
from ig.errors import IgError, UsageError
from ig.gadget import Batch
from ig.gadgets import declared
from ig.output import recorder, recording
from ig.output.recorder import Recorder
from ig.output.recording import Recording
from ig.output.sink import Chain, Sink, report_lost
from ig.output.stream import Stream
from tests.unit.test_readme import attempts

WEB = Container("a" * 64, "web", "docker", image="shop/web", labels={"tier": "front"})
POD = Container("b" * 64, "db", "cri-o", pod_name="db-0", pod_namespace="shop", nested="c" * 12)
FIELDS: dict[str, Any] = {
    "number": [1, 2**64 - 1, -(2**63)],
    "flag": [True, False, True],
    "name": ["web", "\udc80\n", "\u202e"],
    "raw": [b"comm\0\0\0\0", b"\0" * 8, bytes(range(8))],
    "peer": [WEB, HOST, POD],
    "held": [(), ((1, "sh"), (2, "\0")), ((3, ""),)],
    "same": [7, 7, 7],
}
ROWS = 3
POD_ALONE = Batch({"n": [1]}, [POD])
BATCH = Batch(FIELDS, [HOST, WEB, POD])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recording"


def record(path: Path, *batches: Batch, **options: Any) -> list[tuple[str, Any]]:
    """Record the batches, with an interval's end and a loss, and return what is read."""
    writer = Recorder(str(path), {"gadget": "some"}, **options)
    writer.open()
    for batch in batches:
        writer.write(batch)
    writer.tick(17)
    writer.lost({"some cause": 3})
    writer.close()
    return list(Recording(str(path)).records())


def test_recording_gives_what_was_written(path: Path) -> None:
    (_, batch), *others = record(path, BATCH)
    assert batch.fields == FIELDS
    assert batch.owners == BATCH.owners
    assert batch.owners[0] is HOST
    assert batch.fields["peer"][1] is HOST
    assert others == [("tick", 17), ("lost", {"some cause": 3})]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_recording_has_each_container_once_and_forgets_the_old_ones(path: Path) -> None:
    many = [Container(f"{n:064x}", f"c{n}", "docker") for n in range(recording.TABLE * 3)]
    batches = [Batch({"n": [1] * 2}, [each, WEB]) for each in many]
    read = [value for kind, value in record(path, *batches) if kind == "batch"]
    assert [batch.owners[0].name for batch in read] == [each.name for each in many]
    assert {batch.owners[1].name for batch in read} == {"web"}
    assert path.read_text().count('"shop/web"') == 3


def test_recording_splits_batches_that_are_too_large(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = list(range(recording.ROWS * 2 + 1))
    read = [value for kind, value in record(path, Batch({"n": numbers}, [WEB] * len(numbers)))][:3]
    assert [n for batch in read for n in batch.fields["n"]] == numbers
    monkeypatch.setattr(recorder, "LINE", 2000)
    texts = [str(n) * 100 for n in range(10, 40)]
    read = record(path.with_name("other"), Batch({"n": texts}, [WEB] * 30))
    assert [n for kind, batch in read if kind == "batch" for n in batch.fields["n"]] == texts


def test_recording_that_is_full_says_so_and_stays_whole(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = record(path, *[BATCH] * 9, limit=3000)
    count = sum(kind == "batch" for kind, _ in read)
    assert 0 < count < 9
    assert path.stat().st_size < 3500
    said = capsys.readouterr().err
    assert f"full after {count * ROWS} events" in said
    assert f"{(9 - count) * ROWS} events were not recorded" in said
    assert [value.owners for kind, value in read if kind == "batch"] == [BATCH.owners] * count


def test_recording_that_is_full_names_nobody_wrong(path: Path) -> None:
    many = [Container(f"{n:064x}", f"c{n}", "docker") for n in range(recording.TABLE + 1)]
    batches = [Batch({"n": [1] * 9}, [each, *[WEB] * 8]) for each in many]
    record(path, *batches)
    size = path.stat().st_size
    for limit in range(size - 400, size, 20):
        other = path.with_name(str(limit))
        owners = [
            value.owners[0]
            for kind, value in record(other, *batches, POD_ALONE, limit=limit)
            if kind == "batch"
        ]
        assert [each.name for each in owners] == [each.name for each in (*many, POD)][: len(owners)]


def test_recording_that_has_not_begun_leaves_no_file(path: Path) -> None:
    Recorder(str(path), {}).close()
    assert not path.exists()


def test_recording_that_is_cut_off_is_read_up_to_there(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(path, BATCH, BATCH)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert len(list(Recording(str(path)).records())) == 2
    assert f"stops after {2 * ROWS} events" in capsys.readouterr().err
    path.write_bytes(b"".join(lines[:3])[:-1])
    records = Recording(str(path)).records()
    assert next(records)[0] == "batch"
    with pytest.raises(IgError, match="cut off"):
        next(records)


DAMAGED = [
    "[]",
    "{}",
    "nonsense",
    "[" * 5000,
    '{"tick":"now"}',
    '{"lost":[1]}',
    '{"lost":{"cause":"x"}}',
    '{"end":1}',
    '{"rows":1e9}',
    '{"rows":1000000000,"fields":{},"owners":["container",0],"containers":[]}',
    '{"rows":1,"fields":{},"owners":["container",9],"containers":[]}',
    '{"rows":1,"fields":{},"owners":["container",-1],"containers":[]}',
    '{"rows":1,"fields":{},"owners":["number",0],"containers":[]}',
    '{"rows":1,"fields":{},"owners":["container",0],"containers":[{"id":1}]}',
    '{"rows":1,"fields":{},"owners":["container",0],"containers":[{"labels":{"a":[]}}]}',
    '{"rows":1,"fields":{},"owners":["container",0],"containers":7}',
    f'{{"rows":1,"fields":{{}},"owners":["container",0],"containers":[{"{}," * 9999}{{}}]}}',
    *(
        f'{{"rows":1,"fields":{{"f":{field}}},"owners":["container",0],"containers":[]}}'
        for field in (
            "[]",
            '["number"]',
            '["number",null]',
            '["number",1e3]',
            '["number",18446744073709551616]',
            '["number",null,[1,2]]',
            '["number",null,7]',
            '["text",1]',
            '["pickle","x"]',
            '["bytes 4","zz"]',
            '["bytes 4",7]',
            '["bytes -4","00"]',
            '["bytes 99999999999","00"]',
            '["tuple",7]',
            '["tuple",[[[[[1]]]]]]',
            '["tuple",[null]]',
            '[["number"],1]',
        )
    ),
]


@pytest.mark.parametrize("line", DAMAGED)
def test_recording_that_is_damaged_is_an_error(path: Path, line: str) -> None:
    path.write_text(f'{{"recording":1}}\n{line}\n')
    with pytest.raises(IgError, match="damaged"):
        list(Recording(str(path)).records())


def test_recording_with_an_endless_line_takes_bounded_memory(path: Path) -> None:
    path.write_text('{"recording":1}\n' + " " * (recording.LINE + 2))
    with pytest.raises(IgError, match="too long"):
        list(Recording(str(path)).records())


@given(st.data())
def test_recording_with_any_change_is_shown_or_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    gadget = declared()["trace_tcpconnect"]
    path = tmp_path_factory.mktemp("changed") / "recording"
    with replay.recording(gadget, {"record": str(path)}) as (writer,):
        writer.open()
        writer.write(attempts())
    lines = path.read_text().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    changed = json.loads(lines[number])
    place: Any = changed
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(
        st.one_of(st.none(), st.integers(), st.text(), st.booleans(), st.just([]), st.just({}))
    )
    lines[number] = json.dumps(changed)
    path.write_text("\n".join(lines) + "\n")
    options = {"output": data.draw(st.sampled_from(["json", "csv", "columns"]))}
    null = os.open(os.devnull, os.O_WRONLY)
    with suppress(IgError):
        replay.play(Recording(str(path)), options, Stream(null, lambda: False), nullcontext)
    os.close(null)


@contextmanager
def room(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def recorded(path: Path, gadget: str = "trace_bind") -> Iterator[Sink]:
    """Yield the sink that records to the file, as a command does."""
    with replay.recording(declared()[gadget], {"record": str(path)}) as (writer,):
        yield writer


class Counter:
    """A sink that counts events, and whether it was closed."""

    interval = 0.0
    count = 0
    closed = False

    def open(self) -> None: ...

    def write(self, batch: Batch) -> None:
        self.count += len(batch)

    def tick(self, now: int) -> None: ...

    def lost(self, counts: object) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_recording_without_room_ends_whole_and_other_sinks_get_all(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Counter()

    def fill() -> None:
        with recorded(path) as writer:
            sink = Chain([], writer, other)
            sink.open()
            sink.write(BATCH)
            sink.write(BATCH)
            with room(path.stat().st_size + 100):
                sink.write(BATCH)  # a part of it is written
                sink.tick(17)
            sink.write(BATCH)
            sink.lost({"some cause": 3})
            sink.close()

    with pytest.raises(IgError, match=f"complete up to {2 * ROWS} events"):
        fill()
    assert (other.count, other.closed) == (4 * ROWS, True)
    assert capsys.readouterr().err.count("no longer recorded") == 1
    assert b"\0" not in path.read_bytes()
    assert [kind for kind, _ in Recording(str(path)).records()] == ["batch"] * 2
    assert f"{2 * ROWS} events were not recorded" in capsys.readouterr().err


def test_recording_without_room_for_its_end_is_closed(path: Path) -> None:
    def fill() -> None:
        with recorded(path) as writer:
            writer.open()
            writer.write(BATCH)
            limits.enter_context(room(path.stat().st_size))

    before = os.listdir("/proc/self/fd")
    with ExitStack() as limits, pytest.raises(IgError, match="File too large"):
        fill()
    assert os.listdir("/proc/self/fd") == before
    assert [kind for kind, _ in Recording(str(path)).records()] == ["batch"]


def test_recording_without_room_for_its_beginning_is_removed(path: Path) -> None:
    with room(10), pytest.raises(IgError, match="File too large"), recorded(path) as writer:
        writer.open()
    assert not path.exists()


def test_recording_of_values_of_another_type_ends_alone(path: Path) -> None:
    writer, other = Recorder(str(path), {}), Counter()
    sink = Chain([], writer, other)
    sink.open()
    sink.write(Batch({"n": [1.5]}, [WEB]))
    sink.close()
    assert (other.count, other.closed) == (1, True)
    with pytest.raises(IgError, match="float"):
        writer.check()


def test_recording_with_long_labels_is_read_and_bounded(path: Path) -> None:
    many = [Container(str(n), "c", "docker", labels={"a": "x" * (1 << 20)}) for n in range(20)]
    read = record(path, *[Batch({"n": [1]}, [each]) for each in many])
    assert [value.owners[0].id for kind, value in read if kind == "batch"] == list(
        map(str, range(20))
    )
    path.write_bytes(path.read_bytes().replace(b'"fresh":true', b'"fresh":false'))
    with pytest.raises(IgError, match="labels are too long"):
        list(Recording(str(path)).records())


def test_recording_whose_events_change_their_fields_is_damaged(path: Path) -> None:
    with pytest.raises(IgError, match="other fields"):
        record(path, POD_ALONE, Batch({"m": [1]}, [POD]))


def sockets(count: int) -> Batch:
    """Return sockets as a snapshot has them, no two the same."""
    numbers = list(range(70_000, 70_000 + count))
    same = {"proto": "TCP", "version": 4, "state_raw": 1, "mark": 0, "cgroup": "/", "state": "x"}
    same |= {"interface": "", "shared": False, "peer": HOST, "timestamp": 1_795_689_119_356_648_210}
    same |= {"behind": HOST, "behind_port": 0, "netns_id": 4026531833}
    names = ("sport", "dport", "recv_q", "send_q", "uid", "ino", "rtt", "retransmits", "cwnd")
    fields: dict[str, Any] = {name: [value] * count for name, value in same.items()}
    fields |= dict.fromkeys((*names, "bytes_sent", "bytes_received", "pid"), numbers)
    fields |= {name: [f"10.0.{n >> 8}.{n & 255}" for n in numbers] for name in ("saddr", "daddr")}
    fields |= {"comm": ["python3"] * count, "processes": [((n, "python3"),) for n in numbers]}
    return Batch(fields, [WEB] * count)


def played(path: Path, output: str = "json") -> str:
    """Return what is printed of a recording until its end, or until it is damaged."""
    printed = path.with_suffix(".printed")
    with open(printed, "wb") as file, suppress(IgError):
        stream = Stream(file.fileno(), lambda: False)
        replay.play(Recording(str(path)), {"output": output}, stream, nullcontext)
    return printed.read_text()


def test_failures_of_a_recording_are_those_that_the_trace_would_report(path: Path) -> None:
    names = ("", "established", "refused", "unanswered", "established", "abandoned")
    outcomes, updates = list(map(OUTCOMES.index, names)), [0, 0, 0, 0, 1, 0]
    kept = failed(Batch({"outcome": outcomes, "update": updates}, [HOST] * 6))
    assert kept == [False, False, True, True, True, True]
    record_sockets(path, sockets(1))
    chosen = {"failure_only": True, "output": "json"}
    with pytest.raises(UsageError, match="snapshot_socket has no failures"):
        replay.play(Recording(str(path)), chosen, Stream(1, lambda: False), nullcontext)


def record_sockets(path: Path, batch: Batch) -> None:
    """Record the sockets as one that was killed before the interval's end."""
    with recorded(path, "snapshot_socket") as writer:
        writer.open()
        writer.write(batch)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def test_recording_of_200_000_sockets_is_within_bounds(path: Path) -> None:
    record_sockets(path, sockets(200_000))
    recorded = Recording(str(path))
    bound = replay.Bound(recorded, replay.MOST)
    assert sum(len(bound.feed(value)) for _, value in recorded.records()) == 200_000


def test_recording_of_an_endless_interval_takes_bounded_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MOST", 1 << 26, raising=False)
    record_sockets(path, sockets(1))
    fields = json.loads(path.read_text().splitlines()[1])["fields"]
    fields |= {name: [field[0], field[-1][0]] for name, field in fields.items() if len(field) > 2}
    line = {"rows": 4096, "fields": fields, "owners": ["container", 0], "containers": []}
    header = path.read_text().splitlines()[0]
    path.write_text("\n".join([header, *[json.dumps(line)] * 40]) + "\n")
    recorded = Recording(str(path))
    null = os.open(os.devnull, os.O_WRONLY)
    with pytest.raises(IgError, match="than ig holds"):
        replay.play(recorded, {"output": "json"}, Stream(null, lambda: False), nullcontext)
    os.close(null)


@pytest.mark.parametrize("line", ["nonsense", '{"tick":17', '{"rows":0,"fields":{}}'])
def test_recording_that_is_damaged_is_shown_up_to_there(path: Path, line: str) -> None:
    record_sockets(path, sockets(3))
    with path.open("a") as file:
        file.write(line + "\n")
    rows = json.loads(played(path))
    assert [row["src"]["port"] for row in rows] == [70_000, 70_001, 70_002]
    assert len(played(path, "columns").splitlines()) == 1 + 3


def test_recording_of_fields_that_the_gadget_has_not_is_damaged(path: Path) -> None:
    with recorded(path, "snapshot_socket") as writer:
        writer.open()
        writer.write(POD_ALONE)
    null = os.open(os.devnull, os.O_WRONLY)
    with pytest.raises(IgError, match="damaged"):
        replay.play(
            Recording(str(path)), {"output": "json"}, Stream(null, lambda: False), nullcontext
        )
    os.close(null)


def test_recording_with_a_cause_of_losses_forges_no_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report_lost({"full\nig: all is well\x1b[2J": 3}, structured=False)
    assert capsys.readouterr().err.count("\n") == 1
