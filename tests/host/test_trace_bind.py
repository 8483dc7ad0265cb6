"""`ig trace bind`: binds as they succeeded, or as they were asked for when they failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.host.attached import added, loaded
from tests.host.engine import Engine
from tests.host.namespace import Namespace
from tests.host.reports import Report
from tests.host.tracer import Tracer
from tests.host.waiting import until

Start = Callable[..., Tracer]

BIND = """
import json, os, socket
held, bound = [], []
def bind(address, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0, *options):
    held.append(socket.socket(family, kind, protocol))
    for option in options:
        held[-1].setsockopt(*option)
    try:
        held[-1].bind(address)
    except OSError as error:
        bound.append({"errno": error.errno, "pid": os.getpid()})
    else:
        bound.append({"errno": 0, "pid": os.getpid(), "port": held[-1].getsockname()[1]})
"""


def binds(
    start_ig: Start, namespace: Namespace, script: str, *options: object, view: bool = False
) -> tuple[list[Report], list[Report]]:
    """Run a script of `bind(…)` calls in the namespace; give what it got, and the events."""
    command = ["bindsnoop"] if view else ["trace", "bind"]
    tracer = start_ig(*command, "--host", "-o", "json", *options)
    got: list[Report] = json.loads(
        namespace.run("/usr/bin/python3", "-c", f"{BIND}{script}\nprint(json.dumps(bound))")
    )
    events, said, code = tracer.stop()
    assert (said, code) == ("", 0)
    if view:
        return got, [event for event in events if event["pid"] == got[0]["pid"]]
    return got, [event for event in events if event["netns_id"] == namespace.inode]


def address(event: Report) -> tuple[Any, ...]:
    return tuple(event["addr"][key] for key in ("proto", "addr", "port", "version"))


def test_bind_is_reported_with_the_port_that_was_chosen(
    start_ig: Start, namespace: Namespace
) -> None:
    script = "for _ in range(7): bind(('127.0.0.1', 0))"
    got, events = binds(start_ig, namespace, script)
    assert [address(event) for event in events] == [
        ("TCP", "127.0.0.1", each["port"], 4) for each in got
    ]
    for event, each in zip(events, got, strict=True):
        assert event["proc"]["pid"] == each["pid"]
        assert event["proc"]["comm"] == "python3"
        assert (event["opts"], event["bound_dev_if"]) == (".....", 0)
        assert (event["error"], event["error_raw"]) == ("", 0)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("bind(('0.0.0.0', 4242))", ("TCP", "0.0.0.0", 4242, 4)),
        ("bind(('::', 4242), socket.AF_INET6)", ("TCP", "::", 4242, 6)),
        ("bind(('::ffff:127.0.0.1', 4242), socket.AF_INET6)", ("TCP", "127.0.0.1", 4242, 4)),
        ("bind(('127.0.0.1', 4242), kind=socket.SOCK_DGRAM)", ("UDP", "127.0.0.1", 4242, 4)),
        ("bind(('::1', 4242), socket.AF_INET6, socket.SOCK_DGRAM)", ("UDP", "::1", 4242, 6)),
        ("bind(('127.0.0.1', 0), socket.AF_INET, socket.SOCK_RAW, 1)", ("ICMP", "127.0.0.1", 0, 4)),
        ("bind(('::1', 0), socket.AF_INET6, socket.SOCK_RAW, 58)", ("ICMPV6", "::1", 0, 6)),
        (
            "bind(('127.0.0.1', 0), socket.AF_INET, socket.SOCK_RAW, 250)",
            ("250", "127.0.0.1", 0, 4),
        ),
    ],
    ids=["any", "any6", "mapped", "udp", "udp6", "icmp", "icmp6", "unnamed"],
)
def test_every_ip_protocol_is_shown_by_its_name(
    start_ig: Start, namespace: Namespace, call: str, expected: tuple[Any, ...]
) -> None:
    _, events = binds(start_ig, namespace, call)
    assert [address(event) for event in events] == [expected]


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_each_option_has_its_letter(
    start_ig: Start, namespace: Namespace, family: str, host: str
) -> None:
    options = {
        "r....": "(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)",
        ".R...": "(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)",
        "..N..": "(socket.IPPROTO_IP, 24, 1)",
        "...T.": "(socket.IPPROTO_IP, 19, 1)",
        "....F": "(socket.IPPROTO_IP, 15, 1)",
        "r...F": "(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1), (socket.IPPROTO_IP, 15, 1)",
    }
    script = "".join(
        f"bind(({host!r}, 0), socket.{family}, socket.SOCK_STREAM, 0, {option})\n"
        for option in options.values()
    )
    got, events = binds(start_ig, namespace, script)
    ports = [each["port"] for each in got]
    assert [event["addr"]["port"] for event in events] == ports
    assert [event["opts"] for event in events] == list(options)


def test_failed_bind_is_reported_if_asked_with_what_it_wanted(
    start_ig: Start, namespace: Namespace
) -> None:
    script = (
        "bind(('127.0.0.1', 4242))\n"
        "bind(('127.0.0.1', 4242))\n"
        "bind(('192.0.2.7', 4243))\n"
        "bind(('2001:db8::7', 4244), socket.AF_INET6)\n"
    )
    _, events = binds(start_ig, namespace, script, "-i=false")
    assert [(event["error"], *address(event)) for event in events] == [
        ("", "TCP", "127.0.0.1", 4242, 4),
        ("EADDRINUSE", "TCP", "127.0.0.1", 4242, 4),
        ("EADDRNOTAVAIL", "TCP", "192.0.2.7", 4243, 4),
        ("EADDRNOTAVAIL", "TCP", "2001:db8::7", 4244, 6),
    ]
    _, events = binds(start_ig, namespace, script)
    assert [event["error"] for event in events] == [""]


def test_device_is_shown_by_its_name_in_a_table_and_its_index_in_json(
    start_ig: Start, namespace: Namespace
) -> None:
    namespace.ip("link", "add", "igt-bound", "type", "veth", "peer", "name", "igt-peer")
    index = json.loads(namespace.ip("-j", "link", "show", "igt-bound"))[0]["ifindex"]
    call = (
        "bind(('127.0.0.1', 0), socket.AF_INET, socket.SOCK_DGRAM, 0, "
        "(socket.SOL_SOCKET, 25, b'igt-bound'))"
    )
    _, events = binds(start_ig, namespace, call)
    assert [event["bound_dev_if"] for event in events] == [index]
    _, events = binds(start_ig, namespace, call, view=True)
    assert [event["if"] for event in events] == ["igt-bound"]


def test_only_the_asked_ports_pass(start_ig: Start, namespace: Namespace) -> None:
    script = "for port in 4241, 4242, 4343, 4344, 0: bind(('127.0.0.1', port))"
    _, events = binds(start_ig, namespace, script, "-P", "4242,4343")
    assert [event["addr"]["port"] for event in events] == [4242, 4343]


def test_what_is_no_bind_of_an_ip_socket_is_not_reported(
    start_ig: Start, namespace: Namespace
) -> None:
    script = (
        "bind('\\0ig-test', socket.AF_UNIX)\n"
        "held.append(socket.socket()); held[-1].listen()\n"
        "held.append(socket.create_connection(held[-1].getsockname()))\n"
        "bind(('127.0.0.1', 4242))\n"
    )
    _, events = binds(start_ig, namespace, script)
    assert [event["addr"]["port"] for event in events] == [4242]


def test_classic_view_is_flat(start_ig: Start, namespace: Namespace) -> None:
    got, events = binds(start_ig, namespace, "bind(('::', 4343), socket.AF_INET6)", view=True)
    assert [list(event) for event in events] == [
        [
            *("type", "node", "namespace", "pod", "container", "pid", "comm", "proto"),
            *("addr", "port", "opts", "if", "mountnsid"),
        ]
    ]
    expected = {"type": "normal", "pid": got[0]["pid"], "comm": "python3", "proto": "TCP"}
    expected |= {"addr": "::", "port": 4343, "opts": ".....", "if": "0"}
    assert expected.items() <= events[0].items()


def test_bind_in_a_container_is_that_containers(ig: Start, engine: Engine) -> None:
    tracer = ig("trace", "bind")
    server, port = engine.serve("server")
    (event,) = tracer.wait_for(lambda event: event["addr"]["port"] == port)
    assert event["runtime"]["containerName"] == server.name
    assert event["proc"]["mntns_id"] == server.mntns
    assert event["opts"] == ".R..."


def test_nothing_stays_attached(start_ig: Start, namespace: Namespace) -> None:
    before = loaded()
    binds(start_ig, namespace, "bind(('127.0.0.1', 0))")
    until(lambda: not added(before), "the kernel to let go of the programs")


@pytest.mark.anywhere
@pytest.mark.parametrize(
    "line",
    [
        "bindsnoop -i=false --pid 42 -P=4242,4343 -t 0.1",
        "bindsnoop -o custom-columns=pid,comm -t=0.1",
        "run ghcr.io/inspektor-gadget/gadget/trace_bind:v0.30.0 -t 0.1",
    ],
)
def test_command_lines_that_people_know_work(start_ig: Start, line: str) -> None:
    assert start_ig(*line.split(), ready=False).finished()[2] == 0


@pytest.mark.anywhere
@pytest.mark.parametrize("ports", ["70000", "0", "no-such-service", "4242,", "4242,-1"])
def test_what_is_no_port_is_refused(start_ig: Start, ports: str) -> None:
    _, said, code = start_ig("trace", "bind", "-P", ports, ready=False).finished()
    assert code == 2
    assert "port" in said


def test_end_of_a_trace_says_how_many_binds_failed(start_ig: Start, namespace: Namespace) -> None:
    script = "for _ in range(3): bind(('192.0.2.1', 0)), bind(('127.0.0.1', 0))"
    chosen = ("--host", "-F", f"netns=={namespace.inode}")
    usual, all_of_them = (start_ig("trace", "bind", *chosen, *more) for more in ((), ("-i=false",)))
    namespace.run("/usr/bin/python3", "-c", BIND + script)
    said = "ig: 3 failed binds not shown; use -i=false to show them.\n"
    assert usual.stop()[1:] == (said, 0)
    assert len(usual.reports.lines) == 1 + 3
    assert all_of_them.stop()[1:] == ("", 0)
    errors = [line.split()[-1] for line in all_of_them.reports.lines[1:]]
    assert errors == ["EADDRNOTAVAIL", "-"] * 3
