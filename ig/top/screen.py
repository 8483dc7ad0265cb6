"""One screen of `ig top` as text: a status line, headings, rows, and what can be done next."""

from __future__ import annotations

import io
import textwrap
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from ig.ends import NAMED_ENDS
from ig.gadget import Column
from ig.gadgets.top_tcp import compact
from ig.output.layout import Need, arrange, short_heading
from ig.output.text import cells, display_width, pad, shorten, shorten_endpoint, visible
from ig.top.interval import Interval
from ig.top.pairs import members
from ig.top.rows import Row
from ig.top.view import HELP, OF_PROCESS, SHORT_HELP, View
from ig.values import SECOND, format_milliseconds

_MOST_CONNECTIONS = 50
"""Connections of a row that are shown."""
_LEAST_END = 12
_KEYS = ("? help", "q quit", "/ filter", "g group", "f failures", "p pause", "enter connections")


class Screen:
    """Draws intervals as they are viewed."""

    def __init__(self, columns: Sequence[Column], no_color: bool) -> None:
        """`columns` are those that are shown, in their order."""
        self._columns, self._no_color = columns, no_color
        self.rows: Sequence[Row] = ()
        """The rows that were drawn last."""

    def frame(self, view: View, interval: Interval, said: str, size: tuple[int, int]) -> str:
        """Return what to write so that a terminal of so many columns and rows shows this now."""
        width, height = size
        lines = self.lines(view, interval, said, size)[:height]
        out = io.StringIO()
        console = Console(
            file=out,
            width=max(width, 1),
            color_system="standard",
            force_terminal=True,
            no_color=self._no_color,
            highlight=False,
            markup=False,
            legacy_windows=False,
        )
        for number, line in enumerate(lines):
            out.write("\x1b[K\r\n" if number else "\x1b[H")
            line.truncate(width)
            if line:
                console.print(line, end="", no_wrap=True, overflow="crop", soft_wrap=True)
        return out.getvalue() + "\x1b[K\x1b[J"

    def lines(self, view: View, interval: Interval, said: str, size: tuple[int, int]) -> list[Text]:
        """Return the lines of the screen, as many as it has; they may be longer than it."""
        width, height = size
        rows = self.rows = view.rows(interval, time.time_ns())
        room = max(height - 2, 0)
        view.page = max(room - 1, 1)
        if view.help:
            body = _help(width, room)
        else:
            body = _around(*self._table(view, interval, rows, width), room)
        blank = [Text()] * (room - len(body))
        return [_status(view, interval, len(rows)), *body[:room], *blank, _foot(view, said, width)]

    def _table(
        self, view: View, interval: Interval, rows: list[Row], width: int
    ) -> tuple[list[Text], int]:
        """Return the headings and lines of rows, and the place of the selected one."""
        columns = [c for c in self._columns if c.name not in OF_PROCESS or view.by == "process"]
        # Only what is on the screen is made text, and sizes the columns.
        first = max(0, view.place - view.page)
        seen = rows[first : first + 2 * view.page + 1]
        batch = interval.batch(seen)
        texts = [[visible(text) or "-" for text in cells(column, batch)] for column in columns]
        needs = [_need(column, texts[place]) for place, column in enumerate(columns)]
        widths = arrange(columns, needs, width)
        heads = zip(columns, widths, strict=True)
        lines = [_heading([(c, most) for c, most in heads if most is not None], view)]
        selected = 0
        for number, row in enumerate(seen):
            parts = [
                _cell(column, texts[place][number], most)
                for place, (column, most) in enumerate(zip(columns, widths, strict=True))
                if most is not None
            ]
            style = "dim" if row.ended else "red" if row.failed else ""
            chosen = first + number == view.place
            if chosen:
                selected, style = len(lines), f"{style} reverse"
            lines.append(Text(pad(" ".join(parts), width), style))
            if row.key in view.opened:
                lines += _connections(view, interval, row)
        return lines, selected


