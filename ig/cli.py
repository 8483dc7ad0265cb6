"""The command line: builds the commands from the declared gadgets, turns errors into exit codes."""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from io import TextIOWrapper
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from ig.errors import IgError, UsageError
from ig.gadget import CompatView, Gadget, Param
from ig.options import (
    CONVERSIONS,
    FAMILIES,
    FOREIGN,
    HEADINGS,
    MAX_ROWS,
    OUTPUT,
    RUNTIMES,
    TIME,
    TRACING,
    WHOSE,
)
from ig.output.stream import ReaderGone, Stderr, say
from ig.stop import Stop, Stopped

STDOUT, STDERR = 1, 2
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_SHORT_WITH_VALUE = re.compile(r"(-[A-Za-z])=(.*)", re.S)
_LONG_WITH_TRUTH = re.compile(r"(--[a-z-]+)=(true|false)", re.I)


class _Command(TyperCommand):
    """A command that also takes `-i=false`, `-P=42` and `--flag=true`, as Go's commands do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = {
            name: param
            for param in self.params
            if getattr(param, "is_flag", False)
            for name in (*param.opts, *param.secondary_opts)
        }
        optional = {
            name
            for param in self.params
            if param.metavar == _METAVARS["interval"]
            for name in param.opts
        }
        own = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        plain: list[str] = []
        for argument, following in pairwise([*args, "-"]):
            asked = argument.partition("=")[0]
            if asked in FOREIGN and asked not in own:
                raise UsageError(f"Unknown option {asked}.", "", f"Use {FOREIGN[asked]}.")
            match = _SHORT_WITH_VALUE.fullmatch(argument) or _LONG_WITH_TRUTH.fullmatch(argument)
            param = flags.get(match[1]) if match else None
            if match and param and match[2].lower() in ("true", "false"):
                on = match[2].lower() == "true"
                plain += [param.opts[-1]] if on else param.secondary_opts[:1]
            elif match and not param and match[1].count("-") == 1:
                plain += [match[1], match[2]]
            else:
                plain.append(argument)
                if argument in optional and following.startswith("-"):
                    plain.append(_INTERVAL)
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


_INTERVAL = "2"  # seconds between repetitions, where the option stands alone
_ANNOTATIONS: dict[str, Any] = {
    "flag": bool,
    "integer": int,
    "pid": int,
    "uid": str,
    "count": int,
    "string": str,
    "duration": str,
    "ports": str,
    "port": str,
    "seconds": str,
    "interval": str,
    "strings": list[str],
}
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
    "strings": "TEXT,…",
}


def _parameter(param: Param) -> inspect.Parameter:
    """Return a param as the parameter of a function that typer reads."""
    kind = _ANNOTATIONS[param.kind]
    flags = list(param.flags)
    if param.kind == "flag" and not flags[-1].startswith("--no-"):
        flags[-1] += f"/--no-{flags[-1].lstrip('-')}"
        annotation: Any = bool
        default: Any = bool(param.default)
    else:
        annotation = kind | None
        default = param.default
    limits: dict[str, Any] = {"min": 1} if param.kind == "count" else {}
    limits |= {"metavar": _METAVARS[param.kind]} if param.kind in _METAVARS else {}
    limits |= {"hidden": True} if not param.help else {}
    option = typer.Option(*flags, help=param.help, show_default=bool(param.default), **limits)
    return inspect.Parameter(
        param.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, option],
    )


def _function(
    name: str, summary: str, params: Sequence[Param], body: Callable[[dict[str, Any]], None]
) -> Callable[..., None]:
    """Return a function with those parameters, for typer to build a command of."""

    def command(**options: Any) -> None:
        for param in params:
            convert = CONVERSIONS.get(param.kind)
            if convert and options.get(param.name) is not None:
                options[param.name] = convert(options[param.name])
        body(options)

    parameters = [_parameter(param) for param in params]
    command.__name__ = name.replace("-", "_")
    command.__doc__ = summary
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def gadget_params(gadget: Gadget) -> tuple[Param, ...]:
    """Return all options of a gadget's command: its own, then those that all have."""
    limits = (TIME, *TRACING) if gadget.source == "program" else (MAX_ROWS,)
    own = {flag for param in gadget.params for flag in param.flags}
    shared = [*FAMILIES, *WHOSE, *RUNTIMES, *OUTPUT, *limits]
    return (
        *gadget.params,
        *(_without(param, own) for param in shared),
    )


