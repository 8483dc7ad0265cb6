"""Events as YAML 1.2: a document for each, in block style with every string quoted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ig.gadget import Batch, Column
from ig.memo import Cache
from ig.output.json import compile_objects, scalar
from ig.output.text import yaml_string

_PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9]*[A-Za-z0-9_.-]*")
_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Plain keys that YAML 1.1 parsers take for something else than text."""


class YamlFormatter:
    """One document an event, each begun by `---`, in the shape of the JSON object."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._objects = compile_objects(columns)

    def header(self, batch: Batch | None = None) -> str:  # noqa: ARG002 - as other formatters'
        """Return nothing: each document begins itself."""
        return ""

    def format(self, batch: Batch) -> str:
        """Return the batch's documents."""
        return "".join(map(_document, self._objects(batch).split("\n")[:-1]))

    def footer(self) -> str:
        """Return nothing."""
        return ""


def _document(text: str) -> str:
    return "\n".join(["---", *_block(json.loads(text))]) + "\n"


def _block(value: Any) -> Iterator[str]:
    """Yield the lines of a value, not indented."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _member(_KEYS[key], item)
    elif isinstance(value, list) and value:
        for item in value:
            yield from _member("-", item)
    else:
        yield scalar(value, _STRINGS)


def _member(label: str, value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list)) and value:
        yield label
        yield from (f"  {line}" for line in _block(value))
    else:
        yield f"{label} {scalar(value, _STRINGS)}"


def _key(key: str) -> str:
    plain = _PLAIN_KEY.fullmatch(key) and key.lower() not in _RESERVED
    return f"{key if plain else yaml_string(key)}:"


_KEYS: Cache[str, str] = Cache(_key, 1024)
_STRINGS: Cache[str, str] = Cache(yaml_string, 8192)