def _around(lines: list[Text], selected: int, room: int) -> list[Text]:
    """Return the heading, and as many lines as there is room for, around the selected row."""
    start = max(1, min(selected - room // 2, len(lines) - room + 1))
    return [*lines[:1], *lines[start : start + room - 1]]


def _need(column: Column, texts: Sequence[str]) -> Need:
    longest = max(map(display_width, texts), default=0)
    wanted = max(longest, short_heading(column))
    if not column.least:
        return Need(wanted, wanted)
    bare = [text for text in texts if not text.startswith(NAMED_ENDS)]
    if column.name in ("dst", "client"):
        least = max(map(display_width, bare), default=_LEAST_END)
        return Need(min(wanted, max(least, _LEAST_END)), wanted)
    return Need(min(wanted, column.least), wanted)


def _cell(column: Column, text: str, most: int) -> str:
    cut = shorten_endpoint if column.name in ("dst", "client") else shorten
    return pad(cut(text, most) if column.least else text, most, column.right)


def _heading(columns: Sequence[tuple[Column, int]], view: View) -> Text:
    line = Text()
    for number, (column, most) in enumerate(columns):
        heading = pad(shorten(column.heading or column.name.upper(), most), most, column.right)
        by = column.name.removesuffix("_rate")
        chosen = by == view.order or (by == "client" and view.order == "dst")
        line.append(" " if number else "")
        line.append(heading, "bold reverse" if chosen else "bold")
    return line


def _status(view: View, interval: Interval, count: int) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(interval.now // SECOND))
    what = f"by {view.by}: {count}" if view.by != "pair" else f"pairs: {count}"
    order = view.order.replace("containername", "container").replace("_", " ")
    parts = [what, f"{order} {'↓' if view.descending else '↑'}"]
    parts += ["failures only"] if view.failures else []
    parts += [f"filter {visible(view.text)}"] if view.text else []
    line = Text("ig top tcp", "bold")
    line.append(f" {clock}  ", "not bold")
    line.append("PAUSED  " if view.paused else "", "bold yellow")
    line.append(", ".join(parts), "not bold")
    return line


def _foot(view: View, said: str, width: int) -> Text:
    if view.typing is not None:
        line = Text("filter: ", "bold")
        line.append(visible(view.typing), "not bold")
        line.append(" ", "reverse")
        line.append(f"  {visible(view.message)}" if view.message else "", "red")
        return line
    if view.message or said:
        return Text(visible(view.message or said), "yellow")
    shown = list(_KEYS)
    while len("  ".join(shown)) > width and len(shown) > 1:
        del shown[-1]
    return Text("  ".join(shown), "dim")


def _help(width: int, room: int) -> list[Text]:
    """Return what the keys do: a line each, or in short if there is no room for that."""
    widest = max(len(key) for key, _ in HELP)
    lines = [f"{key:<{widest}}  {what}" for key, what in HELP]
    if len(lines) > room or max(map(len, lines)) > width:
        lines = textwrap.wrap(SHORT_HELP, width)
    return list(map(Text, lines))


def _connections(view: View, interval: Interval, row: Row) -> Iterator[Text]:
    """Yield a line for each connection of a row."""
    traffic = interval.traffic
    fields, places = traffic.sockets.fields, members(interval.rows, traffic, row, view.by)
    for place in places[:_MOST_CONNECTIONS]:
        near, far = (
            f"[{fields[end][place]}]" if ":" in fields[end][place] else fields[end][place]
            for end in ("saddr", "daddr")
        )
        ends = f"{near}:{fields['sport'][place]} {far}:{fields['dport'][place]}"
        rtt = format_milliseconds([fields["rtt"][place]])[0]
        rates = (traffic.bytes_in[place], traffic.bytes_out[place])
        inbound, outbound = (compact(each / (interval.seconds or 1)) for each in rates)
        sent_again = fields["retransmits"][place]
        yield Text(
            f"  {ends} {fields['state'][place].lower()} in {inbound} out {outbound} "
            f"rtt {rtt} retr {sent_again}"
        )
    if len(places) > _MOST_CONNECTIONS:
        yield Text(f"  and {len(places) - _MOST_CONNECTIONS} more", "dim")
    if not places:
        yield Text("  no open connections", "dim")
