"""What is typed on a terminal, as the names of keys."""

from __future__ import annotations

import re

_NAMED = {
    b"A": "up",
    b"B": "down",
    b"C": "right",
    b"D": "left",
    b"H": "home",
    b"F": "end",
    b"1~": "home",
    b"4~": "end",
    b"5~": "pageup",
    b"6~": "pagedown",
    b"7~": "home",
    b"8~": "end",
}
_SEQUENCE = re.compile(rb"\x1b(?:\[|O)([0-9;]*)([A-Za-z~])")
_BEGUN = re.compile(rb"\x1b(?:(?:\[|O)[0-9;]*)?")
_CONTROLS = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x1b": "escape"}


def parse(data: bytes) -> tuple[list[str], bytes]:
    """Return the keys in what was read, and what is the beginning of another.

    A key is a printable character, or `up`, `down`, `left`, `right`, `home`, `end`, `pageup`,
    `pagedown`, `enter`, `escape` or `backspace`. Others are left out.
    """
    keys: list[str] = []
    while data:
        match = _SEQUENCE.match(data)
        if match:
            name = match[2] if match[2] != b"~" else match[1] + match[2]
            keys += [_NAMED[name]] if name in _NAMED else []
            data = data[match.end() :]
            continue
        if _BEGUN.fullmatch(data):
            return keys, data
        size = _size(data[0])
        if len(data) < size:
            return keys, data
        text = data[:size].decode("utf-8", "replace")
        keys += [key] if (key := _CONTROLS.get(text, text)) and key.isprintable() else []
        data = data[size:]
    return keys, b""


def rest(data: bytes) -> list[str]:
    """Return the key of a beginning after which nothing came: the escape key alone."""
    return ["escape"] if data[:1] == b"\x1b" else []


def _size(first: int) -> int:
    """Return the bytes of a character in UTF-8 by its first one."""
    return 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
