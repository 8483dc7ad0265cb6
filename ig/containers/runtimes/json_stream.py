"""Read JSON as it comes: an array item by item, or lines, so that little is in memory at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator

_LONGEST_NAME = 4096  # characters of a member's name
_LONGEST_INTEGER = 20  # digits; more is no number that an engine has, and costs time to convert
_DEEPEST = 512  # arrays and objects within each other in what is left out

_DECODER = json.JSONDecoder(
    parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_INTEGER else 0
)

_BLANK = re.compile(r"[ \t\r\n]*")
_BEHIND = (*",:]} \t\r\n",)
_STRUCTURE = re.compile(r'["\[\]{},]')
_IN_STRING = re.compile(r'["\\]')


def decoded(body: bytes) -> object:
    """Return what JSON says, 0 for integers beyond 64 bits. Raises ValueError for what is none."""
    try:
        return _DECODER.decode(body.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("no JSON") from None


def lines(read: Callable[[], bytes], largest: int, longest: int) -> Iterator[list[bytes]]:
    """Yield the lines that are not blank of each piece that `read` returns, b"" at the end.

    Lines of more than `largest` bytes are left out. Raises ValueError for one of more than
    `longest`; what follows the last line's end is not yielded.
    """
    pending, left_out = bytearray(), 0
    while piece := read():
        if left_out:
            cut, ended, piece = piece.partition(b"\n")
            left_out = 0 if ended else left_out + len(cut)
        whole, ended, rest = piece.rpartition(b"\n")
        if ended:
            pending += whole
            yield list(filter(bytes.strip, bytes(pending).split(b"\n")))
            pending = bytearray()
        pending += rest
        if len(pending) > largest:
            left_out, pending = left_out + len(pending), bytearray()
        if left_out > longest:
            raise ValueError("no end")


def items(read: Callable[[], bytes], largest: int) -> Iterator[object]:
    """Yield the items of a JSON array whose pieces `read` returns, b"" at the end.

    Items of more than `largest` characters are left out. Raises ValueError for what is no array.
    """
    for item in _Text(read).items(largest):
        yield from item


def members(read: Callable[[], bytes], largest: int, listed: str) -> Iterator[tuple[str, object]]:
    """Yield the names and values of a JSON object, of the array that is called `listed` each item.

    Values of more than `largest` characters are None. Raises ValueError for what is no object.
    """
    text = _Text(read)
    for _ in text.parts("{}"):
        name = next(text.item(_LONGEST_NAME), None)
        if not isinstance(name, str) or text.next() != ":":
            raise ValueError("no object")
        text.advance(1)
        if text.next() == "[" and name == listed:
            for item in text.items(largest):
                yield name, next(item, None)
        else:
            yield name, next(text.item(largest), None)


class _Text:
    """What has come of a text, without what was read already."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._place = 0
        self._ended = False

    def next(self) -> str:
        """Return the next character that is no blank, and stay before it; "" at the end."""
        while True:
            match = _BLANK.match(self._text, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def advance(self, count: int) -> None:
        self._place += count

    def parts(self, brackets: str) -> Iterator[None]:
        """Yield at the beginning of each part between brackets, `[]` or `{}`; go behind them."""
        if self.next() != brackets[0]:
            raise ValueError(f"no {brackets}")
        self.advance(1)
        if self.next() == brackets[1]:
            self.advance(1)
            return
        while True:
            self.next()
            yield
            separator = self.next()
            self.advance(1)
            if separator == brackets[1]:
                return
            if separator != ",":
                raise ValueError(f"no {brackets}")

    def items(self, largest: int) -> Iterator[Iterator[object]]:
        """Yield `item` for each item of the array that begins here."""
        for _ in self.parts("[]"):
            yield self.item(largest)

    def item(self, largest: int) -> Iterator[object]:
        """Yield the value that begins here, nothing if it is too large; go behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except (ValueError, RecursionError):
                end = len(self._text)
            else:
                # Of a number, a part may have come: 1 of 1.5.
                if self._text[end : end + 1] in _BEHIND or self._ended:
                    self._place = end
                    yield value
                    return
            if end - self._place > largest:
                self._skip()
                return
            if not self._more():
                raise ValueError("no JSON")

    def _more(self) -> bool:
        """Take in another piece; return whether there was one."""
        if self._ended:
            return False
        piece = self._read()
        self._ended = not piece
        self._text = self._text[self._place :] + self._decoder.decode(piece, not piece)
        self._place = 0
        return True

    def _skip(self) -> None:
        """Go to the comma or bracket behind the value that begins here, without keeping it."""
        depth, quoted = 0, False
        while True:
            match = (_IN_STRING if quoted else _STRUCTURE).search(self._text, self._place)
            if match is None or (match[0] == "\\" and match.end() == len(self._text)):
                self._place = match.start() if match else len(self._text)
                if not self._more():
                    raise ValueError("no JSON")
                continue
            mark = match[0]
            if not depth and not quoted and mark in ",]}":
                self._place = match.start()
                return
            self._place = match.end() + (mark == "\\")
            quoted = quoted != (mark == '"')
            if not quoted and mark in "[]{}":
                depth += 1 if mark in "[{" else -1
            if depth > _DEEPEST:
                raise ValueError("no JSON")
