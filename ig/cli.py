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
from ig.gadget import Gadget, Param, View
from ig.output.stderr import Stderr, say
from ig.output.stream import ReaderGone
from ig.stop import Stop, Stopped

STDOUT, STDERR = 1, 2
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_SHORT_WITH_VALUE = re.compile(r"(-[A-Za-z])=(.*)", re.S)
_LONG_WITH_TRUTH = re.compile(r"(--[a-z-]+)=(true|false)", re.I)

_WHOSE = (
    Param(
        "containername", ("-c", "--containername"), "strings", "Containers: NAME, NAME-*, !NAME."
    ),
    Param("podname", ("--podname",), "strings", "Only these pods."),
    Param("namespace", ("-n", "--namespace"), "strings", "Only these Kubernetes namespaces."),
    Param("selector", ("-l", "--selector"), "strings", "Only containers with labels KEY=VALUE."),
    Param("all_namespaces", ("-A", "--all-namespaces"), "flag", ""),
    Param("host", ("--host",), "flag", "Show the host's own processes too."),
    Param("host_only", ("--host-only",), "flag", "Show only the host's own processes."),
)
_RUNTIMES = (
    Param("runtimes", ("-r", "--runtimes"), "strings", "docker,containerd,podman,cri-o"),
    Param("docker_socket", ("--docker-socketpath",), "string", "Docker's socket."),
    Param("containerd_socket", ("--containerd-socketpath",), "string", "containerd's socket."),
    Param("containerd_namespace", ("--containerd-namespace",), "string", "One of containerd's."),
    Param("podman_socket", ("--podman-socketpath",), "string", "Podman's socket."),
    Param("crio_socket", ("--crio-socketpath",), "string", "The socket of CRI-O or another CRI."),
)
_OUTPUT = (
    Param(
        "output",
        ("-o", "--output"),
        "string",
        "columns, columns=A,B,…, json, jsonl, jsonpretty, yaml, csv",
    ),
    Param("filter", ("-F", "--filter"), "strings", "Show only rows where COLUMN==VALUE (…)."),
    Param("wide", ("--wide",), "flag", "Show all columns, however wide the terminal is."),
    Param("no_header", ("--no-header",), "flag", "Leave out the headings."),
    Param("color", ("--color",), "string", "auto, always or never; NO_COLOR counts as never."),
    Param("ready_file", ("--ready-file",), "string", "Write this file once all is attached."),
    Param(
        "keep_privileges",
        ("--keep-privileges",),
        "flag",
        "Do not give up the privileges that are needed no longer.",
    ),
)
_TRACING = (
    Param(
        "timeout",
        ("-t", "--timeout"),
        "seconds",
        "End after so many seconds; 0: after what is seen already.",
    ),
    Param("max_events", ("--max-events",), "count", "End after so many events."),
)


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
        plain: list[str] = []
        for argument, following in pairwise([*args, "-"]):
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
        """List the options, without the `--no-…` that each switch has too."""
        for param in self.params:
            if getattr(param, "is_flag", False):
                param.secondary_opts = []
        super().format_options(ctx, formatter)


_DIGITS = re.compile(r"[0-9]{1,5}")
_MOST_PORTS = 2048
_MOST_SECONDS = 1e9


def _duration(text: str) -> int:
    from ig.durations import parse_duration

    return parse_duration(text)


def _ports(text: str) -> list[int]:
    ports = []
    for part in text.split(","):
        if not _DIGITS.fullmatch(part.strip()) or not 0 < int(part) < 65536:
            raise UsageError(
                f"{part.strip()!r} is no port.", "A port is a number from 1 to 65535.", ""
            )
        ports.append(int(part))
    if len(ports) > _MOST_PORTS:
        raise UsageError(
            f"{len(ports)} ports are too many for the kernel's filter.",
            f"It takes {_MOST_PORTS} at most.",
            "-F 'port>=1024,port<2048' filters by any range.",
        )
    return ports


def _seconds(value: float) -> float:
    if not value <= _MOST_SECONDS:  # nan is neither more nor less
        raise UsageError(
            f"{value} is no number of seconds.", f"It may be {_MOST_SECONDS:.0f} at most.", ""
        )
    return value


def _whole(param: str, least: int, most: int) -> Callable[[int], int]:
    def check(value: int) -> int:
        if not least <= value <= most:
            raise UsageError(
                f"{value} is no {param}.", f"It is a number from {least} to {most}.", ""
            )
        return value

    return check


_INTERVAL = "2"  # seconds between repetitions, where the option stands alone
_ANNOTATIONS: dict[str, Any] = {
    "flag": bool,
    "integer": int,
    "pid": int,
    "uid": int,
    "count": int,
    "string": str,
    "duration": str,
    "ports": str,
    "port": str,
    "seconds": float,
    "interval": float,
    "strings": list[str],
}
_METAVARS = {
    "integer": "NUMBER",
    "pid": "NUMBER",
    "uid": "NUMBER",
    "count": "NUMBER",
    "string": "TEXT",
    "duration": "DURATION",
    "ports": "PORT,…",
    "port": "PORT",
    "seconds": "SECONDS",
    "interval": "[SECONDS]",
    "strings": "TEXT,…",
}
_LEAST = {"count": 1, "seconds": 0.0, "interval": 0.1}
_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "duration": _duration,
    "ports": _ports,
    "port": lambda text: _ports(text)[0],
    "seconds": _seconds,
    "interval": _seconds,
    "integer": _whole("whole number", -(1 << 63), (1 << 63) - 1),
    "pid": _whole("process", 1, 1 << 22),
    "uid": _whole("user", 0, (1 << 32) - 2),
}


