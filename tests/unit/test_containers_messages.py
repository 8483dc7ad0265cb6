"""What a runtime may answer over gRPC, nonsense included: containers, or that it is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ig.container import Change, Runtime
from ig.containers.runtimes.containerd import Containerd
from ig.containers.runtimes.cri import Cri
from ig.containers.runtimes.messages import containerd_pb2, cri_pb2
from ig.errors import RuntimeUnavailable

STREAMS = ("Subscribe", "ListStream", "GetContainerEvents")
KINDS = {"exists", "created", "started", "renamed", "updated", "exited", "removed", "synced"}
IDS = st.sampled_from(["a" * 64, "b" * 64, "web"]) | st.text(max_size=20)
TOPICS = ["/containers/create", "/containers/update", "/containers/delete", "/tasks/start"]


def envelope(topic: str, namespace: str, content: bytes, seconds: int) -> bytes:
    message = containerd_pb2.Envelope(topic=topic, namespace=namespace)
    message.event.value = content
    message.timestamp.seconds = seconds
    return message.SerializeToString()


def sandboxes(identifiers: Sequence[str]) -> bytes:
    items = [
        {"id": each, "metadata": {"name": each}, "labels": {each: each}} for each in identifiers
    ]
    return cri_pb2.ListPodSandboxResponse(items=items).SerializeToString()


NONSENSE = st.binary(max_size=100)
EVENTS = st.builds(
    envelope,
    st.sampled_from([*TOPICS, "/tasks/exit", ""]),
    IDS,
    NONSENSE | IDS.map(lambda text: b"\n" + bytes([len(text.encode())]) + text.encode()),
    st.integers(-(2**63), 2**63 - 1),
)
ANSWERS = st.lists(NONSENSE | EVENTS | st.lists(IDS, max_size=5).map(sandboxes), max_size=5)


class Liar(grpc.GenericRpcHandler):
    """Return the same answers to whatever is asked."""

    answers: Sequence[bytes] = ()

    def service(self, call: Any) -> Any:
        if call.method.rpartition("/")[2] in STREAMS:
            return grpc.unary_stream_rpc_method_handler(lambda *_: iter(self.answers))
        return grpc.unary_unary_rpc_method_handler(lambda *_: (*self.answers, b"")[0])


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Liar, Path]]:
    handler, path = Liar(), tmp_path_factory.mktemp("liar") / "socket"
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    server.add_insecure_port(f"unix://{path}")
    server.start()
    yield handler, path
    server.stop(None)


@pytest.mark.parametrize("runtime", [Containerd, Cri])
@given(answers=ANSWERS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_answer_makes_a_runtime_fail_otherwise(
    liar: tuple[Liar, Path], runtime: Callable[[str], Runtime], answers: Sequence[bytes]
) -> None:
    handler, path = liar
    handler.answers = answers
    asked, told = runtime(str(path)), list[Change]()

    def enough() -> bool:
        return any(change.kind == "synced" for change in told)

    with suppress(RuntimeUnavailable):
        for change in islice(asked.watch(enough), 100):
            told.append(change)
    with suppress(RuntimeUnavailable):
        assert isinstance(asked.version(), str)
    assert {change.kind for change in told} <= KINDS
    for change in told:
        for text in (change.container.id, change.container.name, change.container.pod_name):
            text.encode()
        with suppress(RuntimeUnavailable):
            assert asked.details(change.container).id == change.container.id
