"""What is typed on a terminal, whole and in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.top.terminal import keys_at_end, keys_in


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"qG?", ["q", "G", "?"]),
        (
            b"\x1b[A\x1bOB\x1b[1;5C\x1b[5~\x1b[6~\x1b[H",
            ["up", "down", "right", "pageup", "pagedown", "home"],
        ),
        (b"\r\x7f\x1bx", ["enter", "backspace", "escape", "x"]),
        ("µ数".encode(), ["µ", "数"]),
        (b"\x1b[20~\x00\xff\xe2\x80\xae", []),
    ],
)
def test_keys_are_named_also_if_they_come_in_pieces(data: bytes, keys: list[str]) -> None:
    assert [key for key in keys_in(data)[0] if key != "\ufffd"] == keys
    found: list[str] = []
    left = b""
    for byte in data:
        more, left = keys_in(left + bytes([byte]))
        found += more
    assert [key for key in found if key != "\ufffd"] == keys


def test_escape_alone_is_a_key_once_nothing_follows() -> None:
    assert keys_in(b"\x1b") == ([], b"\x1b")
    assert keys_at_end(b"\x1b") == ["escape"]
    assert keys_at_end(b"\xc2") == []


@given(st.binary(max_size=40))
def test_keys_of_any_bytes_are_printable_and_all_are_read(data: bytes) -> None:
    keys, left = keys_in(data)
    assert all(key.isprintable() for key in keys)
    assert len(left) <= len(data)
    assert keys_in(left) == ([], left)
