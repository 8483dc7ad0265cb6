import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ig import output
from ig.container import HOST
from ig.gadget import Batch, Column
from tests.unit.output_samples import COLUMNS, events, strings


def documents(columns: tuple[Column, ...], batch: Batch) -> str:
    made = output.formatter("yaml", columns, ())
    return made.header() + made.format(batch) + made.footer()


def test_each_event_is_a_document_that_says_what_the_json_object_says() -> None:
    batch = events({}, {"comm": "nc", "version": 6, "saddr": "::1", "daddr": "::2"})
    lines = output.formatter("json", COLUMNS, ()).format(batch).splitlines()
    assert list(yaml.safe_load_all(documents(COLUMNS, batch))) == list(map(json.loads, lines))


def test_documents_are_in_block_style() -> None:
    columns, batch = strings("wget", "yes")
    assert documents(columns, batch) == ('---\nproc:\n  name: "wget"\n---\nproc:\n  name: "yes"\n')


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        [{"comm": "nc", "fds": [3, 4]}, [], [[1], {}], None, 1.5, True],
        {"yes": 1, "No": 2, "a: b": 3, "-": 4, "": 5, "\x1b": 6, "~": 7, "1": 8},
    ],
)
def test_nested_values_and_hostile_keys_keep_their_meaning(value: object) -> None:
    column = Column("extra", "extra", json=lambda _: [value])
    text = documents((column,), Batch({}, [HOST]))
    assert yaml.safe_load(text) == {"extra": value}
    assert text.replace("\n", "").isprintable()


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=9))
def test_any_text_is_read_back_and_harmless(values: list[str]) -> None:
    columns, batch = strings(*values)
    text = documents(columns, batch)
    assert [event["proc"]["name"] for event in yaml.safe_load_all(text)] == values
    assert text.replace("\n", "").isprintable()


def test_bytes_that_are_no_text_are_shown_as_escapes() -> None:
    columns, batch = strings("a\udcff\ud800")
    assert yaml.safe_load(documents(columns, batch)) == {"proc": {"name": "a\\xff\\ud800"}}


def test_surrogate_in_an_encoded_value_does_not_come_out() -> None:
    column = Column("extra", "extra", json=lambda _: ["\ud800"])
    documents((column,), Batch({}, [HOST])).encode("utf-8")