def _parameter(param: Param) -> inspect.Parameter:
    """Give a param as the parameter of a function that typer reads."""
    kind = _ANNOTATIONS[param.kind]
    flags = list(param.flags)
    if param.kind == "flag" and not flags[-1].startswith("--no-"):
        flags[-1] += f"/--no-{flags[-1].lstrip('-')}"
        annotation: Any = bool
        default: Any = bool(param.default)
    else:
        annotation = kind | None
        default = param.default
    limits: dict[str, Any] = {}
    limits |= {"min": _LEAST[param.kind]} if param.kind in _LEAST else {}
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
    """Give a function with those parameters, for typer to build a command of."""

    def command(**options: Any) -> None:
        for param in params:
            convert = _CONVERSIONS.get(param.kind)
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
    """Give all options of a gadget's command: its own, then those that all have."""
    limits = _TRACING if gadget.source == "program" else ()
    own = {flag for param in gadget.params for flag in param.flags}
    shared = [*_WHOSE, *_RUNTIMES, *_OUTPUT, *limits]
    return (
        *gadget.params,
        *(_without(param, own) for param in shared),
    )


def _without(param: Param, taken: set[str]) -> Param:
    from dataclasses import replace

    return replace(param, flags=tuple(flag for flag in param.flags if flag not in taken))


def _add_gadget(
    app: typer.Typer, name: str, gadget: Gadget, named: bool, view: View | None = None
) -> None:
    """Add a gadget's command; with its options only where it is named: that takes time."""

    def body(options: dict[str, Any]) -> None:
        from ig.invoke import run

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


_GROUPS = {"trace": "Show what happens, as it happens.", "snapshot": "Show what exists now."}


def build(arguments: Sequence[str]) -> typer.Typer:
    """Build the command line, with the options of those commands that `arguments` may name."""
    from ig.gadgets import built_in, declared

    gadgets = built_in()
    if tuple(arguments[:2]) not in {gadget.command for gadget in gadgets.values()}:
        gadgets = declared()
    app = _group("Show which container connects where, how fast, and what fails.")
    app.callback()(_root)
    groups: dict[str, typer.Typer] = {}
    run = _group("Run a gadget by its name.")
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
    app.command("list-gadgets", help="List the gadgets.")(_list_gadgets)
    app.command("list-containers", help="List the containers.", cls=_Command)(_list_containers())
    app.command("doctor", help=_DOCTOR, cls=_Command)(_doctor())
    app.command("version", help="Show the version.")(_version)
    return app


def _list_gadgets() -> None:
    from tabulate import tabulate

    from ig.gadgets import declared

    rows = [
        (gadget.name, f"ig {' '.join(gadget.command)}", gadget.summary)
        for gadget in declared().values()
    ]
    typer.echo(tabulate(rows, ("NAME", "COMMAND", "SHOWS"), tablefmt="plain"))


def _list_containers() -> Callable[..., None]:
    def body(options: dict[str, Any]) -> None:
        from ig.inventory import show

        show(options)

    watch = Param("watch", ("-w", "--watch"), "flag", "Go on: a line for each that comes or goes.")
    params = (watch, *(p for p in _WHOSE if not p.name.startswith("host")), *_RUNTIMES, *_OUTPUT)
    return _function("list-containers", "List the containers.", params, body)


_DOCTOR = "Check what this host can and cannot do."


def _doctor() -> Callable[..., None]:
    def body(options: dict[str, Any]) -> None:
        from ig.doctor import examine

        if not examine(options):
            raise typer.Exit(1)

    params = (*_RUNTIMES[1:], *(param for param in _OUTPUT if param.name == "output"))
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
        False, "--version", callback=_asked_for_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def _plain(arguments: list[str]) -> list[str]:
    """Write `-V`, `help COMMAND` and `run REGISTRY/…/NAME:TAG` as the commands that they are."""
    if arguments[:1] == ["-V"]:
        return ["--version"]
    if arguments[:1] == ["help"]:
        return [*arguments[1:], "--help"]
    if len(arguments) < 2 or arguments[0] != "run" or arguments[1].startswith("-"):
        return arguments
    return ["run", _known_gadget(arguments[1]), *arguments[2:]]


def _known_gadget(asked: str) -> str:
    """Return the name of the built-in gadget that an image's name stands for, and say so."""
    from ig.gadgets import declared

    name = asked.rpartition("/")[2].partition("@")[0].partition(":")[0].replace("-", "_")
    if name not in declared():
        near = get_close_matches(name[:64], declared(), n=1)
        raise UsageError(
            f"There is no gadget {asked!r}.",
            f"Known gadgets: {', '.join(declared())}",
            f"Did you mean {near[0]!r}?" if near else "",
        )
    if name != asked:
        say(f"The built-in {name} runs; {asked!r} is not fetched.")
    return name


_LAST_WORDS = 0.3  # seconds that a reader of stderr has to take what waits for it


def main() -> NoReturn:
    """Run the command line; the only place where errors are printed and exit codes chosen."""
    closed = _fill_standard_descriptors()
    told = _make_standard_streams()
    if STDOUT in closed:
        say("The output could not be written: stdout is closed.")
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
        say(f"The system refused it: {error}\nIG_DEBUG=1 shows where.")
        return 1
    except (KeyboardInterrupt, Stopped, typer.Abort):
        return 0
    return int(result or 0)
