"""Output formats: tables, JSON, YAML and CSV, from columns and batches of events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ig.errors import UsageError
from ig.gadget import Column
from ig.output.layout import Screen
from ig.query import find_column

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from ig.output.sink import Formatter, Sink

MODES = ("columns", "custom-columns", "json", "jsonl", "jsonpretty", "yaml", "csv")
SINKS = "ig.sinks"
"""The entry point group in which other packages offer sinks."""
_WITH_COLUMNS = ("columns", "custom-columns", "csv")


def formatter(
    mode: str,
    columns: Sequence[Column],
    shown: Sequence[Column],
    *,
    array: bool = False,
    screen: Callable[[], Screen] = Screen,
    color: bool = False,
    heading: bool = True,
    keep: bool = False,
) -> Formatter:
    """Return the formatter of a mode that `parse_output` gave.

    `columns` are all of the gadget's (or view's), `shown` those of tables and CSV, which begin with
    a `heading`. With `array`, `json` and `jsonpretty` are one array, as a snapshot is printed. A
    table fits the `screen`, in colours if so asked; with `keep` no column is left out for that.
    """
    if mode not in MODES:
        raise UsageError(f"Output mode {mode!r} is not available here.", remedy=_known([]))
    # Each takes milliseconds to import, and one command needs one.
    if mode == "csv":
        from ig.output.csv import CsvFormatter

        return CsvFormatter(shown, heading)
    if mode == "yaml":
        from ig.output.yaml import YamlFormatter

        return YamlFormatter(columns)
    if mode in ("json", "jsonl", "jsonpretty"):
        from ig.output.json import JsonFormatter

        return JsonFormatter(columns, array=array and mode != "jsonl", pretty=mode == "jsonpretty")
    from ig.output.table import TableFormatter

    return TableFormatter(columns, shown, screen=screen, color=color, heading=heading, keep=keep)


def shown_columns(columns: Sequence[Column], options: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return the columns that are shown when none are named, with these options of the gadget."""
    return tuple(c for c in columns if not c.hidden or (c.show_if and c.show_if(options)))


def parse_output(
    text: str, columns: Sequence[Column], default: Sequence[Column] | None = None
) -> tuple[str, tuple[Column, ...]]:
    """Return the mode (of MODES, not `custom-columns`) and the shown columns that `-o TEXT` means.

    Where it names none these are `default`, or those not hidden. Another mode is the name of a
    sink of another package. Raises UsageError for an unknown mode or column, and for a list where
    the mode takes none.
    """
    mode, equals, names = text.strip().partition("=")
    mode = mode.strip().lower()
    usual = shown_columns(columns, {}) if default is None else tuple(default)
    if mode not in MODES:
        offered = _offered()
        if mode in offered:
            return mode, usual
        near = get_close_matches(mode[:64], [*MODES, *offered], n=1)
        raise UsageError(
            f"Unknown output mode {mode[:64]!r}.",
            _known(offered),
            f"Did you mean {near[0]!r}?" if near else "",
        )
    if equals and mode not in _WITH_COLUMNS:
        raise UsageError(
            f"Output mode {mode!r} does not accept a list of columns.",
            f"Found {names[:64]!r}; this mode always prints all columns.",
            f"Use columns={names[:64]} or csv={names[:64]}.",
        )
    shown = _named(names, columns, usual) if equals else usual
    return ("columns" if mode == "custom-columns" else mode), shown


def offered_sink(text: str, columns: Sequence[Column]) -> Sink:
    """Return the sink of another package for `-o TEXT`, a mode that `parse_output` gave."""
    mode, _, argument = text.strip().partition("=")
    sink: Sink = _offered()[mode.strip().lower()].load()(columns, argument)
    return sink


def _offered() -> Mapping[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=SINKS)}


def _known(offered: Iterable[str]) -> str:
    return "Known modes: " + ", ".join((*MODES, *offered))


def _named(names: str, columns: Sequence[Column], usual: Sequence[Column]) -> tuple[Column, ...]:
    """Return the columns of `A,B`, or the usual ones changed by `+A,-B`."""
    shown: list[Column] = []
    if names.lstrip().startswith(("+", "-")):
        shown += usual
    for name in names.split(","):
        sign, bare = name.strip()[:1], name.strip().lstrip("+-")
        column = find_column(bare, columns)
        if sign == "-":
            shown = [each for each in shown if each.name != column.name]
        elif sign != "+" or column.name not in {each.name for each in shown}:
            shown.append(column)
    if not shown:
        raise UsageError(f"{names[:64]!r} removes all columns.", remedy="Keep at least one column.")
    return tuple(shown)
