"""The command line: builds the commands from the declared gadgets, turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

import typer
from typer.core import TyperOption

from ig.errors import IgError, UsageError
from ig.gadget import CompatView, Gadget, Param
from ig.options import (
    EXPORT,
    FAMILIES,
    OUTPUT,
    RUNTIMES,
    SUMMARY,
    WHOSE,
    gadget_params,
    replay_params,
)
from ig.output.stream import (
    STDOUT,
    ReaderGone,
    fill_standard_descriptors,
    make_standard_streams,
    say,
)
from ig.stop import Stop, Stopped
from ig.typer_command import Command, Group

_GROUPS = {
    "trace": "Trace events: TCP connections, binds, retransmissions.",
    "snapshot": "Show the current state: sockets of containers.",
    "top": "Show who is connected to whom, live.",
}


def build(arguments: Sequence[str]) -> Group:
    """Build the command line, with the options of those commands that `arguments` may name."""
    from ig.gadgets import declared, of_command

    gadgets = of_command(arguments[:2]) or declared()
    version = TyperOption(
        param_decls=["version", "--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_asked_for_version,
        help="Print the version.",
    )
    summary = "Show which container connects where, how fast, and what fails."
    root = Group("ig", summary, params=[version])
    run = Group("run", "Run a gadget by name.")
    verbs: dict[str, Group] = {}
    for gadget in gadgets.values():
        verb, noun = gadget.command
        group = verbs.setdefault(verb, Group(verb, _GROUPS.get(verb, "")))
        group.add_command(_gadget(noun, gadget, arguments))
        run.add_command(_gadget(gadget.name, gadget, arguments))
    for group in sorted(verbs.values(), key=lambda group: group.name != "trace"):
        root.add_command(group)
    root.add_command(_explain())
    root.add_command(
        Command("export", "Export metrics to Prometheus or OpenTelemetry.", EXPORT, _export)
    )
    root.add_command(_list_containers())
    root.add_command(Command("replay", "Show a recording.", replay_params(), _replay))
    root.add_command(_doctor())
    root.add_command(Command("list-gadgets", "List the available gadgets.", (), _list_gadgets))
    root.add_command(run)
    for gadget in gadgets.values():
        for view in gadget.views:
            root.add_command(_gadget(view.command, gadget, arguments, view))
    root.add_command(Command("version", "Print the version.", (), _version))
    return root


def _gadget(
    name: str, gadget: Gadget, arguments: Sequence[str], view: CompatView | None = None
) -> Command:
    """Return a gadget's command; to save time, with its options only if `arguments` name it."""

    def run(options: dict[str, Any]) -> None:
        if options.pop("list_columns", False):
            _list_columns(gadget, view, options)
            return
        from ig import commands

        commands.run(gadget, view, options)

    fixed = view.fixed if view else {}
    params = [
        param if param.name not in fixed else replace(param, default=fixed[param.name])
        for param in (gadget_params(gadget) if name in arguments else ())
        if not (view and param in SUMMARY)
    ]
    return Command(name, view.summary if view else gadget.summary, params, run)


def _list_columns(gadget: Gadget, view: CompatView | None, options: dict[str, Any]) -> None:
    from ig import output
    from ig.output import describe

    columns = view.columns if view else gadget.columns
    if options.get("summary"):
        from ig.trace.summary import summarized

        gadget = summarized(gadget, options)
    if gadget.stages:
        columns = gadget.stages(options)[1]
    typer.echo(describe.table(columns, output.shown_columns(columns, options)))


def _replay(options: dict[str, Any]) -> None:
    from ig.commands import replay

    if options.pop("list_columns", False):
        _list_columns(replay.gadget_of(options["file"]), None, options)
        return
    replay.replay(options)


def _list_gadgets(_: dict[str, Any]) -> None:
    from ig.gadgets import declared
    from ig.output import describe

    typer.echo(describe.gadgets(list(declared().values())))


