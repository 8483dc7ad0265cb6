"""Choosing containers by what the command line says."""

from __future__ import annotations

import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.container import HOST, UNKNOWN_RUNTIME, Container
from ig.containers.selection import Selection, select
from ig.errors import UsageError

ID = "a84e5b" + "0" * 58
WEB = Container(ID, "web-1", "docker", labels={"tier": "front", "app": "shop"})
POD = Container(
    "b" * 64,
    "server",
    "containerd",
    pod_name="api-0",
    pod_namespace="prod",
    pod_container="server",
)
UNKNOWN = Container(ID, ID[:12], UNKNOWN_RUNTIME)


def test_every_container_and_nothing_of_the_host_is_the_default() -> None:
    selection = Selection()
    assert selection.wants(WEB)
    assert selection.wants(UNKNOWN)
    assert not selection.wants(HOST)
    assert not selection.narrow


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["web-1"], True),
        (["/web-1"], True),
        (["web-*"], True),
        (["other,web-?"], True),
        (["other", "web-1"], True),
        (["a84e5b"], True),
        ([ID], True),
        (["a84"], False),
        (["a84f"], False),
        (["WEB-1"], False),
        (["web"], False),
        (["!web-1"], False),
        (["!other"], True),
        (["web-*,!web-1"], False),
        (["!a84e5b"], False),
        (["!/web-*"], False),
    ],
)
def test_names_choose(names: list[str], wanted: bool) -> None:
    assert select(names=names).wants(WEB) is wanted


def test_pods_container_is_found_by_either_name() -> None:
    dockershim = Container("c" * 64, "k8s_server_api-0", "docker", pod_container="server")
    assert select(names=["server"]).wants(dockershim)
    assert select(names=["k8s_*"]).wants(dockershim)


def test_unknown_container_is_found_by_its_id() -> None:
    assert select(names=["a84e5b"]).wants(UNKNOWN)
    assert not select(names=["web-1"]).wants(UNKNOWN)


def test_host_is_shown_only_when_asked() -> None:
    assert select(host=True).wants(HOST)
    assert select(host=True).wants(WEB)
    assert select(host_only=True).wants(HOST)
    assert not select(host_only=True).wants(WEB)
    assert not select(names=["web-1"]).wants(HOST)
    beside = select(names=["web-1"], host=True)
    assert beside.wants(HOST)
    assert beside.wants(WEB)
    assert not beside.wants(POD)


def test_pods_and_namespaces_choose() -> None:
    assert select(pods=["api-*"], namespaces=["prod"]).wants(POD)
    assert not select(pods=["api-*"], namespaces=["test"]).wants(POD)
    assert not select(namespaces=["*"]).wants(WEB)
    assert select(namespaces=["!kube-system"]).wants(WEB)


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("tier=front", True),
        ("tier==front", True),
        ("tier=front,app=shop", True),
        ("tier=front,app=blog", False),
        ("tier!=front", False),
        ("tier!=back", True),
        ("absent!=x", True),
        ("tier", True),
        ("absent", False),
        ("!absent", True),
        ("tier=", False),
        ("app=a=b", False),
    ],
)
def test_labels_choose(selector: str, wanted: bool) -> None:
    assert select(selectors=[selector]).wants(WEB) is wanted


def test_choice_of_runtimes_keeps_what_could_be_theirs() -> None:
    selection = select(runtimes=["docker"])
    assert selection.wants(WEB)
    assert selection.wants(UNKNOWN)
    assert not selection.wants(POD)


@pytest.mark.parametrize(
    "options",
    [
        {"names": [""]},
        {"names": ["a,,b"]},
        {"names": ["!"]},
        {"names": ["/"]},
        {"selectors": ["=x"]},
        {"selectors": ["!=x"]},
        {"names": ["web"], "host_only": True},
    ],
)
def test_what_makes_no_sense_is_a_usage_error(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        select(**options)  # type: ignore[arg-type]


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_pattern_and_no_name_break_it(pattern: str, name: str) -> None:
    try:
        selection = select(names=[pattern])
    except UsageError:
        return
    selection.wants(Container(ID, name, "docker"))


@pytest.mark.parametrize("pattern", ["name-{}", "name-{}-*", "{:08x}"])
def test_names_by_the_thousand_are_chosen_as_fast_as_a_few(pattern: str) -> None:
    few, many = (select([pattern.format(each) for each in range(n)]) for n in (20, 2_003))
    container = Container("b" * 64, "name-x", "docker")

    def seconds(selection: Selection) -> float:
        return min(timeit.repeat(lambda: selection.wants(container), number=100, repeat=5))

    assert not many.wants(container)
    assert many.wants(Container("000007d0" + "b" * 56, pattern.format(2_000), "docker"))
    assert seconds(many) < 20 * seconds(few)
