"""Sockets of runtimes that answer nothing, nonsense or without end cost names, never the trace."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import socket
import subprocess
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from ig.containers.runtimes.messages import containerd_pb2, cri_pb2
from ig.kernel.mounts import mounts
from tests.host.namespace import Namespace, program
from tests.host.serving import end_serving
from tests.host.together import together
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE, until

pytestmark = pytest.mark.anywhere
Start = Callable[..., Tracer]
NOBODY = ("127.0.0.1", 9)
BEGINNING = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PIECE = b'[{"Id":"' + b"a" * 65536
MOST_MEMORY = 200  # MB


def whole(text: object) -> Iterable[bytes]:
    body = json.dumps(text).encode()
    yield BEGINNING + b"Content-Length: %d\r\n\r\n" % len(body) + body


def forever(beginning: bytes, piece: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: itertools.chain([beginning], itertools.repeat(piece))


def zipped(beginning: bytes) -> Iterable[bytes]:
    press = zlib.compressobj(1, wbits=31)
    body = b"".join(press.compress(bytes(1 << 20)) for _ in range(300)) + press.flush()
    yield beginning + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    yield body


MOVED = b"HTTP/1.1 302 Go\r\nLocation: /\r\n"
EVENT = {"Action": "create", "Actor": {"ID": "a" * 64, "Attributes": {"x": "y" * 900_000}}}
ANSWERS: dict[str, Callable[[], Iterable[bytes]]] = {
    "nothing": list,
    "garbage": lambda: [os.urandom(4096)],
    "no HTTP": lambda: [b"220 mail.example ESMTP\r\n"],
    "a header without end": forever(BEGINNING, b"X: y" * 9999),
    "headers without end": forever(BEGINNING, b"X: y\r\n" * 9999),
    "a list without end": forever(BEGINNING + b"\r\n", PIECE),
    "a gigabyte": lambda: itertools.chain(
        [BEGINNING + b"Content-Length: 1073741824\r\n\r\n"], itertools.repeat(PIECE, 16384)
    ),
    "an error": lambda: [b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"],
    "another place": lambda: [b"HTTP/1.1 302 Go\r\nLocation: http://192.0.2.1/\r\n\r\n"],
    "another place, without end": forever(MOVED + b"\r\n", PIECE),
    "gzip": lambda: zipped(BEGINNING),
    "a number": lambda: whole(7),
    "numbers": lambda: whole([1, None, True, "x", [], {}]),
    "nothings": lambda: [BEGINNING + b"\r\n[", *itertools.repeat(b"{}," * 99999, 110), b"7]"],
    "a list of nothings in a list": lambda: [
        BEGINNING + b"\r\n[[",
        *itertools.repeat(b"{}," * 99999, 110),
        b"7]]",
    ],
    "labels of a megabyte": lambda: [
        BEGINNING + b"\r\n",
        *itertools.repeat(json.dumps(EVENT).encode() + b"\n", 300),
    ],
    "wrong types": lambda: whole([{"Id": 7, "Names": {"a": 1}, "Labels": [1], "State": None}]),
    "depth": lambda: [BEGINNING + b"\r\n" + b"[" * 100_000],
    "half": lambda: [BEGINNING + b"Content-Length: 99\r\n\r\n[{"],
}
SAID = {"nothing", "garbage", "no HTTP", "an error", "another place", "a number", "depth", "half"}
"""Those by which it can be seen at once that no engine answers."""


class Liar:
    """A server on a unix socket that says one thing to everybody, whatever they ask."""

    def __init__(self, path: Path, answer: Callable[[], Iterable[bytes]] | None) -> None:
        self._answer = answer
        self._held: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._held.append(client)
                if self._answer:
                    threading.Thread(target=self._lie, args=(client,), daemon=True).start()

    def _lie(self, client: socket.socket) -> None:
        assert self._answer
        with suppress(OSError), client:
            client.recv(65536)
            for piece in self._answer():
                client.sendall(piece)

    def close(self) -> None:
        end_serving(self._server, self._thread, self._held)


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    started: list[Liar] = []
    numbers = itertools.count()

    def start(answer: Callable[[], Iterable[bytes]] | None) -> Path:
        path = tmp_path / f"{next(numbers)}.sock"
        started.append(Liar(path, answer))
        return path

    yield start
    for each in started:
        each.close()


def traces_all_the_same(
    start_ig: Start,
    namespace: Namespace,
    *options: object,
    until_true: Callable[[], bool] = lambda: True,
    **more: object,
) -> str:
    """Trace a bind as ever, in bounded memory, and give what was said on stderr."""
    only = ("-F", f"netns=={namespace.inode}")
    # The trace whose program takes the least time to compile.
    tracer = start_ig("trace", "bind", "--host", "-o", "json", *only, *options, **more)
    until(until_true, "enough answers")
    port = namespace.serve()
    (event,) = tracer.wait_for(lambda _: True)
    status = Path(f"/proc/{tracer.process.pid}/status").read_text()
    _, said, code = tracer.stop()
    assert event["addr"]["port"] == port
    assert int(status.partition("VmHWM:")[2].split()[0]) < MOST_MEMORY * 1024
    assert code == 0
    assert "Traceback" not in said
    assert "".join(said.split()).isprintable()
    return said


def test_engines_that_lie_cost_names_alone(
    start_ig: Start, new_namespace: Callable[[], Namespace], liar: Callable[..., Path]
) -> None:
    def reported(answer: str) -> str:
        options: list[object] = ["-r", "docker,podman"]
        for runtime in ("docker", "podman"):
            options += [f"--{runtime}-socketpath", liar(ANSWERS[answer])]
        return traces_all_the_same(start_ig, new_namespace(), *options)

    for answer, said in together(reported, ANSWERS).items():
        assert ("docker does not answer" in said) >= (answer in SAID), answer


HEAVY = ("another place, without end", "nothings", "a list of nothings in a list")


@pytest.mark.parametrize(
    "command", [("list-containers",), ("snapshot", "socket", "-c", "x")], ids=" ".join
)
def test_no_command_takes_more_memory_for_engines_that_lie(
    liar: Callable[..., Path], command: tuple[str, ...]
) -> None:
    def measured(answer: str) -> int:
        return most_memory(*command, "--docker-socketpath", liar(ANSWERS[answer]))

    found = together(measured, HEAVY)
    assert max(found.values()) < MOST_MEMORY, found


def test_doctor_takes_no_more_memory_for_runtimes_that_lie(
    liar: Callable[..., Path], grpc_liar: Callable[..., tuple[GrpcLiar, Path]]
) -> None:
    # One run for both: it loads every program, which takes seconds.
    docker = ("--docker-socketpath", liar(ANSWERS[HEAVY[0]]))
    containerd = ("--containerd-socketpath", grpc_liar(CONTAINERD["names"])[1])
    assert most_memory("doctor", *docker, *containerd) < MOST_MEMORY + 50  # 194 to 218 were seen


def most_memory(*words: object) -> int:
    """Run `ig`, and return the most memory that one of its processes took, in MB."""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", MEASURED, str(IG), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,  # doctor loads each program
        check=True,
    )
    assert "Traceback" not in done.stderr
    return int(done.stdout.splitlines()[-1]) >> 10


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=False)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_address_of_docker_that_makes_no_sense_is_said(
    start_ig: Start, new_namespace: Callable[[], Namespace]
) -> None:
    def reported(address: str) -> str:
        environment = {"DOCKER_HOST": address}
        return traces_all_the_same(
            start_ig, new_namespace(), "-r", "docker", environment=environment
        )

    addresses = ("npipe:////./pipe/docker_engine", "fd://3", "tcp://[::1")
    for address, said in together(reported, addresses).items():
        assert f"docker does not answer at {address} (" in said


def test_runtime_that_lies_over_grpc_costs_names_alone(
    start_ig: Start, new_namespace: Callable[[], Namespace], liar: Callable[..., Path]
) -> None:
    def traced(case: tuple[str, str]) -> None:
        runtime, answer = case
        options = ("-r", runtime, f"--{runtime}-socketpath", liar(ANSWERS[answer]))
        traces_all_the_same(start_ig, new_namespace(), *options)

    answers = ("nothing", "garbage", "no HTTP", "a list without end")
    together(traced, itertools.product(("containerd", "crio"), answers))


Pieces = Callable[[], Iterable[bytes]]
SILENCE: Pieces = list
NOTHINGS = b"\n\0"
LARGEST = 15 << 20
"""Bytes, somewhat less than the largest message that is taken."""
LABELS = {str(number): "y" * 4000 for number in range(200)}
LONG = "\U0001f600" * 255
POD = {f"io.kubernetes.pod.{key}": LONG for key in ("name", "namespace", "uid")}


def containerds(labels: Mapping[str, str]) -> Pieces:
    """Return what streams containers without end, with these labels."""
    message = containerd_pb2.ContainerResponse
    extension = "io.cri-containerd.container.metadata"

    def pieces() -> Iterator[bytes]:
        for number in itertools.count():
            answer = message(container={"id": f"{number:064x}", "image": LONG, "labels": labels})
            answer.container.extensions[extension].value = b"{}"
            yield answer.SerializeToString()

    return pieces


def one(labels: Mapping[str, str]) -> Pieces:
    return lambda: itertools.islice(containerds(labels)(), 1)


def envelopes() -> Iterator[bytes]:
    for number in itertools.count():
        event = containerd_pb2.Envelope(namespace="k8s.io", topic="/containers/create")
        content = containerd_pb2.ContainerEvent(id=f"{number:064x}")
        event.event.value = content.SerializeToString()
        yield event.SerializeToString()


def sandboxes(labels: Mapping[str, str], count: int) -> Pieces:
    items = [{"id": f"{number:064x}", "labels": labels} for number in range(count)]
    return lambda: [cri_pb2.ListPodSandboxResponse(items=items).SerializeToString()]


def namespaces() -> Iterable[bytes]:
    message = containerd_pb2.ListNamespacesResponse
    return [message(namespaces=[{"name": "k8s.io"}]).SerializeToString()]


CONTAINERD: dict[str, dict[str, Pieces]] = {
    "nothings": {"ListStream": lambda: itertools.repeat(NOTHINGS)},
    "namespaces": {"Namespaces/List": lambda: [NOTHINGS * (LARGEST // 2)]},
    "tasks": {"Tasks/List": lambda: [NOTHINGS * (LARGEST // 2)]},
    "labels": {"ListStream": containerds(LABELS)},
    "records": {"ListStream": containerds({"x": "y" * (2 << 20)})},
    "names": {"ListStream": containerds({"io.cri-containerd.kind": "container", **POD})},
    "silence": {"Namespaces/List": SILENCE},
    "silence in between": {"ListStream": SILENCE},
}
CRIO: dict[str, dict[str, Pieces]] = {
    "nothings": {"ListPodSandbox": lambda: [NOTHINGS * (LARGEST // 2)]},
    "containers": {"ListContainers": lambda: [NOTHINGS * (LARGEST // 2)]},
    "labels": {"ListPodSandbox": sandboxes(LABELS, 18)},
    "small labels": {"ListPodSandbox": sandboxes(dict.fromkeys(map(str, range(20)), ""), 60_000)},
    "too much": {"ListPodSandbox": lambda: [bytes(LARGEST * 2)]},
    "silence": {"ListPodSandbox": SILENCE},
    "events": {"GetContainerEvents": lambda: itertools.repeat(b"")},
}

HEAVIEST = ("names", "labels", "small labels")


class GrpcLiar(grpc.GenericRpcHandler):
    """A gRPC server that answers a method, called by its end, with encoded messages.

    To SILENCE belongs the beginning of an answer. Other methods answer an empty message.
    """

    def __init__(self, path: Path, answers: Mapping[str, Pieces]) -> None:
        self._answers = {
            "Namespaces/List": namespaces,
            "Subscribe": SILENCE,
            "GetContainerEvents": SILENCE,
            **answers,
        }
        self.asked: Counter[str] = Counter()
        self._server = grpc.server(ThreadPoolExecutor(32), handlers=[self])
        self._server.add_insecure_port(f"unix://{path}")
        self._server.start()

    def service(self, call: Any) -> Any:
        found = [self._answers[end] for end in self._answers if call.method.endswith(end)]
        pieces: Pieces = (*found, lambda: [b""])[0]
        self.asked[call.method.rpartition("/")[2]] += 1
        return grpc.unary_stream_rpc_method_handler(
            lambda _, context: self._silent(context) if pieces is SILENCE else iter(pieces())
        )

    def _silent(self, context: Any) -> Iterator[bytes]:
        ended = threading.Event()
        if context.add_callback(ended.set):
            context.send_initial_metadata(())
            ended.wait()
        yield from ()

    def close(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def grpc_liar(tmp_path: Path) -> Iterator[Callable[..., tuple[GrpcLiar, Path]]]:
    started: list[GrpcLiar] = []
    numbers = itertools.count()  # tests start several at once, in threads

    def start(answers: Mapping[str, Pieces]) -> tuple[GrpcLiar, Path]:
        path = tmp_path / f"grpc{next(numbers)}.sock"
        started.append(GrpcLiar(path, answers))
        return started[-1], path

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize(
    "command", [("list-containers",), ("snapshot", "socket", "-c", "x")], ids=" ".join
)
def test_no_command_takes_more_memory_for_runtimes_that_lie_over_grpc(
    grpc_liar: Callable[..., tuple[GrpcLiar, Path]], command: tuple[str, ...]
) -> None:
    lies = {"containerd": CONTAINERD, "crio": CRIO}
    kinds = [(runtime, kind) for runtime in lies for kind in lies[runtime]]

    def measured(case: tuple[str, str]) -> int:
        runtime, kind = case
        _, path = grpc_liar(lies[runtime][kind])
        return most_memory(*command, f"--{runtime}-socketpath", path)

    if command != ("list-containers",):  # the others ask the same, or less
        kinds = [each for each in kinds if each[1] in HEAVIEST]
    found = together(measured, kinds, at_once=4)
    assert max(found.values()) < MOST_MEMORY, found


@pytest.mark.parametrize(
    "case",
    [
        ("containerd", {"Subscribe": envelopes, "Containers/Get": one(LABELS)}, "Get"),
        ("crio", {**CRIO["small labels"], **CRIO["events"]}, "ListContainers"),
    ],
    ids=["events", "lists"],
)
def test_runtime_that_goes_on_lying_over_grpc_takes_no_more_memory(
    start_ig: Start,
    namespace: Namespace,
    grpc_liar: Callable[..., tuple[GrpcLiar, Path]],
    case: tuple[str, Mapping[str, Pieces], str],
) -> None:
    runtime, answers, asked = case
    server, path = grpc_liar(answers)
    enough = {"Get": 300, "ListContainers": 3}.get(asked, 1)
    options = ("-r", runtime, f"--{runtime}-socketpath", path)
    traces_all_the_same(
        start_ig, namespace, *options, until_true=lambda: server.asked[asked] >= enough
    )


def test_runtimes_that_never_answer_cost_names_alone(
    start_ig: Start, namespace: Namespace, liar: Callable[..., Path]
) -> None:
    runtimes = ("docker", "containerd", "podman", "crio")
    options = [(f"--{runtime}-socketpath", liar(None)) for runtime in runtimes]
    traces_all_the_same(start_ig, namespace, *itertools.chain(*options))


NAMES = {
    "escapes": "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m",
    "marks": "\u202egpj.\u2066\u200b\ufeff",
    "quotes": "\"'`$(id)\\,: #{}[]|>&*!%@",
    "length": "n" * 255,
    "no UTF-8": "a\udcffb",
    "wide": "\U0001f600\u4e16\u754c\u0301",
}


@pytest.fixture
def cgroups() -> Iterator[dict[str, Path]]:
    """Cgroups that are named as containers' are, one for each of NAMES."""
    point = next(mount.point for mount in mounts() if mount.kind == "cgroup2")
    made = {name: Path(point, uuid.uuid4().hex + uuid.uuid4().hex) for name in NAMES}
    for folder in made.values():
        folder.mkdir()
    yield made
    until(lambda: not any(map(processes, made.values())), "the cgroups to be empty")
    for folder in made.values():
        folder.rmdir()


