"""What is said on stderr waits for nobody, and what is dropped is counted."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from ig.commands.list_containers import Changes
from ig.container import Change, Container
from ig.errors import IgError
from ig.output.sink import report_lost
from ig.output.stream import Once, ReaderGone, Stderr, Stream, say
from ig.stop import Stop, Stopped

LINE = "x" * 1023 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def read(descriptor: int) -> str:
    os.set_blocking(descriptor, False)
    pieces = []
    try:
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces).decode()


def test_stderr_lines_that_nobody_reads_are_kept_up_to_a_bound_then_dropped_and_counted(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    told = Stderr(writing)
    threads = [
        threading.Thread(target=lambda: [told.write(LINE) for _ in range(501)]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = ""
    while piece := read(reading):  # what the pipe holds, what was kept, what was counted
        text += piece
        told.drain(0.0)
    lines = text.splitlines()
    shown = [line for line in lines if line == LINE.strip()]
    (last,) = (line for line in lines if line not in shown)
    assert last == f"ig: {1503 - len(shown)} messages dropped: stderr was not read"
    assert lines[-1] == last
    assert len(shown) > 1024


def test_stderr_refuses_bytes_as_text_streams_do(pipe: tuple[int, int]) -> None:
    with pytest.raises(TypeError):
        Stderr(pipe[1]).write(b"")  # type: ignore[arg-type]


def test_text_of_any_length_is_written_to_who_reads(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    told = Stderr(writing)
    text = LINE * 501
    told.write(text)
    pieces = []
    while piece := read(reading):
        pieces.append(piece)
        told.drain(0.0)
    assert "".join(pieces) == text


def test_reader_that_is_gone_is_no_failure(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    told = Stderr(writing)
    os.dup2(os.open(os.devnull, os.O_RDONLY), reading)
    assert told.write("é\udcff\n") == 3
    told.drain(1.0)


def test_output_that_nobody_reads_is_given_up_once_the_user_wants_to_end(
    pipe: tuple[int, int],
) -> None:
    stopping = threading.Event()
    stream = Stream(pipe[1], stopping.is_set)
    stopping.set()
    began = time.monotonic()
    with pytest.raises(ReaderGone):
        stream.write(LINE * 4096)
    assert time.monotonic() - began < 10


def test_signal_is_raised_or_only_noted_where_something_must_be_finished() -> None:
    handlers = {number: signal.getsignal(number) for number in (1, 2, 14, 15)}
    stop = Stop()
    try:
        assert not stop.wait(0.01)
        with stop.noted():
            signal.raise_signal(signal.SIGHUP)
            assert stop()
            assert stop.wait(3600)
        with pytest.raises(Stopped), stop.noted():
            pass
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("line", range(1, 13))
def test_signal_at_any_line_of_a_wait_is_only_noted_where_it_must_be(line: int) -> None:
    handlers = {number: signal.getsignal(number) for number in (1, 2, 14, 15)}
    stop = Stop()
    first = Stop.wait.__code__.co_firstlineno

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if frame.f_code is not Stop.wait.__code__:
            return None
        if event == "line" and frame.f_lineno == first + line and not stop():
            signal.raise_signal(signal.SIGTERM)
        return trace

    before = sys.gettrace()
    try:
        with stop.noted():
            sys.settrace(trace)
            stop.wait(0.01)
            sys.settrace(before)
    finally:
        sys.settrace(before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_changes_beyond_the_room_for_them_are_counted(pipe: tuple[int, int]) -> None:
    said: list[str] = []
    changes = Changes(3, said.append)
    for number in range(5):
        changes.put(Change("started", Container(str(number), "", "docker")))
    changes.put(Change("updated", Container("5", "", "docker")))
    stream = Stream(pipe[1], lambda: False)
    found = [changes.next(stream) for _ in range(4)]
    assert [each and each.container.id for each in found] == ["0", "1", "2", None]
    assert said == ["2 changes lost: the output was read too slowly"]


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028"])
def test_messages_that_quote_ends_of_lines_forge_no_line(
    end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = f"ring full{end}ig: warning: forged"
    say(f"warning: {forged}")
    report_lost({forged: 7}, structured=False)
    say(*IgError(forged, forged, forged, [forged]).lines())
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition("ring full")[0] for line in shown] == [
        "ig: warning: ", "ig: 7 events lost so far: ", "ig: ", "", "", "",
    ]  # fmt: skip
    assert {line.partition("ring full")[2] for line in shown} == {
        f"\\u{ord(end):04x}ig: warning: forged"
    }


def test_message_is_passed_on_once_whatever_its_numbers() -> None:
    said: list[str] = []
    say_once = Once(said.append)
    for line in ("5 sockets without an owner", "7 sockets without an owner", "not root"):
        say_once(line)
    assert said == ["5 sockets without an owner", "not root"]
