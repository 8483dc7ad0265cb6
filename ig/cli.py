"""The command line: builds the commands from the declared gadgets, turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import typer

from ig.errors import IgError, UsageError
from ig.gadget import CompatView, Gadget, Param
from ig.options import (
    OUTPUT,
    RUNTIMES,
    WHOSE,
    gadget_params,
)
from ig.output.stream import (
    STDOUT,
    ReaderGone,
    fill_standard_descriptors,
    make_standard_streams,
    say,
)
from ig.stop import Stop, Stopped
from ig.typer_command import Command, command_function

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _add_gadget(
    app: typer.Typer, name: str, gadget: Gadget, named: bool, view: CompatView | None = None
) -> None:
    """Add a gadget's command, with its options only if `named`, to save time."""

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
    function = command_function(name, summary, params, body)
    app.command(name, help=summary, cls=Command, context_settings=dict(_SETTINGS))(function)


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
    app.command("list-containers", help=_LIST, cls=Command)(_list_containers())
    app.command("doctor", help=_DOCTOR, cls=Command)(_doctor())
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
    return command_function("list-containers", _LIST, params, body)


_DOCTOR = "Check whether this host supports tracing."


def _doctor() -> Callable[..., None]:
    def body(options: dict[str, Any]) -> None:
        from ig.commands.doctor import examine

        if not examine(options):
            raise typer.Exit(1)

    params = (*RUNTIMES[1:], *(param for param in OUTPUT if param.name == "output"))
    return command_function("doctor", _DOCTOR, params, body)


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
    closed = fill_standard_descriptors()
    told = make_standard_streams()
    if STDOUT in closed:
        say("Cannot write the output: stdout is closed.")
        code = 1
    else:
        code = _guarded(sys.argv[1:])
    Stop.over()
    told.drain(_LAST_WORDS)
    os._exit(code)  # skips the interpreter's cleanup: the kernel frees all


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
        # The reader is gone (SystemExit: from Typer); avoid an error at the last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:  # a failure that no code expected
        if os.environ.get("IG_DEBUG"):
            raise
        say(f"error: {error}\nIG_DEBUG=1 prints the traceback.")
        return 1
    except (MemoryError, RuntimeError) as error:
        # A thread's stack is memory; Python has no type of its own for threads that are refused.
        refused = isinstance(error, MemoryError) or "start new thread" in str(error)
        if os.environ.get("IG_DEBUG") or not refused:
            raise
        say(f"error: out of memory or threads: {error}\n`ulimit -a` shows the limits.")
        return 1
    except (Stopped, typer.Abort):
        return 0
    return int(result or 0)
