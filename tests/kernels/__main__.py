"""Run the host's tests on other kernels, and print which of them hold: see README.md here."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.kernels import debian, guest
from tests.kernels.results import (
    Result,
    Table,
    causes,
    joined,
    markdown,
    merged,
    parse,
    read,
    turned,
)
from tests.kernels.setups import SETUPS

CHECKOUT = Path(__file__).parents[2]
COLUMNS: Mapping[str, Sequence[str]] = {
    "trace tcpconnect": (
        "test_trace_tcpconnect.",
        "test_trace_tcpconnect_owners.",
        "test_latency.",
    ),
    "trace tcp": ("test_trace_tcp.",),
    "trace tcpretrans": ("test_trace_tcpretrans.",),
    "trace bind": ("test_trace_bind.",),
    "snapshot socket": ("test_snapshot_",),
    "Docker": ("DockerEngine", "test_list_containers.", "test_resolve."),
    "containerd": ("ContainerdEngine",),
    "Podman": ("PodmanEngine",),
    "CRI": ("test_runtimes_cri.",),
    "causes": ("test_why", "test_explain"),
    "other": ("test_",),
}
"""The table's columns, and what the names of the tests begin with or hold that count for each."""
QUICK = (
    "test_latency.py",
    "test_hidden.py::test_what_was_hidden_is_looked_for_once_and_nothing_is_reported_twice",
    "test_hidden.py::test_programs_load_in_each_way_and_in_that_which_costs_least",
    "test_hidden.py::test_telling_the_kernel_what_is_wanted_hides_nothing",
    "test_trace_tcpconnect.py::test_established_connect_is_reported_once_with_its_true_ends",
    "test_trace_tcpconnect.py::test_refused_connect_is_reported_once",
    "test_trace_tcpconnect.py::test_attempt_without_an_answer_times_out",
    "test_trace_tcpconnect.py::test_no_route_fails_before_any_syn",
    "test_trace_tcp.py::test_connection_is_connected_accepted_and_closed_at_both_ends",
    "test_trace_tcp.py::test_each_end_is_closed_once_under_its_owner",
    "test_trace_tcp.py::test_reset_before_the_accept_is_the_accepters_close",
    "test_trace_tcp.py::test_threads_that_waited_in_accept_before_the_trace_began_are_seen",
    "test_summary.py::test_summary_counts_syns_that_are_sent_again",
    "test_trace_bind.py::test_each_option_has_its_letter",
    "test_trace_bind.py::test_failed_bind_is_reported_if_asked_with_what_it_wanted",
    "test_trace_tcpretrans.py::test_retransmissions_of_a_syn_its_answer_and_data_are_reported_"
    "with_their_connection",
    "test_snapshot_socket.py::test_rows_are_those_of_ss_in_all_states",
    "test_snapshot_socket.py::test_in_a_shared_namespace_a_socket_is_shown_once_under_its_true_owner",
    "test_trace_tcpconnect_owners.py::"
    "test_containers_that_were_there_come_later_or_start_again_are_named",
)
"""What CI runs on the oldest and the newest kernel: of each gadget what kernels differ in."""
_RESULTS = "<!-- kernels: written by `make kernels` -->", "<!-- kernels end -->"
_CAUSES = "<!-- causes: written by `make kernels` -->", "<!-- causes end -->"


def main() -> int:
    """Return 0 if every test that ran passed, and every kernel could be had."""
    options = _arguments()
    names = options.kernel.split(",") if options.kernel else _all(options.quick)
    failed = False
    guests: list[tuple[debian.Kernel, str, Sequence[str]]] = []
    for name in names:
        try:
            kernel = debian.fetch(name)
        except (RuntimeError, ValueError) as error:
            print(f"{name}: skipped, the kernel cannot be had: {error}", file=sys.stderr)
            failed |= os.environ.get("CI") == "true"
            continue
        guests += [(kernel, setup, tests) for setup, tests in _setups(options, name)]
    if options.shell:
        return int(failed) or max(_run(guest, options).code for guest in guests[:1])
    guests.sort(key=lambda one: bool(one[1]))  # the longest first
    # A guest has one processor.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ended = list(pool.map(lambda guest: _run(guest, options), guests))
    failed |= any(each.code for each in ended)
    if ended:
        today = datetime.date.today().isoformat()
        rows = [[each.row[0], today, *each.row[1:]] for each in ended]
        table = [["kernel", "date", *COLUMNS], *rows]
        kinds = causes({name: each for one in ended for name, each in one.results.items()}, today)
        print(f"{markdown(table)}\n\n{markdown(turned(kinds))}")
        if options.write:
            _write(options, table, kinds)
    return int(failed)


class Ended(NamedTuple):
    """A guest that has ended."""

    row: list[str]
    """Its row of the table."""
    code: int
    """0 if all is well."""
    results: Mapping[str, Sequence[Result]]
    """By the kernel's release, what its tests have shown; none for a kernel set up otherwise."""


def _all(quick: bool) -> list[str]:
    """Return the names of all kernels, or of the oldest and the newest."""
    suites = list(debian.SUITES)
    return [suites[0], suites[-1]] if quick else suites


