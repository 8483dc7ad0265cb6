"""Commands and options of Typer, from declared parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from ig.errors import UsageError
from ig.gadget import Param
from ig.options import (
    KUBERNETES,
    MAX_ROWS,
    OUTPUT,
    RECORD,
    REPEATING,
    RUNTIMES,
    SUMMARY,
    TIME,
    TRACING,
    WHOSE,
)
from ig.values import CONVERSIONS

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_SHORT_WITH_VALUE = r"(?s)(-[A-Za-z])=(.*)"
_LONG_WITH_TRUTH = r"(?i)(--[a-z-]+)=(true|false)"
_ALONE = {"interval": "2", "summary": "end", "kubeconfig": "auto"}
"""The values of options that may stand alone: seconds between repetitions, or a path."""
_NUMBERS = ("integer", "pid", "count")
_METAVARS = {
    "integer": "NUMBER",
    "pid": "NUMBER",
    "uid": "USER",
    "count": "NUMBER",
    "string": "TEXT",
    "duration": "DURATION",
    "ports": "PORT,…",
    "port": "PORT",
    "seconds": "SECONDS",
    "interval": "[SECONDS]",
    "summary": "[=SECONDS]",
    "kubeconfig": "[=PATH]",
    "strings": "TEXT,…",
}
HEADINGS = {
    param.name: heading
    for heading, params in (
        ("Containers", WHOSE),
        ("Runtimes", (*RUNTIMES, KUBERNETES)),
        ("Output", (*OUTPUT, RECORD, TIME, MAX_ROWS)),
        ("Summary", tuple(param for param in SUMMARY if param.name != "sort")),
        ("Limits", (*REPEATING, *TRACING)),
    )
    for param in params
}
"""The heading of each shared option in a command's help; a gadget's own options come first."""
FOREIGN = {
    "--fields": "-o columns=A,B,… (+A,-B adds and removes)",
    "--filter-expr": "-F with ==, !=, <, <=, >, >=, ~ and ||",
    "--max-entries": "--max-events (trace) or --max-rows (snapshot)",
    "--map-nodes-count": "--max-rows",
    "--no-headers": "--no-header",
    "--extra-lines": "-w SECONDS",
    "-P": "--port",
}
"""Options of similar commands, and their equivalent here."""


class Command(TyperCommand):
    """A command that also takes `-i=false`, `-P=42` and `--flag=true`, as Go's commands do.

    `run` is called with the values of the options by the parameters' names.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        params: Sequence[Param],
        run: Callable[[dict[str, Any]], None],
    ) -> None:
        def converted(**options: Any) -> None:
            for param in params:
                convert = CONVERSIONS.get(param.kind)
                if convert and options[param.name] is not None:
                    options[param.name] = convert(options[param.name])
            run(options)

        super().__init__(
            name,
            help=summary,
            params=[_option(param) if param.flags else _argument(param) for param in params],
            callback=converted,
            context_settings=dict(_SETTINGS),
            rich_markup_mode=None,
        )

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, once these forms are what Typer knows."""
        flags = {
            name: param
            for param in self.params
            if getattr(param, "is_flag", False)
            for name in (*param.opts, *param.secondary_opts)
        }
        optional = {
            name: alone
            for kind, alone in _ALONE.items()
            for param in self.params
            if param.metavar == _METAVARS[kind]
            for name in param.opts
        }
        own = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        plain: list[str] = []
        for argument, following in pairwise([*args, "-"]):
            asked = argument.partition("=")[0]
            if asked in FOREIGN and asked not in own:
                raise UsageError(f"Unknown option {asked}.", "", f"Use {FOREIGN[asked]}.")
            match = re.fullmatch(_SHORT_WITH_VALUE, argument) or re.fullmatch(
                _LONG_WITH_TRUTH, argument
            )
            param = flags.get(match[1]) if match else None
            if match and param and match[2].lower() in ("true", "false"):
                on = match[2].lower() == "true"
                plain += [param.opts[-1]] if on else param.secondary_opts[:1]
            elif match and not param and match[1].count("-") == 1:
                plain += [match[1], match[2]]
            else:
                plain.append(argument)
                if argument in optional and not following[:1].isdigit():
                    plain.append(optional[argument])
        return super().parse_args(ctx, plain)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List the options under headings, without the `--no-…` that each switch has too."""
        parts: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if getattr(param, "is_flag", False):
                param.secondary_opts = []
            record = param.get_help_record(ctx)
            if record:
                parts.setdefault(HEADINGS.get(param.name or "", "Options"), []).append(record)
        widest = max(len(record[0]) for part in parts.values() for record in part)
        for heading, part in parts.items():
            with formatter.section(heading):
                first, *others = part
                # All sections' texts begin in one column.
                formatter.write_dl([(first[0].ljust(min(widest, 30)), first[1]), *others])


def _option(param: Param) -> TyperOption:
    flag = param.kind == "flag"
    flags = list(param.flags)
    if flag and not flags[-1].startswith("--no-"):
        flags[-1] += f"/--no-{flags[-1].lstrip('-')}"
    return TyperOption(
        param_decls=[param.name, *flags],
        type=None if flag else int if param.kind in _NUMBERS else str,
        is_flag=flag,
        multiple=param.kind == "strings",
        default=bool(param.default) if flag else param.default,
        show_default=bool(param.default),
        metavar=_METAVARS.get(param.kind),
        help=param.help,
        hidden=not param.help,
    )


def _argument(param: Param) -> TyperArgument:
    return TyperArgument(
        param_decls=[param.name],
        type=str,
        required=True,
        metavar=param.name.upper(),
        help=param.help,
    )


class Group(TyperGroup):
    """A command that has commands; alone it prints its help."""

    def __init__(self, name: str, summary: str, **rest: Any) -> None:
        super().__init__(
            name=name,
            help=summary,
            no_args_is_help=True,
            context_settings=dict(_SETTINGS),
            rich_markup_mode=None,
            **rest,
        )
