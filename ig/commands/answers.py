"""Which runtimes answered, and the messages about those that did not."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from ig.container import Container, Runtime
from ig.containers.index import Index
from ig.containers.selection import Selection
from ig.errors import IgError
from ig.output.stream import say
from ig.stop import Stopped

_STDERR = 2
_NAMED = 8  # containers that a message lists
_HOST = "Use --host to include processes of the host."
_CHOICES = (
    ("containername", "-c"),
    ("podname", "--podname"),
    ("namespace", "-n"),
    ("selector", "--selector"),
)


class Answers(NamedTuple):
    """The runtimes that answered and those that did not."""

    listed: tuple[Runtime, ...]
    """They have listed all their containers."""
    missing: tuple[Runtime, ...]
    """They have not, although the user named them or their socket exists."""
    pending: tuple[Runtime, ...]
    """Those of the missing that have not failed and may still answer."""
    asked: frozenset[str]
    """The names of those that the user named."""

    @property
    def lacking(self) -> tuple[Runtime, ...]:
        """The missing runtimes that matter: all if none answered, else those the user named."""
        if not self.listed:
            return self.missing
        return tuple(each for each in self.missing if each.name in self.asked)


def of(index: Index, asked: Collection[str]) -> Answers:
    """Return which of an index's runtimes answered so far."""
    listed, missing, pending = [], [], []
    for source, runtime in index.sources.items():
        if source in index.synced:
            listed.append(runtime)
        elif runtime.name in asked or is_there(runtime.socket):
            missing.append(runtime)
            if source in index.unlisted:
                pending.append(runtime)
    return Answers(tuple(listed), tuple(missing), tuple(pending), frozenset(asked))


def is_there(socket: str) -> bool:
    """Return whether a runtime's socket exists; true if that cannot be determined."""
    try:
        os.stat(socket)
    except (FileNotFoundError, NotADirectoryError):
        return not socket.startswith("/")
    except OSError:
        pass
    return True


def places(runtimes: Iterable[Runtime]) -> str:
    """Return the names and sockets of runtimes, for a message."""
    return ", ".join(f"{each.name} ({each.socket})" for each in runtimes)


def none_running(answers: Answers, later: str) -> str:
    """Return the message that no container is running, "" if that is unknown.

    `later` is appended to its first sentence.
    """
    if answers.missing:
        return "" if answers.listed or not later else _HOST
    if not answers.listed:
        return f"No container runtime found. {_HOST}"
    names = sorted({each.name for each in answers.listed})
    whose = f" of {', '.join(names)}" if answers.asked else ""
    return f"No container{whose} is running{later}. {_HOST}"


def unmatched(
    chosen: Selection, options: Mapping[str, Any], containers: Sequence[Container]
) -> str:
    """Return a message if containers are selected and no running one matches, else ""."""
    if not containers or chosen.host_only or any(map(chosen.wants, containers)):
        return ""
    choice = [
        f"{flag} {shlex.quote(value)}"
        for name, flag in _CHOICES
        for value in options.get(name) or ()
    ]
    names = sorted({each.name for each in containers})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    running = ", ".join(names[:_NAMED]) + more
    return f"No running container matches {' '.join(choice) or 'the selection'}; running: {running}"


def need_all(answers: Answers, what: str) -> None:
    """Raise IgError if runtimes that matter have not listed their containers."""
    if answers.lacking:
        raise IgError(
            f"{what}: no answer from {places(answers.lacking)}.",
            remedy="Run `ig doctor` to see which runtimes answer; use -r to query only some.",
        )


@contextmanager
def closing(index: Index) -> Iterator[None]:
    """Close the index at the end, unless the process is ending, which ends its threads."""
    try:
        yield
    except Stopped:
        raise
    except BaseException:
        index.close()
        raise
    index.close()


def need_owners(answers: Answers, chosen: Selection) -> None:
    """Raise IgError if owners may be missing because a runtime did not answer."""
    if not chosen.host_only:
        need_all(answers, "Owners may be missing")


class Hint:
    """Reports, once, that no running container matches the selection.

    On a terminal after a while, elsewhere at the end, if nothing was shown.
    """

    def __init__(
        self, index: Index, chosen: Selection, options: Mapping[str, Any], after: float = 3.0
    ) -> None:
        self._line = partial(_line, index, chosen, options)
        self._timer = threading.Timer(after, self._report, (" (waiting)",))
        self._timer.daemon = True
        self._shown = not chosen.narrow

    def __enter__(self) -> Hint:
        if os.isatty(_STDERR) and not self._shown:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def report_now(self) -> None:
        """Report it now, on a terminal only: elsewhere an empty list is sufficient."""
        if os.isatty(_STDERR):
            self._report("")

    def report_at_end(self, shown: int) -> None:
        """Report it now, if it was not reported and no event was shown."""
        self._timer.cancel()
        if not shown:
            self._report("")

    def _report(self, more: str) -> None:
        line = "" if self._shown else self._line()
        if line:
            self._shown = True
            say(line + more)


def _line(index: Index, chosen: Selection, options: Mapping[str, Any]) -> str:
    return unmatched(chosen, options, index.containers())
