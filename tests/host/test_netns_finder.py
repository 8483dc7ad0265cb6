"""What is found of network namespaces by a search that remembers the one before."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack

import pytest

from ig.kernel import netns
from ig.kernel.netns_finder import Finder, find
from ig.sockets.proc import ALL_STATES, TRAFFIC, Fields
from ig.sockets.reader import Reader
from ig.sockets.sides import Side
from tests.host.namespace import Namespace, Program
from tests.host.waiting import until

STEPS = """
import ctypes, json, os, signal, sys, threading

def tell(**what):  # one write: parent and child share the pipe
    os.write(1, (json.dumps(what) + "\\n").encode())

def enter():
    with open(sys.argv[1]) as file:
        assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0

def stay(entered):
    enter()
    entered.set()
    threading.Event().wait()

def thread():
    entered = threading.Event()
    threading.Thread(target=stay, args=(entered,), daemon=True).start()
    entered.wait()

def child(number, act):
    while True:
        if number:
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(number - 1))
        read, write = os.pipe()
        pid = os.fork()
        if not pid and number in (0, os.getpid()):
            os.close(write)
            act()
            tell(child=os.getpid())
            os.read(read, 1)
        if not pid:
            os._exit(0)
        if number in (0, pid):
            children[:] = pid, write
            return
        os.close(write)
        os.waitpid(pid, 0)

def again():
    number, write = children
    os.close(write)
    os.waitpid(number, 0)
    child(number, hold)

def open_own():
    enter()
    held.append(open("/proc/thread-self/ns/net"))

def hold():
    opening = threading.Thread(target=open_own)
    opening.start()
    opening.join()
    while os.path.exists(f"/proc/self/task/{opening.native_id}"):
        pass  # the kernel has yet to end it

held, children = [], []
steps = {
    "enter": enter,
    "thread": thread,
    "hold": hold,
    "close": lambda: held.pop().close(),
    "child": lambda: child(0, lambda: None),
    "again": again,
}
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
tell(ready=True)
for step in sys.argv[2:]:
    signal.sigwait({signal.SIGUSR1})
    steps[step]()
    tell(done=step)
signal.pause()
"""


class Steps(Program):
    """A program that takes a step at each signal: into, or away from, another namespace."""

    def __init__(self, namespace: Namespace, *steps: str) -> None:
        super().__init__([sys.executable, "-c", STEPS, namespace.path, *steps])
        self.reports.ready()
        self.taken = 0

    def step(self) -> None:
        """Let it take the next step, and wait until it has."""
        self.taken += 1
        self.process.send_signal(signal.SIGUSR1)
        self.reports.matching(lambda report: "done" in report, self.taken)


def test_finder_has_the_namespace_of_a_new_process_at_once() -> None:
    finder = Finder()
    finder.find()
    program = Program(["unshare", "--net", "sh", "-c", "echo {}; exec sleep infinity"])
    program.reports.matching(lambda report: not report)
    inode = os.stat(f"/proc/{program.pid}/ns/net").st_ino
    assert finder.find().namespaces[inode].pids == (program.pid,)
    program.stop()
    assert inode not in finder.find().namespaces


def test_finder_follows_a_process_into_another_namespace_at_once(namespace: Namespace) -> None:
    finder, program = Finder(), Steps(namespace, "enter")
    assert program.pid in finder.find().namespaces[netns.own()].pids
    program.step()
    found = finder.find().namespaces
    assert program.pid not in found[netns.own()].pids
    assert found[namespace.inode].pids == (program.pid,)


@pytest.mark.parametrize("step", ["thread", "hold"])
def test_finder_finds_what_a_known_process_has_reached_since(
    namespace: Namespace, step: str
) -> None:
    finder, program = Finder(again=0.5), Steps(namespace, step)
    assert program.pid not in finder.find().namespaces[namespace.inode].pids
    program.step()
    found = until(
        lambda: next(
            (each for each in finder.find().namespaces.values() if _reached(each, program)), None
        ),
        "the namespace",
    )
    assert found
    assert found.id == namespace.inode
    assert found == find().namespaces[namespace.inode]


def _reached(found: netns.Namespace, program: Steps) -> bool:
    return found.id != netns.own() and (program.pid in found.pids or _held_by(program.pid, found))


def test_finder_forgets_a_descriptor_that_is_closed_at_once(namespace: Namespace) -> None:
    finder, program = Finder(), Steps(namespace, "hold", "close")
    program.step()
    assert _held_by(program.pid, finder.find().namespaces[namespace.inode])
    program.step()
    assert not _held_by(program.pid, finder.find().namespaces[namespace.inode])


def test_finder_looks_at_a_process_that_has_the_number_of_another(namespace: Namespace) -> None:
    finder, program = Finder(), Steps(namespace, "child", "again")

    def child(count: int) -> int:
        last: int = program.reports.matching(lambda each: "child" in each, count)[-1]["child"]
        return last

    program.step()
    number = child(1)
    assert not _held_by(number, finder.find().namespaces[namespace.inode])
    program.step()
    assert child(2) == number
    found = finder.find().namespaces[namespace.inode]
    assert _held_by(number, found)
    assert found == find().namespaces[namespace.inode]


def _held_by(pid: int, found: netns.Namespace) -> bool:
    return any(path.startswith(f"/proc/{pid}/fd/") for path in found.paths)


def test_connections_are_read_while_listeners_end(namespace: Namespace) -> None:
    with ExitStack() as stack:

        def act(space: netns.Namespace, entered: bool) -> Fields:
            assert entered
            listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in "12"]
            client = stack.enter_context(socket.create_connection(listeners[0].getsockname()))
            stack.enter_context(listeners[0].accept()[0])

            def close(_: int) -> bool:
                """End the listeners after they were read, before the connections are."""
                for listener in listeners:
                    listener.close()
                return False

            reader = Reader({"TCP": ALL_STATES}, TRAFFIC, Side(False, {}, close))
            fields = reader.read(space, entered)[1]
            assert client.getsockname()[1] in fields["sport"]
            return fields

        where = netns.Namespace(namespace.inode, paths=(namespace.path,))
        (fields,) = netns.visit([where], act)
    assert "ESTABLISHED" in fields["state"]
