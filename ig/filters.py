r"""Filters on columns, as users type them (`comm==wget`, `port:>=1024`, `latency>10ms`).

An expression is a column's name, an operator and a value. Several, separated by commas or repeated,
must all match; of alternatives separated by `||` one must match. Operators are
`== != < <= > >= ~ !~`, where `~` searches a regular expression and `=` is `==`, or a colon with an
operator after it: `comm:wget`, `comm:!wget`, `port:>=1024`, `comm:~re`, `comm:!~re`. A bare value
after a comma is added to the set before it: `outcome==refused,timed-out`,
`dst.port!=80,443`. A comma that belongs to a value is written `\,`.

Addresses are also compared to networks (`dst.addr==172.18.0.0/16`), users and groups to names
(`uid==root`), ports to services (`dst.port==http`). A bare number of a duration is in ms.
"""

from __future__ import annotations

import ipaddress
import operator
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from ig.errors import UsageError
from ig.gadget import Batch, Column, Kind
from ig.memo import Cache
from ig.output.text import BOOLEANS, texts
from ig.query import find_column
from ig.values import MILLISECOND, parse_duration, parse_group, parse_port, parse_time, parse_user

Predicate = Callable[[Batch], Sequence[bool]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_EXPRESSION = r"(?s)\s*([^\s=!<>~:,]+)\s*(==|!=|<=|>=|!~|~|<|>|=|:)(.*)"
_CLASSIC = r"(?s)\s*(!~|!|<=|>=|<|>|~|)(.*)"
_FROM_CLASSIC = {"": "==", "!": "!="}
_SEPARATOR = r"(?<!\\),"
_ALTERNATIVE = r"\s*\|\|\s*"
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SETS = ("==", "!=", "=")
_NETWORK = (ipaddress.IPv4Network, ipaddress.IPv6Network)
_NUMBERED: Mapping[str, Callable[[str], int]] = {
    "uid": parse_user,
    "gid": parse_group,
    **dict.fromkeys(("port", "sport", "dport", "src.port", "dst.port"), parse_port),
}
"""The parser of names, for columns whose numbers have names."""
_INTEGER = r"[+-]?[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}"
_MOST_CPU = 1.0
"""Seconds of CPU time for a regular expression per batch of 4,096 names; some ms are usual."""
_SHOWN = 64
"""Characters of the user's text that a message quotes."""


def parse(expressions: Sequence[str], columns: Sequence[Column]) -> Predicate | None:
    """Return a predicate on batches, true for events that match all expressions; None for none.

    Columns have the names that `find_column` accepts. Numbers and times compare as numbers,
    strings by code point. A duration is `10ms` or a number of ms, and one that there was none of
    is not less than any; a time is RFC 3339 or nanoseconds since the epoch. Raises UsageError for
    an unknown column, a missing operator, and a value that the column cannot have.
    """
    return _joined(all, [_alternatives(each, columns) for each in expressions])


def filtered(expressions: Sequence[str], columns: Sequence[Column]) -> list[Column]:
    """Return the columns that the expressions look at. Raises UsageError for an unknown one."""
    parts = [part for each in expressions for part in re.split(_ALTERNATIVE, each)]
    matches = [
        re.fullmatch(_EXPRESSION, each) for part in parts for each in re.split(_SEPARATOR, part)
    ]
    return [find_column(match[1], columns) for match in matches if match]


def _alternatives(expression: str, columns: Sequence[Column]) -> Predicate:
    parts = re.split(_ALTERNATIVE, expression)
    found = _joined(any, [_conjunction(part, columns) for part in parts])
    assert found
    return found


def _conjunction(text: str, columns: Sequence[Column]) -> Predicate:
    """Return a predicate that is true if all comma-separated expressions match."""
    parts: list[list[str]] = []
    for part in re.split(_SEPARATOR, text):
        value = part.replace("\\,", ",")
        if (
            parts
            and value.strip()
            and not re.fullmatch(_EXPRESSION, value)
            and _takes_set(parts[-1][0])
        ):
            parts[-1].append(value)
        else:
            parts.append([value])
    found = _joined(all, [_predicate(first, more, columns) for first, *more in parts])
    assert found
    return found


def _takes_set(expression: str) -> bool:
    match = re.fullmatch(_EXPRESSION, expression)
    if not match:
        return False
    symbol = _classic(match[3])[0] if match[2] == ":" else match[2]
    return symbol in _SETS


def _joined(
    join: Callable[[Iterable[bool]], bool], predicates: Sequence[Predicate]
) -> Predicate | None:
    if len(predicates) <= 1:
        return predicates[0] if predicates else None

    def joined(batch: Batch) -> Sequence[bool]:
        return list(map(join, zip(*[predicate(batch) for predicate in predicates], strict=True)))

    return joined


def _predicate(expression: str, more: Sequence[str], columns: Sequence[Column]) -> Predicate:
    """Return the predicate of an expression, and of what else is in its set of values."""
    match = re.fullmatch(_EXPRESSION, expression)
    if not match:
        raise UsageError(
            f"Invalid filter {expression[:_SHOWN]!r}.",
            "It is empty."
            if not expression.strip()
            else "Expected a column, an operator and a value.",
            "Use comm==wget or comm:wget. Operators: == != < <= > >= ~ !~ : :! :>= :~ ...",
        )
    name, symbol, value = match.groups()
    if symbol == ":":
        symbol, value = _classic(value)
    column = find_column(name, columns)
    if symbol in ("~", "!~"):
        return _search(column, value.strip(), wanted=symbol == "~")
    values = [_value(column, symbol, each.strip()) for each in (value, *more)]
    if column.values and symbol in _SETS:
        for each in values:
            _need_known(column, each)
    if symbol in _SETS and (more or _is_address(column)):
        return _membership(column, values, wanted=symbol != "!=")
    return _comparison(column, symbol, values[0])


def _need_known(column: Column, value: str) -> None:
    if value and value not in column.values:
        lower = {known.lower(): known for known in column.values}
        near = get_close_matches(value.lower()[:_SHOWN], lower, n=1)
        raise UsageError(
            f"Invalid value {value[:_SHOWN]!r} for column {column.name}.",
            f"Known values: {', '.join(column.values)}",
            f"Did you mean {lower[near[0]]!r}?" if near else "",
        )


def _is_address(column: Column) -> bool:
    return column.kind is Kind.STRING and column.name.endswith("addr")


def _membership(column: Column, values: Sequence[Any], *, wanted: bool) -> Predicate:
    """Return whether a value is among others or, as an address, in one of several networks."""
    chosen = {value for value in values if not isinstance(value, _NETWORK)}
    networks = [value for value in values if isinstance(value, _NETWORK)]
    if not networks:
        return lambda batch: [(value in chosen) == wanted for value in batch.read(column)]

    def holds(text: str) -> bool:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return not wanted
        return (text in chosen or any(address in network for network in networks)) == wanted

    found: Cache[str, bool] = Cache(holds, 4096)
    return lambda batch: found.of(batch.read(column))


def _classic(text: str) -> tuple[str, str]:
    match = re.fullmatch(_CLASSIC, text)
    assert match  # every part may be empty
    return _FROM_CLASSIC.get(match[1], match[1]), match[2]


def _search(column: Column, pattern: str, *, wanted: bool) -> Predicate:
    try:
        with _bounded(column, pattern):
            search = re.compile(pattern).search
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"Invalid regular expression {pattern[:_SHOWN]!r} (filter on {column.name}).",
            f"{error}.",
            "Use the syntax of Python's regular expressions; escape a comma as \\,",
        ) from error
    found: Cache[str, bool] = Cache(lambda text: (search(text) is not None) == wanted, 4096)

    def matched(batch: Batch) -> Sequence[bool]:
        with _bounded(column, pattern):
            return found.of(texts(column, batch))

    return matched


