"""Recordings: what is read is what was written, and whatever else a file has is an error."""

from __future__ import annotations

import json
import os
import stat
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.commands import replay
from ig.container import HOST, Container
from ig.errors import IgError
from ig.gadget import Batch
from ig.gadgets import declared
from ig.output import recording
from ig.output.recording import Recorder, Recording
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
    recorder = Recorder(str(path), {"gadget": "some"}, **options)
    recorder.open()
    for batch in batches:
        recorder.write(batch)
    recorder.tick(17)
    recorder.lost({"some cause": 3})
    recorder.close()
    return list(Recording(str(path)).records())


def test_a_recording_gives_what_was_written(path: Path) -> None:
    (_, batch), *others = record(path, BATCH)
    assert batch.fields == FIELDS
    assert batch.owners == BATCH.owners
    assert batch.owners[0] is HOST
    assert batch.fields["peer"][1] is HOST
    assert others == [("tick", 17), ("lost", {"some cause": 3})]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_recording_has_each_container_once_and_forgets_the_old_ones(path: Path) -> None:
    many = [Container(f"{n:064x}", f"c{n}", "docker") for n in range(recording._TABLE * 3)]
    batches = [Batch({"n": [1] * 2}, [each, WEB]) for each in many]
    read = [value for kind, value in record(path, *batches) if kind == "batch"]
    assert [batch.owners[0].name for batch in read] == [each.name for each in many]
    assert {batch.owners[1].name for batch in read} == {"web"}
    assert path.read_text().count('"shop/web"') == 3


def test_a_recording_splits_batches_that_are_too_large(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = list(range(recording._ROWS * 2 + 1))
    read = [value for kind, value in record(path, Batch({"n": numbers}, [WEB] * len(numbers)))][:3]
    assert [n for batch in read for n in batch.fields["n"]] == numbers
    monkeypatch.setattr(recording, "_LINE", 2000)
    texts = [str(n) * 100 for n in range(10, 40)]
    read = record(path.with_name("other"), Batch({"n": texts}, [WEB] * 30))
    assert [n for kind, batch in read if kind == "batch" for n in batch.fields["n"]] == texts


def test_a_recording_that_is_full_says_so_and_stays_whole(
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


def test_a_recording_that_is_full_names_nobody_wrong(path: Path) -> None:
    many = [Container(f"{n:064x}", f"c{n}", "docker") for n in range(recording._TABLE + 1)]
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


def test_a_recording_that_has_not_begun_leaves_no_file(path: Path) -> None:
    Recorder(str(path), {}).close()
    assert not path.exists()


def test_a_recording_that_is_cut_off_is_read_up_to_there(
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
def test_a_recording_that_is_damaged_is_an_error(path: Path, line: str) -> None:
    path.write_text(f'{{"recording":1}}\n{line}\n')
    with pytest.raises(IgError, match="damaged"):
        list(Recording(str(path)).records())


def test_a_recording_with_an_endless_line_takes_bounded_memory(path: Path) -> None:
    path.write_text('{"recording":1}\n' + " " * (recording._LINE + 2))
    with pytest.raises(IgError, match="too long"):
        list(Recording(str(path)).records())


@given(st.data())
def test_a_recording_with_any_change_is_shown_or_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    gadget = declared()["trace_tcpconnect"]
    path = tmp_path_factory.mktemp("changed") / "recording"
    with replay.recording(gadget, {"record": str(path)}) as (recorder,):
        recorder.open()
        recorder.write(attempts())
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