def _setups(options: argparse.Namespace, kernel: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield words for the kernel's command line and the tests to run: all, if none were chosen.

    Of all kernels, only the oldest and the newest are set up in other ways too.
    """
    if options.setup:
        yield from ((name, SETUPS[name]) for name in options.setup.split(","))
        return
    yield "", [*(QUICK if options.quick else ()), *options.tests]
    chosen = options.quick or options.tests or options.shell or options.append or options.run
    if not chosen and (options.kernel == kernel or kernel in _all(quick=True)):
        yield from SETUPS.items()


def _run(one: tuple[debian.Kernel, str, Sequence[str]], options: argparse.Namespace) -> Ended:
    """Run tests in a guest."""
    kernel, setup, tests = one
    print(f"{kernel.release} {setup}: begins", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="ig-kernel-") as folder:
        out = Path(folder)
        command = "exec setsid -c bash -i\n" if options.shell else _command(tests, options.run)
        words = f"{options.append} {setup}".strip()
        with (out / "printed").open("wb") as printed:
            output = None if options.shell else printed
            code = guest.run(
                kernel, command, out, append=words, seconds=options.seconds, output=output
            )
        text = (out / "printed").read_text(errors="replace")
        print(f"{kernel.release} {setup}:\n{text}", flush=True)
        results = read(out / "junit.xml")
    outcomes = {each.outcome for each in results}
    # Skipped tests pass for pytest; where nothing else is left, nothing was shown.
    passed = code == 0 and ("passed" in outcomes or bool(options.shell or options.run))
    passed &= not (setup and "skipped" in outcomes)
    cells = _cells(results, None if code is None else passed)
    row = [f"{kernel.release} {setup}".strip(), *cells]
    return Ended(row, int(not passed), {} if setup else {kernel.release: results})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument("--kernel", default="", help=f"some of {','.join(debian.SUITES)}")
    parser.add_argument("--shell", action="store_true", help="a shell instead of the tests")
    parser.add_argument("--run", default="", help="a module of ours instead of the tests")
    parser.add_argument("--quick", action="store_true", help="a few, on two of them")
    parser.add_argument("--setup", default="", help=f"only some of {','.join(SETUPS)}")
    parser.add_argument("--append", default="", help="words for the kernel's command line")
    parser.add_argument("--seconds", type=float, default=10800, help="most for each kernel")
    parser.add_argument("--write", action="store_true", help="put the results into docs/kernels.md")
    parser.add_argument("tests", nargs="*", help="arguments for pytest")
    return parser.parse_args()


def _command(chosen: Sequence[str], module: str = "") -> str:
    if module:
        return f"cd {shlex.quote(str(CHECKOUT))} && {shlex.quote(sys.executable)} -m {module}\n"
    tests = ["-m", "not anywhere", *chosen]
    if not any(".py" in word for word in tests):
        tests.insert(0, ".")
    python = shlex.quote(str(Path(sys.executable)))
    pytest = f"{python} -m pytest -p no:cacheprovider --rootdir={shlex.quote(str(CHECKOUT))}"
    words = " ".join(map(shlex.quote, tests))
    # The emulated processor is some ten times slower than a real one.
    environment = "IG_TESTS_PATIENCE=180 IG_TESTS_AT_ONCE=1 PYTEST_TIMEOUT=1800"
    where = shlex.quote(str(CHECKOUT / "tests/host"))
    # On the overlay that is the guest's root, containerd could not make overlays of its own.
    temporary = "mkdir -p -m 1777 /run/tmp && export TMPDIR=/run/tmp"
    report = "--junitxml=/run/out/junit.xml --durations=20"
    return f"{temporary} && cd {where} && {environment} {pytest} {report} {words}\n"


def _cells(results: Iterable[Result], passed: bool | None) -> list[str]:
    """Return a cell for each column: how many passed, and how many did not.

    `passed` tells of the whole run, None that it did not end.
    """
    counts: dict[str, Counter[str]] = {column: Counter() for column in COLUMNS}
    for each in results:
        column = next(c for c, parts in COLUMNS.items() if any(part in each.name for part in parts))
        counts[column][each.outcome] += 1
    if passed is None:
        counts["other"]["did not end"] += 1
    elif not passed and not any(count["failed"] for count in counts.values()):
        counts["other"]["did not run"] += 1
    return [_cell(count) for count in counts.values()]


def _cell(count: Counter[str]) -> str:
    bad = [f"{number} {outcome.upper()}" for outcome, number in count.items() if outcome[0] in "fd"]
    if bad:
        return ", ".join(bad)
    return f"{count['passed']} passed" if count["passed"] else "-"


def _write(options: argparse.Namespace, table: Table, kinds: Table) -> None:
    """Put the rows of these kernels into docs/kernels.md; of chosen tests, only those of causes."""
    page = CHECKOUT / "docs" / "kernels.md"
    text = page.read_text()
    if not options.tests:
        old = parse(_between(text, _RESULTS)[1])
        text = _with(text, _RESULTS, markdown(merged(old, table)))
    old = turned(parse(_between(text, _CAUSES)[1]))
    kinds = joined(old, kinds) if options.tests else kinds
    text = _with(text, _CAUSES, markdown(turned(merged(old, kinds))))
    page.write_text(text)


def _between(text: str, marks: tuple[str, str]) -> tuple[str, str, str]:
    """Return a text before, between and after two marks."""
    before, _, rest = text.partition(marks[0])
    inside, _, after = rest.partition(marks[1])
    return before, inside, after


def _with(text: str, marks: tuple[str, str], table: str) -> str:
    before, _, after = _between(text, marks)
    return f"{before}{marks[0]}\n\n{table}\n\n{marks[1]}{after}"


if __name__ == "__main__":
    sys.exit(main())
