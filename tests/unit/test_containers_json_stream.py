"""JSON that comes in pieces of any size, and JSON that is larger than anybody could need."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.containers.runtimes.json_stream import decoded, items, lines, members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def pieces(whole: bytes, size: int) -> Callable[[], bytes]:
    """Return a function that gives the next piece with each call, b"" at the end."""
    parts = iter([whole[place : place + size] for place in range(0, len(whole), size)])
    return lambda: next(parts, b"")


@given(st.lists(VALUES, max_size=5), st.integers(1, 40), st.booleans())
def test_items_are_those_of_the_array_whatever_the_pieces(
    values: list[object], size: int, spaced: bool
) -> None:
    whole = json.dumps(values, ensure_ascii=False, indent=1 if spaced else None).encode()
    assert list(items(pieces(whole, size), 10_000)) == values


@given(st.integers(1, 40))
def test_items_that_are_too_large_are_left_out(size: int) -> None:
    large = {"a": 'x\\"]}' * 20, "b": [{"c": ["}", "\\"]}]}
    whole = json.dumps([large, 1.25, large, "small", [[[]]] * 50, -4, large]).encode()
    assert list(items(pieces(whole, size), 64)) == [1.25, "small", -4]


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"{}",
        b"7",
        b'"x"',
        b"[",
        b"[1",
        b"[1,",
        b"[1 2]",
        b"[tru]",
        b"[" * 9999,
        b'["\\',
        b"[}",
    ],
)
def test_items_of_what_is_no_array_are_an_error(whole: bytes) -> None:
    with pytest.raises(ValueError, match="no "):
        list(items(pieces(whole, 3), 64))


def test_integers_beyond_64_bits_cost_no_time_and_are_nothing() -> None:
    assert decoded(b"[" + b"9" * 1_000_000 + b", 9]") == [0, 9]


def test_nesting_without_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="no JSON"):
        decoded(b"[" * 100_000)


@given(st.lists(st.binary(max_size=20)), st.integers(1, 30))
def test_lines_are_whole_whatever_the_pieces(texts: list[bytes], size: int) -> None:
    expected = [text for text in b"\n".join(texts).split(b"\n") if text.strip()]
    whole = b"\n".join([*texts, b""])
    assert list(chain.from_iterable(lines(pieces(whole, size), 100, 1000))) == expected


@given(st.integers(1, 300))
def test_lines_that_are_too_long_are_left_out(size: int) -> None:
    whole = b"first\n" + b"x" * 200 + b"\nlast\n"
    found = chain.from_iterable(lines(pieces(whole, size), 100, 1000))
    assert [line for line in found if len(line) < 200] == [b"first", b"last"]


def test_line_without_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="no end"):
        list(lines(lambda: b"x" * 99, 100, 1000))


@given(
    st.dictionaries(st.text(max_size=8), VALUES, max_size=4),
    st.lists(VALUES, max_size=4),
    st.integers(1, 40),
    st.booleans(),
)
def test_members_are_those_of_the_object_and_items_those_of_one(
    values: dict[str, object], listed: list[object], size: int, spaced: bool
) -> None:
    values.pop("items", None)
    whole = json.dumps({**values, "items": listed}, indent=1 if spaced else None).encode()
    found = list(members(pieces(whole, size), 10_000, "items"))
    assert found == [*values.items(), *(("items", each) for each in listed)]


@given(st.integers(1, 40))
def test_members_that_are_too_large_are_nothing(size: int) -> None:
    large = {"a": 'x\\"]}' * 20, "b": [{"c": ["}", "\\"]}]}
    whole = json.dumps({"a": large, "items": [large, 1, large], "b": 2, "c": large}).encode()
    found = list(members(pieces(whole, size), 64, "items"))
    assert found == [
        ("a", None),
        *(("items", each) for each in (None, 1, None)),
        ("b", 2),
        ("c", None),
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a"', '{"a":1', '{"a" 1}', "{1:2}", '{"a":1,}', "7"]
)
def test_members_of_what_is_no_object_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no "):
        list(members(pieces(text.encode(), 3), 64, "items"))
