"""A cache of a function's results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Cache(dict[Key, Value]):
    """A bounded cache of a function: `map(cache.__getitem__, keys)` runs without Python frames."""

    def __init__(self, compute: Callable[[Key], Value], limit: int = 16384) -> None:
        super().__init__()
        self._compute = compute
        self._limit = limit

    def __missing__(self, key: Key) -> Value:
        if len(self) >= self._limit:
            self.clear()
        value = self[key] = self._compute(key)
        return value

    def of(self, keys: Sequence[Key]) -> list[Value]:
        """Return the function's value for each key."""
        return list(map(self.__getitem__, keys))
