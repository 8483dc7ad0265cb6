import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig import output
from ig.container import HOST, Container
from ig.gadget import Batch, Column, Kind
from ig.output.json import compile_objects
from tests.unit.output_samples import COLUMNS, WEB, WHEN, events, named, strings


def lines(batch: Batch, mode: str = "json") -> str:
    made = output.formatter(mode, COLUMNS, ())
    return made.header() + made.format(batch) + made.footer()


def test_event_is_one_line_in_the_published_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ig.columns._host_name", lambda: "host1")
    assert lines(events({})) == (
        '{"timestamp":"2026-11-20T20:33:04.123456789Z","timestamp_raw":1795206784123456789,'
        '"runtime":{"runtimeName":"docker","containerName":"web","containerId":"a84e",'
        '"containerImageName":"nginx:1.27","nestedId":""},'
        '"k8s":{"namespace":"","podName":"","containerName":"","node":"host1"},'
        '"proc":{"comm":"wget","pcomm":"sh","pid":750625,"tid":750625,'
        '"mntns_id":4026532180,'
        '"creds":{"uid":0,"gid":0},"parent":{"comm":"sh","pid":750600}},"netns_id":4026532184,'
        '"src":{"addr":"172.17.0.2","port":39664,"proto":"TCP","version":4,'
        '"name":"web","namespace":"","kind":"container"},'
        '"dst":{"addr":"93.184.215.14","port":443,"proto":"TCP","version":4,'
        '"name":"","namespace":"","kind":"raw"},'
        '"type":"connect","error":"","error_raw":0,'
        '"latency":"47.069µs","latency_raw":47069,"shared":false}\n'
    )


def test_zone_stands_beside_link_local_addresses_only() -> None:
    link_local = {"version": 6, "saddr": "fe80::2", "daddr": "fe80::1", "zone": 'e"0'}
    routed = {**link_local, "daddr": "2001:db8::1"}
    unknown = {**link_local, "zone": ""}
    changes: tuple[dict[str, Any], ...] = (link_local, routed, unknown, {})
    found = [json.loads(line) for line in lines(events(*changes)).splitlines()]
    assert [(event["src"].get("zone"), event["dst"].get("zone")) for event in found] == [
        ('e"0', 'e"0'),
        ('e"0', None),
        (None, None),
        (None, None),
    ]
    assert [event["dst"]["addr"] for event in found[:2]] == ["fe80::1", "2001:db8::1"]
    columns = {column.name: column for column in COLUMNS}
    batch = events(link_local, routed)
    src, address = columns["src"], columns["dst.addr"]
    assert src.read
    assert list(src.read(batch)) == ['[fe80::2%e"0]:39664'] * 2
    assert address.text
    assert list(address.text(batch)) == ['fe80::1%e"0', "2001:db8::1"]


def test_no_latency_is_null() -> None:
    for changes in ([{"latency": 0}], [{"latency": 0}, {}]):
        event = json.loads(lines(events(*changes)).splitlines()[0])
        assert (event["latency"], event["latency_raw"]) == (None, None)


def test_more_events_than_are_joined_at_once_stay_in_order_and_apart() -> None:
    changes = [{"sport": port, "shared": port % 2, "latency": port + 1} for port in range(5003)]
    found = [json.loads(line) for line in lines(events(*changes)).splitlines()]
    assert [event["src"]["port"] for event in found] == list(range(5003))
    assert [event["latency_raw"] for event in found] == list(range(1, 5004))
    assert [event["shared"] for event in found] == [bool(port % 2) for port in range(5003)]


def test_every_event_has_its_own_owner() -> None:
    owners = [WEB, HOST, named("db"), WEB, named("100%"), HOST, named("%s")]
    text = lines(events(*[{}] * len(owners), owners=owners))
    names = [json.loads(line)["runtime"]["containerName"] for line in text.splitlines()]
    assert names == ["web", "", "db", "web", "100%", "", "%s"]


def test_owners_are_distinguished_however_many_there_are() -> None:
    objects = compile_objects(COLUMNS)
    for start in range(0, 10_000, 2_500):
        owners = [named(f"c{number}") for number in range(start, start + 2_500)]
        found = [
            json.loads(line)["runtime"]["containerName"]
            for line in objects(events(*[{}] * len(owners), owners=owners)).splitlines()
        ]
        assert found == [owner.name for owner in owners]


def test_owner_is_not_taken_for_one_that_is_gone() -> None:
    objects = compile_objects(COLUMNS)
    names = [f"c{number}" for number in range(500)]
    found = [json.loads(objects(events({}, owners=[named(name)]))) for name in names]
    assert [event["runtime"]["containerName"] for event in found] == names


def test_values_equal_in_a_whole_batch_are_those_of_the_batch_not_of_the_last() -> None:
    made = output.formatter("json", COLUMNS, ())
    for comm in ("50%", "%s", "nc"):
        text = made.format(events({"comm": comm}, {"comm": comm}))
        assert [json.loads(line)["proc"]["comm"] for line in text.splitlines()] == [comm, comm]


