"""Lines that a program prints, read in the background: JSON objects mostly."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.host.waiting import PATIENCE

Report = dict[str, Any]


def lost_by_cause(said: str) -> Mapping[str, int]:
    """Return how many events were lost by each cause, by the last report on stderr of JSON."""
    reports = [line for line in said.splitlines() if line.startswith('{"type": "lost"')]
    return dict(json.loads(reports[-1])["causes"]) if reports else {}


def most_lost(said: str) -> int:
    """Return how many events were lost at most, by all causes."""
    return sum(lost_by_cause(said).values())


class Reports:
    """The lines of a stream, kept as they come; those that are JSON objects also as `objects`."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self.lines: list[str] = []
        self.objects: list[Report] = []
        self._stream = stream
        self._changed = threading.Condition()
        self._ended = False
        self._broken = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        for chunk in self._stream:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                self._add(line)
        if rest:
            self._add(rest)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "backslashreplace")
        with self._changed:
            self.lines.append(line)
            if line.startswith("{"):
                try:
                    self.objects.append(json.loads(line))
                except ValueError:
                    self._broken = line
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        self._changed.wait_for(lambda: condition() or self._broken or self._ended, seconds)
        assert not self._broken, f"no JSON object: {self._broken}"
        if not condition():
            state = "the stream ended" if self._ended else f"{seconds:g} s passed"
            raise TimeoutError("\n".join([f"{state} in vain; so far:", *self.lines[-50:]]))

    def all(self, seconds: float = PATIENCE) -> list[Report]:
        """Return all objects, once the stream has ended."""
        with self._changed:
            self._wait(lambda: self._ended, seconds)
            return list(self.objects)

    def matching(
        self, wanted: Callable[[Report], object], count: int = 1, seconds: float = PATIENCE
    ) -> list[Report]:
        """Return the objects that `wanted` holds for, once there are `count` of them."""

        def found() -> list[Report]:
            return [each for each in self.objects if wanted(each)]

        with self._changed:
            self._wait(lambda: len(found()) >= count, seconds)
            return found()

    def ready(self, seconds: float = PATIENCE) -> Report:
        """Return the first line that says `"ready": true`."""
        return self.matching(lambda report: report.get("ready"), seconds=seconds)[0]