def _list_containers() -> Command:
    def run(options: dict[str, Any]) -> None:
        from ig.commands import list_containers

        if options.pop("list_columns", False):
            _list_columns(list_containers.LIST, None, options)
            return
        list_containers.show(options)

    watch = Param("watch", ("-w", "--watch"), "flag", "Follow: print a line per container event.")
    params = (watch, *(p for p in WHOSE if not p.name.startswith("host")), *RUNTIMES, *OUTPUT)
    return Command("list-containers", "List the containers of all runtimes.", params, run)


def _doctor() -> Command:
    def run(options: dict[str, Any]) -> None:
        from ig.commands.doctor import examine

        if not examine(options):
            raise typer.Exit(1)

    params = (*RUNTIMES[1:], *(param for param in OUTPUT if param.name == "output"))
    return Command("doctor", "Check whether this host supports tracing.", params, run)


def _explain() -> Command:
    def run(options: dict[str, Any]) -> None:
        from ig.commands.explain import explain

        if not explain(options):
            raise typer.Exit(1)

    params = (
        Param("target", (), "string", "Destination: ADDRESS:PORT, [ADDRESS]:PORT or NAME:PORT."),
        Param("timeout", ("-t", "--timeout"), "seconds", "Wait so long for an answer: 4s."),
        *FAMILIES,
        *(param for param in WHOSE if param.name == "containername"),
        *RUNTIMES,
        *(param for param in OUTPUT if param.name in ("output", "keep_privileges")),
    )
    return Command("explain", "Connect once, and show the way and why it fails.", params, run)


def _export(options: dict[str, Any]) -> None:
    from ig.commands.export import export

    export(options)


def _version(_: dict[str, Any]) -> None:
    from importlib.metadata import version

    typer.echo(f"ig {version('ig')}")


def _asked_for_version(_context: object, _option: object, asked: bool) -> None:
    if asked:
        _version({})
        raise typer.Exit


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
    from difflib import get_close_matches

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
    streams = make_standard_streams()
    if STDOUT in closed:
        say("Cannot write the output: stdout is closed.")
        code = 1
    else:
        code = _interrupted(sys.argv[1:])
        # A signal, or its repetition, may come when the command has just ended, also within the
        # end of suppress().
        try:
            with suppress(Stopped):
                code = _guarded(sys.argv[1:])
            Stop.over()
        except Stopped:
            pass
    Stop.over()
    streams.drain(_LAST_WORDS)
    os._exit(code)  # threads of runtimes' clients could hang the interpreter's own end


def _guarded(arguments: list[str]) -> int:
    try:
        Stop()  # a command that has something to finish makes its own
        arguments = _plain(arguments)
        result = build(arguments).main(arguments, prog_name="ig", standalone_mode=False)
        sys.stdout.flush()
    except IgError as error:
        if os.environ.get("IG_DEBUG"):
            raise
        say(*error.lines(), level="error")
        return error.exit_code
    except typer.TyperException as error:  # usage, as typer found it
        if hasattr(error, "show"):
            error.show()
        return 2
    except (ReaderGone, BrokenPipeError, SystemExit):
        # The reader is gone (SystemExit: from Typer); avoid an error at the last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _interrupted(arguments)
    except OSError as error:  # a failure that no code expected
        if os.environ.get("IG_DEBUG"):
            raise
        say(f"error: {error}", "IG_DEBUG=1 prints the traceback.")
        return 1
    except (MemoryError, RuntimeError) as error:
        # A thread's stack is memory; Python has no type of its own for threads that are refused.
        refused = isinstance(error, MemoryError) or "start new thread" in str(error)
        if os.environ.get("IG_DEBUG") or not refused:
            raise
        say(f"error: out of memory or threads: {error}", "`ulimit -a` shows the limits.")
        return 1
    except (Stopped, typer.Abort):
        return _interrupted(arguments)
    return int(result or 0)


def _interrupted(arguments: list[str]) -> int:
    """Return the exit code of a command that a signal or the end of its reader ended."""
    # 0 of `ig explain` says that the connection was established.
    return int(arguments[:1] == ["explain"])