def test_timestamps_of_different_seconds_each_have_their_own() -> None:
    times = [WHEN, WHEN + 10**9, 0, 5, 1_999_999_999, 2_000_000_000]
    found = [
        json.loads(line) for line in lines(events(*({"timestamp": t} for t in times))).splitlines()
    ]
    assert [event["timestamp"] for event in found] == [
        "2026-11-20T20:33:04.123456789Z",
        "2026-11-20T20:33:05.123456789Z",
        None,
        "1970-01-01T00:00:00.000000005Z",
        "1970-01-01T00:00:01.999999999Z",
        "1970-01-01T00:00:02.000000000Z",
    ]
    assert [event["timestamp_raw"] or 0 for event in found] == times


def test_classic_view_is_flat_because_its_paths_are() -> None:
    view = (
        Column("type", "type", read=lambda batch: ["normal"] * len(batch)),
        Column("pid", "pid", Kind.INTEGER),
        Column("time", "time", Kind.DURATION, raw=False),
        Column("hidden"),
    )
    batch = Batch({"pid": [7], "time": [1500], "hidden": ["x"]}, [HOST])
    made = output.formatter("json", view, ())
    assert made.format(batch) == '{"type":"normal","pid":7,"time":"1.5µs"}\n'


def test_keys_with_a_percent_sign_and_objects_without_keys_are_well_formed() -> None:
    batch = Batch({"rate": [3, 4]}, [HOST, HOST])
    assert compile_objects([Column("rate", "a%d.b%", Kind.INTEGER)])(batch) == (
        '{"a%d":{"b%":3}}\n{"a%d":{"b%":4}}\n'
    )
    assert compile_objects([])(batch) == "{}\n{}\n"


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a.b"), ("a.b", "a")])
def test_columns_that_claim_the_same_key_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"path|another column's"):
        compile_objects([Column(str(place), path) for place, path in enumerate(paths)])


@pytest.mark.parametrize("mode", ["json", "jsonpretty"])
def test_snapshot_is_one_array_and_an_empty_one_is_brackets(mode: str) -> None:
    made = output.formatter(mode, COLUMNS, (), array=True)
    assert made.header() + made.format(events()) + made.footer() == "[]\n"
    for _ in range(2):  # a formatter serves one redraw after the other
        text = made.header() + made.format(events({}, {}))
        text += made.format(events()) + made.format(events({"pid": 3})) + made.footer()
        assert [event["proc"]["pid"] for event in json.loads(text)] == [750625, 750625, 3]
        assert text.endswith("}\n]\n")


def test_jsonl_is_a_line_an_event_even_for_a_snapshot() -> None:
    made = output.formatter("jsonl", COLUMNS, (), array=True)
    assert made.header() + made.format(events()) + made.footer() == ""
    assert len(made.format(events({}, {})).splitlines()) == 2


def test_pretty_json_says_the_same_in_more_lines() -> None:
    batch = events({}, {"comm": "\x1b[2J"})
    assert lines(events({}), "jsonpretty").startswith(
        '{\n  "timestamp": "2026-11-20T20:33:04.123456789Z",\n  "timestamp_raw": 1795'
    )
    pretty = lines(batch, "jsonpretty").replace("\n}\n{", "\n}\0{").split("\0")
    assert [json.loads(text) for text in pretty] == list(map(json.loads, lines(batch).splitlines()))


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=9), st.data())
def test_any_text_stays_one_valid_harmless_line(values: list[str], data: st.DataObject) -> None:
    columns, batch = strings(*values)
    owners = [data.draw(st.sampled_from([HOST, *map(named, values)])) for _ in values]
    batch = Batch(batch.fields, owners)
    owner = Column("owner", "owner", read=lambda batch: [c.name for c in batch.owners])
    text = compile_objects([*columns, owner])(batch)
    text.encode("utf-8")
    found = [json.loads(line) for line in text.split("\n")[:-1]]
    assert text.replace("\n", "").isprintable()
    assert [event["proc"]["name"] for event in found] == list(map(_without_surrogates, values))
    assert [event["owner"] for event in found] == [_without_surrogates(o.name) for o in owners]


@given(st.text(st.characters(exclude_categories=())), st.text())
def test_any_name_of_an_end_stays_harmless(name: str, namespace: str) -> None:
    pod = Container(id="1", name="x", runtime="cri-o", pod_name=name, pod_namespace=namespace)
    batch = events({}, owners=[pod])
    batch = Batch({**batch.fields, "peer": [named(name)]}, batch.owners)
    text = lines(batch)
    assert text.removesuffix("\n").isprintable()
    event = json.loads(text)
    event["dst"]["name"].encode("utf-8")
    assert event["dst"]["kind"] == ("container" if name else "raw")
    assert event["src"]["namespace"] == namespace


def _without_surrogates(text: str) -> str:
    def shown(character: str) -> str:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            return f"\\x{code - 0xDC00:02x}"
        return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else character

    return "".join(map(shown, text))


def test_column_that_reads_its_fields_is_never_taken_for_the_owners() -> None:
    def either(batch: Batch) -> list[Any]:
        return list(batch.fields["pid"]) if "pid" in batch.fields else [0] * len(batch)

    owner = Container(id="1", name="web", runtime="docker")
    objects = compile_objects([Column("pid", "pid", Kind.INTEGER, read=either)])
    assert objects(Batch({"pid": [1, 2]}, [owner, owner])) == '{"pid":1}\n{"pid":2}\n'