def _without(param: Param, taken: set[str]) -> Param:
    from dataclasses import replace

    return replace(param, flags=tuple(flag for flag in param.flags if flag not in taken))


def _add_gadget(
    app: typer.Typer, name: str, gadget: Gadget, named: bool, view: CompatView | None = None
) -> None:
    """Add a gadget's command; with its options only where it is named: that takes time."""

    def body(options: dict[str, Any]) -> None:
        if options.pop("list_columns", False):
            _list_columns(gadget, view, options)
            return
        from ig.commands import run

        run(gadget, view, options)

    summary = view.summary if view else gadget.summary
    fixed = view.fixed if view else {}
    params = [
        param if param.name not in fixed else _with_default(param, fixed[param.name])
        for param in (gadget_params(gadget) if named else ())
    ]
    function = _function(name, summary, params, body)
    app.command(name, help=summary, cls=_Command, context_settings=dict(_SETTINGS))(function)


def _with_default(param: Param, value: Any) -> Param:
    from dataclasses import replace

    return replace(param, default=value)


def _group(summary: str) -> typer.Typer:
    return typer.Typer(
        help=summary,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings=dict(_SETTINGS),
    )


_LIST = "List the containers of all runtimes."
_GROUPS = {"trace": "Trace events as they happen.", "snapshot": "Show the current state."}


def build(arguments: Sequence[str]) -> typer.Typer:
    """Build the command line, with the options of those commands that `arguments` may name."""
    from ig.gadgets import built_in, declared

    gadgets = built_in()
    if tuple(arguments[:2]) not in {gadget.command for gadget in gadgets.values()}:
        gadgets = declared()
    app = _group("Show which container connects where, how fast, and what fails.")
    app.callback()(_root)
    groups: dict[str, typer.Typer] = {}
    run = _group("Run a gadget by name.")
    for gadget in gadgets.values():
        verb, noun = gadget.command
        if verb not in groups:
            groups[verb] = _group(_GROUPS.get(verb, ""))
            app.add_typer(groups[verb], name=verb)
        _add_gadget(groups[verb], noun, gadget, noun in arguments)
        _add_gadget(run, gadget.name, gadget, gadget.name in arguments)
        for view in gadget.views:
            _add_gadget(app, view.command, gadget, view.command in arguments, view)
    app.add_typer(run, name="run")
    app.command("list-gadgets", help="List the available gadgets.")(_list_gadgets)
    app.command("list-containers", help=_LIST, cls=_Command)(_list_containers())
    app.command("doctor", help=_DOCTOR, cls=_Command)(_doctor())
    app.command("version", help="Print the version.")(_version)
    return app


def _list_columns(gadget: Gadget, view: CompatView | None, options: dict[str, Any]) -> None:
    from ig import output
    from ig.output import describe

    columns = view.columns if view else gadget.columns
    typer.echo(describe.table(columns, output.shown_columns(columns, options)))


def _list_gadgets() -> None:
    from ig.gadgets import declared
    from ig.output import describe

    typer.echo(describe.gadgets(list(declared().values())))


def _list_containers() -> Callable[..., None]:
    def body(options: dict[str, Any]) -> None:
        from ig.commands import list_containers

        if options.pop("list_columns", False):
            _list_columns(list_containers.LIST, None, options)
            return
        list_containers.show(options)

    watch = Param("watch", ("-w", "--watch"), "flag", "Follow: print a line per container event.")
    params = (watch, *(p for p in WHOSE if not p.name.startswith("host")), *RUNTIMES, *OUTPUT)
    return _function("list-containers", _LIST, params, body)


