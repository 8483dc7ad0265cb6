"""What the user has chosen to see, changed by keys, and the rows that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from ig.errors import IgError
from ig.filters import parse
from ig.gadget import Batch, Column, Stage
from ig.gadgets.top_tcp import GROUPS
from ig.query import sort
from ig.top.interval import Interval
from ig.top.pairs import LINGER
from ig.top.rows import Row, grouped

SORTS = {
    "C": "containername",
    "D": "dst",
    "O": "open",
    "N": "new",
    "F": "failed",
    "L": "p99",
    "I": "bytes_in",
    "W": "bytes_out",
    "R": "retransmits",
    "S": "since",
}
"""The columns that can be sorted by, by the letter that chooses each."""
_ORDER = tuple(SORTS.values())
_TEXTS = ("containername", "dst", "since")
"""The columns that are sorted in ascending order at first."""
_MOST_TYPED = 200
OF_PROCESS = ("pid", "comm")
"""The columns of rows by process."""


@dataclass
class View:
    """The choices; `press` changes them."""

    columns: Sequence[Column]
    filters: Sequence[Stage] = ()
    """Those of the command line."""
    by: str = "pair"
    order: str = "new"
    descending: bool = True
    failures: bool = False
    """Whether only rows are shown in which something failed, for as long as rows stay."""
    text: str = ""
    """The filter that was typed."""
    typing: str | None = None
    """What is being typed, None if nothing is."""
    paused: bool = False
    help: bool = False
    place: int = 0
    """The line that is selected."""
    page: int = 10
    """How many lines there is room for."""
    opened: set[Hashable] = field(default_factory=set)
    """The rows whose connections are shown."""
    message: str = ""
    _predicate: Callable[[Batch], Sequence[object]] | None = None

    def press(self, key: str, shown: Sequence[Row]) -> bool:
        """Do what a key means, with these rows on the screen; return false to quit."""
        self.message = ""
        if self.typing is not None:
            self._type(key)
        elif key == "q":
            return False
        elif self.help:
            self.help = False
        elif key in _MOVES:
            self._move(key, len(shown))
        elif key in SORTS:
            self._sort(SORTS[key])
        elif key == "enter" and shown:
            self.opened ^= {shown[min(self.place, len(shown) - 1)].key}
        elif key in _ACTIONS:
            _ACTIONS[key](self)
        return True

    def rows(self, interval: Interval, now: int) -> list[Row]:
        """Return the rows of an interval that are wanted, in order; `now` in ns since the epoch."""
        rows = [row for row in interval.rows if not row.ended or now - row.ended < LINGER]
        if self.failures:
            rows = [row for row in rows if row.failed or now - row.failed_at < LINGER]
        rows = grouped(self._filtered(rows, interval), self.by)
        if not rows:
            return []
        keys = [f"{'-' if self.descending else ''}{self.order}", "containername", "dst"]
        batch = sort(interval.batch(rows), self.columns, keys)
        found: list[Row] = list(batch.fields["row"])
        self.place = min(self.place, len(found) - 1)
        return found

    def _filtered(self, rows: list[Row], interval: Interval) -> list[Row]:
        if not rows or not (self.filters or self._predicate):
            return rows
        batch = interval.batch(rows)
        try:
            for stage in self.filters:
                batch = stage.feed(batch)
            if self._predicate and len(batch):
                batch = batch.select(self._predicate(batch))
        except IgError as error:  # an expression that takes too long
            self.message, self._predicate = error.failed, None
        return list(batch.fields.get("row", ())) if len(batch) else []

    def _type(self, key: str) -> None:
        typed = self.typing or ""
        if key == "escape":
            self.typing = None
        elif key == "backspace":
            self.typing = typed[:-1]
        elif key == "enter":
            self._set_filter(typed)
        elif len(key) == 1:
            self.typing = (typed + key)[:_MOST_TYPED]

    def _set_filter(self, text: str) -> None:
        try:
            self._predicate = parse([text], self.columns) if text.strip() else None
        except IgError as error:
            self.message = " ".join(error.lines())
            return
        self.text, self.typing, self.place = text.strip(), None, 0

    def _move(self, key: str, count: int) -> None:
        steps = {"up": -1, "down": 1, "pageup": -self.page, "pagedown": self.page}
        place = {"home": 0, "end": count}.get(key, self.place + steps.get(key, 0))
        self.place = max(0, min(place, count - 1))

    def _sort(self, name: str) -> None:
        self.descending = not self.descending if name == self.order else name not in _TEXTS
        self.order = name

    def _step(self, by: int) -> None:
        place = _ORDER.index(self.order) if self.order in _ORDER else 0
        self.order = _ORDER[(place + by) % len(_ORDER)]
        self.descending = self.order not in _TEXTS

    def _escape(self) -> None:
        self._set_filter("")
        self.opened.clear()

    def _next_group(self) -> None:
        self.by = GROUPS[(GROUPS.index(self.by) + 1) % len(GROUPS)]
        self.place = 0
        self.opened.clear()

    def _begin_typing(self) -> None:
        self.typing = self.text

    def _turn(self, name: str) -> None:
        setattr(self, name, not getattr(self, name))


_MOVES = ("up", "down", "pageup", "pagedown", "home", "end")
_ACTIONS: dict[str, Callable[[View], None]] = {
    "left": lambda view: view._step(-1),
    "right": lambda view: view._step(1),
    "<": lambda view: view._step(-1),
    ">": lambda view: view._step(1),
    "r": lambda view: view._turn("descending"),
    "f": lambda view: view._turn("failures"),
    "p": lambda view: view._turn("paused"),
    " ": lambda view: view._turn("paused"),
    "?": lambda view: view._turn("help"),
    "h": lambda view: view._turn("help"),
    "g": View._next_group,
    "/": View._begin_typing,
    "escape": View._escape,
}
HELP = (
    ("q", "quit"),
    ("up, down", "select a row (page up, page down, home, end)"),
    ("enter", "show or hide its connections"),
    ("left, right", "sort by another column"),
    *(
        (letter, f"sort by {what}")
        for letter, what in (
            *(("C", "container"), ("D", "destination"), ("O", "open"), ("N", "new")),
            *(("F", "failed"), ("L", "latency"), ("I", "bytes in"), ("W", "bytes out")),
            *(("R", "retransmits"), ("S", "since")),
        )
    ),
    ("r", "reverse the order"),
    ("g", "group rows"),
    ("f", "failures only"),
    ("/", "filter as with -F: open>10, dst.name==db"),
    ("esc", "no filter, no connections"),
    ("p", "pause"),
)
"""The keys and what they do."""
SHORT_HELP = (
    "q quit, up and down select, enter connections, left and right sort, r reverse, g group, "
    f"f failures, / filter, esc no filter, p pause; {' '.join(SORTS)} sort by that column"
)
"""The same in short."""