@contextmanager
def _bounded(column: Column, pattern: str) -> Iterator[None]:
    """Limit the CPU time of a regular expression per batch: some need years for one name.

    The matcher lets signal handlers run, so one can end it; only the main thread can have one.
    Python's own syntax stays so, and no compiled package of another engine is needed. Raises
    UsageError.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    running = True

    def end(*_: object) -> None:
        if running:
            raise UsageError(
                f"The regular expression {pattern[:_SHOWN]!r} (filter on {column.name}) takes too "
                "long.",
                f"It was stopped after {_MOST_CPU:g} s of CPU time.",
                "Avoid nested repetitions such as (a+)+.",
            )

    signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, _MOST_CPU)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _comparison(column: Column, symbol: str, operand: Any) -> Predicate:
    compare = _COMPARE[symbol]
    if (column.kind is Kind.DURATION or column.optional) and symbol in ("<", "<="):
        return lambda batch: [v != 0 and compare(v, operand) for v in batch.read(column)]
    return lambda batch: [compare(v, operand) for v in batch.read(column)]


def _value(column: Column, symbol: str, text: str) -> Any:
    if column.kind is Kind.STRING:
        return _network(column, text) if _is_address(column) and "/" in text else text
    if column.kind is Kind.BOOLEAN:
        return _boolean(column, symbol, text)
    if column.kind is Kind.DURATION:
        return parse_duration(text, MILLISECOND)
    if re.fullmatch(_INTEGER, text):
        return int(text, 16 if text[1:2] in ("x", "X") else 10)
    if column.kind is Kind.TIMESTAMP:
        return parse_time(text)
    if column.name in _NUMBERED:
        return _NUMBERED[column.name](text)
    raise _no_value(column, text, "an integer")


def _network(column: Column, text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise UsageError(
            f"Invalid network {text[:_SHOWN]!r} (filter on {column.name}).",
            f"{str(error)[:_SHOWN]}.",
            "Use CIDR notation: 172.18.0.0/16 or 2001:db8::/32.",
        ) from None


def _boolean(column: Column, symbol: str, text: str) -> bool:
    if symbol not in _SETS:
        raise UsageError(
            f"Column {column.name} is true or false and has no order.",
            f"The filter uses the operator {symbol}",
            "Use == or !=.",
        )
    for value, name in BOOLEANS.items():
        if text.lower() == name:
            return value
    raise _no_value(column, text, "true or false")


def _no_value(column: Column, text: str, wanted: str) -> UsageError:
    return UsageError(
        f"Invalid value {text[:_SHOWN]!r} for column {column.name}.", f"Expected {wanted}."
    )
