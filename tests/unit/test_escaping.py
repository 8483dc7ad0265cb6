import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ig import output
from ig.output.layout import Screen
from ig.output.text import (
    display_width,
    json_string,
    pad,
    shorten,
    shorten_endpoint,
    visible,
    yaml_string,
)
from tests.unit.output_samples import COLUMNS, events, named

ANY_TEXT = st.text(st.characters(exclude_categories=()))
PRINTABLE = ANY_TEXT.map(visible)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wget", "wget"),
        ("größe 猫", "größe 猫"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x7f\x9b31m", "\\x7f\\x9b31m"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\u200f\u2066\ufeff\u2028", "\\u200f\\u2066\\ufeff\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff\ud800", "\\xff\\ud800"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(ANY_TEXT)
def test_visible_text_is_printable_and_encodes(text: str) -> None:
    assert visible(text).isprintable()
    visible(text).encode("utf-8")


@given(ANY_TEXT)
def test_json_strings_are_printable_and_read_back(text: str) -> None:
    quoted = json_string(text)
    assert quoted.isprintable()
    if not any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        assert json.loads(quoted) == text


@given(st.text(st.characters(codec="utf-8")))
def test_yaml_strings_are_printable_and_read_back(text: str) -> None:
    assert yaml_string(text).isprintable()
    assert yaml.safe_load(yaml_string(text)) == text


@pytest.mark.parametrize(
    ("text", "cells"), [("abc", 3), ("猫", 2), ("e\u0301", 1), ("µ…", 2), ("", 0)]
)
def test_width_counts_cells_not_characters(text: str, cells: int) -> None:
    assert display_width(text) == cells


@given(PRINTABLE, st.integers(0, 60))
def test_shortened_and_padded_text_takes_the_width_it_is_given(text: str, width: int) -> None:
    assert display_width(shorten(text, width)) <= width
    if width > 2:
        assert display_width(shorten_endpoint(f"c/{text}:8", width + 2)) <= width + 2
    assert display_width(pad(shorten(text, width), width)) == width


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("c/ux-replica-12:36352", 21, "c/ux-replica-12:36352"),
        ("c/ux-replica-12:36352", 16, "c/ux-…a-12:36352"),
        ("p/shop/db-0:443", 8, "p/…0:443"),
        ("[2001:db8:85a3::8a2e:370:7334]:443", 20, "[2001:db8:85a3::8a2e:370:7334]:443"),
        ("r/192.168.100.200:65535", 6, "r/192.168.100.200:65535"),
    ],
)
def test_shortened_endpoint_keeps_its_port_and_an_address_is_never_cut(
    text: str, width: int, shown: str
) -> None:
    assert shorten_endpoint(text, width) == shown


@pytest.mark.parametrize(
    ("width", "shown"), [(17, "ux-web-replica-12"), (12, "ux-web…ca-12"), (2, "u…"), (1, "…")]
)
def test_shortened_name_keeps_both_ends(width: int, shown: str) -> None:
    assert shorten("ux-web-replica-12", width) == shown


@pytest.mark.parametrize("mode", ["columns", "json", "jsonpretty", "yaml", "csv"])
@pytest.mark.parametrize("width", [None, 80])
@pytest.mark.parametrize(
    "hostile", ['\x1b[2J\x07"\n', "\u202egpj.exe", "\udcff\udcfe", "=1+1", "a" * 255]
)
def test_hostile_names_leave_every_mode_harmless(
    mode: str, width: int | None, hostile: str
) -> None:
    batch = events({"comm": hostile[:5], "type": hostile}, owners=[named(hostile)])
    made = output.formatter(mode, COLUMNS, COLUMNS, screen=lambda: Screen(width))
    text = made.header() + made.format(batch) + made.footer()
    text.encode("utf-8")
    lines = text.replace("\r\n", "\n").split("\n")
    assert all(line.isprintable() for line in lines)
    expected = {"columns": 2, "json": 1, "csv": 2}
    assert mode not in expected or len(lines) - 1 == expected[mode]