_DOCTOR = "Check whether this host supports tracing, and why not."


def _doctor() -> Callable[..., None]:
    def body(options: dict[str, Any]) -> None:
        from ig.commands.doctor import examine

        if not examine(options):
            raise typer.Exit(1)

    params = (*RUNTIMES[1:], *(param for param in OUTPUT if param.name == "output"))
    return _function("doctor", _DOCTOR, params, body)


def _version() -> None:
    from importlib.metadata import version

    typer.echo(f"ig {version('ig')}")


def _asked_for_version(asked: bool) -> None:
    if asked:
        _version()
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_asked_for_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def _plain(arguments: list[str]) -> list[str]:
    """Return the arguments with `-v`, `-V`, `help COMMAND` and `run REGISTRY/NAME:TAG` expanded."""
    if arguments[:1] in (["-v"], ["-V"]):
        return ["--version"]
    if arguments[:1] == ["help"]:
        return [*arguments[1:], "--help"]
    if len(arguments) < 2 or arguments[0] != "run" or arguments[1].startswith("-"):
        return arguments
    return ["run", _known_gadget(arguments[1]), *arguments[2:]]


def _known_gadget(asked: str) -> str:
    """Return the name of the built-in gadget for an image name, with a message if they differ."""
    from ig.gadgets import declared

    name = asked.rpartition("/")[2].partition("@")[0].partition(":")[0].replace("-", "_")
    if name not in declared():
        near = get_close_matches(name[:64], declared(), n=1)
        raise UsageError(
            f"Unknown gadget {asked!r}.",
            f"Known gadgets: {', '.join(declared())}",
            f"Did you mean {near[0]!r}?" if near else "",
        )
    if name != asked:
        say(f"using built-in gadget {name}, image {asked!r} is not pulled")
    return name


_LAST_WORDS = 0.3  # seconds that a reader of stderr has to take what waits for it


def main() -> NoReturn:
    """Run the command line; the only place where errors are printed and exit codes chosen."""
    closed = _fill_standard_descriptors()
    told = _make_standard_streams()
    if STDOUT in closed:
        say("Cannot write the output: stdout is closed.")
        code = 1
    else:
        code = _guarded(sys.argv[1:])
    Stop.over()
    told.drain(_LAST_WORDS)
    os._exit(code)  # the kernel frees at once what the interpreter would take apart


def _fill_standard_descriptors() -> list[int]:
    """Open /dev/null where 0 to 2 are closed, so that no other file gets there; return these."""
    closed = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            closed.append(descriptor)
    return closed


def _make_standard_streams() -> Stderr:
    """Let stdout be UTF-8 in every locale, and stderr wait for nobody; return the latter."""
    if not os.environ.get("IG_DEBUG"):
        warnings.simplefilter("ignore")  # of libraries: nothing that a user could do about
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stderr = told = Stderr(STDERR)
    return told


def _guarded(arguments: list[str]) -> int:
    try:
        Stop()  # a command that has something to finish makes its own
        arguments = _plain(arguments)
        result = build(arguments)(arguments, prog_name="ig", standalone_mode=False)
        sys.stdout.flush()
    except IgError as error:
        if os.environ.get("IG_DEBUG"):
            raise
        say(str(error))
        return error.exit_code
    except typer.TyperException as error:  # usage, as typer found it
        if hasattr(error, "show"):
            error.show()
        return 2
    except (ReaderGone, BrokenPipeError, SystemExit):
        # Nobody reads any more (SystemExit: typer found that out); no complaint at the last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:  # a refusal that nobody foresaw
        if os.environ.get("IG_DEBUG"):
            raise
        say(f"error: {error}\nIG_DEBUG=1 prints the traceback.")
        return 1
    except (Stopped, typer.Abort):
        return 0
    return int(result or 0)