def processes(cgroup: Path) -> str:
    return (cgroup / "cgroup.procs").read_text()


def records(cgroups: Mapping[str, Path]) -> list[dict[str, object]]:
    """Return containers that are called so, as their images and labels are."""
    return [
        {
            "Id": folder.name,
            "Names": [f"/{NAMES[name]}"],
            "Image": NAMES[name],
            "State": "running",
            "Labels": {NAMES[name]: NAMES[name]},
        }
        for name, folder in cgroups.items()
    ]


def test_containers_that_are_named_to_do_harm_do_none(
    start_ig: Start, namespace: Namespace, liar: Callable[..., Path], cgroups: dict[str, Path]
) -> None:
    path = liar(lambda: whole(records(cgroups)))
    engine = ("-r", "docker", "--docker-socketpath", path)
    chosen = ("-F", f"netns=={namespace.inode}", "--max-events", len(NAMES))

    def started(mode: str) -> Tracer:
        shown = f"{mode}=containername,image,containerid" if mode == "columns" else mode
        return start_ig("trace", "tcpconnect", "-o", shown, *engine, *chosen)

    tracers = together(started, ("columns", "json", "yaml", "csv"))
    for folder in cgroups.values():
        join = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
        namespace.run("sh", "-c", join, "sh", *program("connect", *NOBODY))
    texts = {}
    for mode, tracer in tracers.items():
        _, said, code = tracer.finished()
        texts[mode] = "\n".join([*tracer.reports.lines, ""])
        assert code == 0
        for printed in (texts[mode], said):
            assert printed.replace("\r\n", "").replace("\n", "").isprintable()
    wanted = [name.encode("utf-8", "replace").decode() for name in NAMES.values()]
    events = [json.loads(line) for line in texts["json"].splitlines()]
    assert [event["runtime"]["containerName"] for event in events] == wanted
    events = [event for event in yaml.safe_load_all(texts["yaml"]) if event]
    assert [event["runtime"]["containerName"] for event in events] == wanted
    assert len(list(csv.reader(io.StringIO(texts["csv"])))) == 1 + len(NAMES)
    _, *rows = texts["columns"].splitlines()
    for row, folder in zip(rows, cgroups.values(), strict=True):
        assert folder.name[:12] in row
