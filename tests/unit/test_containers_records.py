"""What an engine's records say, and that nothing an engine could say breaks the reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.container import Container
from ig.containers import untrusted
from ig.containers.holdings import Holdings
from ig.containers.index import Index
from ig.containers.runtimes.docker_api import Docker
from ig.containers.runtimes.docker_records import (
    condensed,
    parse_event,
    parse_inspect,
    parse_list_entry,
)
from ig.containers.store import Seen

ID = "a" * 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
LISTED = {
    "Id": ID,
    "Names": ["/other/alias", "/web"],
    "Image": "nginx:1.27",
    "State": "running",
    "Labels": {"com.docker.compose.service": "web"},
    "Ports": [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"PrivatePort": 443, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 53, "PublicPort": 53, "Type": "udp"},
    ],
    "NetworkSettings": {
        "Networks": {
            "bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": ""},
            "six": {"IPAddress": "", "GlobalIPv6Address": "fd00:0::2"},
        }
    },
}


def event(action: str, **attributes: str) -> dict[str, object]:
    return {
        "Type": "container",
        "Action": action,
        "Actor": {"ID": ID, "Attributes": attributes},
        "timeNano": 1_700_000_000_123_456_789,
    }


def test_listed_container_has_its_name_image_addresses_and_ports() -> None:
    container = parse_list_entry("docker", LISTED)
    assert container is not None
    assert (container.name, container.image, container.running) == ("web", "nginx:1.27", True)
    assert container.addresses == ("172.17.0.2", "fd00::2")
    assert container.ports == (("0.0.0.0", 8080, 80),)
    assert container.labels == {"com.docker.compose.service": "web"}


def test_stopped_container_has_no_addresses() -> None:
    container = parse_list_entry("docker", {**LISTED, "State": "exited"})
    assert container is not None
    assert not container.running
    assert not container.addresses
    assert not container.ports


def test_events_of_a_container_report_its_life() -> None:
    seen = Seen("docker")
    kinds = []
    for action, name in [
        ("create", "web"),
        ("start", "web"),
        ("rename", "shop"),
        ("die", "shop"),
        ("destroy", "shop"),
    ]:
        change = parse_event(event(action, name=name, image="nginx", tier="front"), seen)
        assert change is not None
        seen.note(change.container)
        kinds.append((change.kind, change.container.name, change.container.running))
        assert change.container.labels == {"tier": "front"}
    assert kinds == [
        ("created", "web", False),
        ("started", "web", True),
        ("renamed", "shop", True),
        ("exited", "shop", False),
        ("removed", "shop", False),
    ]


def test_start_reports_when() -> None:
    change = parse_event(event("start", name="web"), Seen("docker"))
    assert change is not None
    assert change.container.started == 1_700_000_000_123_456_789


def network_event(action: str, moment: int, podman: bool = False) -> dict[str, object]:
    actor = {"ID": ID, "Attributes": {}} if podman else {"ID": "n", "Attributes": {"container": ID}}
    return {"Type": "network", "Action": action, "Actor": actor, "timeNano": moment}


@pytest.mark.parametrize("podman", [False, True])
def test_networks_events_tell_that_a_containers_addresses_have_changed(podman: bool) -> None:
    seen = Seen("docker")
    assert parse_event(network_event("connect", 5, podman), seen) is None
    running = parse_list_entry("docker", LISTED)
    assert running is not None
    seen.note(running)
    for action in ("connect", "disconnect"):
        change = parse_event(network_event(action, 7, podman), seen)
        assert change is not None
        container = change.container
        assert (change.kind, container.moved, container.addressed) == ("updated", True, 7)
        assert not container.addresses
    assert parse_event(network_event("create", 7, podman), seen) is None


def test_start_has_the_time_at_which_its_addresses_came() -> None:
    seen = Seen("docker")

    def next_one(record: dict[str, object]) -> Container:
        change = parse_event(record, seen)
        assert change is not None
        return seen.note(change.container)

    def at(action: str, moment: int) -> dict[str, object]:
        return {**event(action, name="web"), "timeNano": moment}

    next_one(at("create", 1))
    next_one(network_event("connect", 2))
    assert next_one(at("start", 3)).addressed == 2
    assert next_one(at("die", 4)).addressed == 4
    assert parse_event(network_event("disconnect", 5), seen) is None
    assert next_one(at("start", 6)).addressed == 0
    assert next_one(at("die", 7)).addressed == 7
    next_one(network_event("connect", 8))
    started = next_one(at("start", 9))
    assert (started.addressed, started.started, started.moved) == (8, 9, False)


def test_inspected_container_has_its_networks_and_what_it_exposes() -> None:
    networks = {
        "one": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": "fd00::2", "NetworkID": "n1"},
        "two": {"IPAddress": "172.18.0.2"},
    }
    ports: dict[str, object] = {"80/tcp": {}, "53/udp": {}, "x/tcp": {}, "443/tcp": None}
    record = {
        "State": {"Running": True, "Pid": 0},
        "NetworkSettings": {"Networks": networks, "SandboxKey": "/proc/self/ns/net"},
        "Config": {"ExposedPorts": ports},
        "HostConfig": {"NetworkMode": f"container:{ID}"},
    }
    container = parse_inspect(Container(ID, "web", "docker", moved=True), record)
    assert container.networks == ("n1", "n1", "two")
    assert container.exposed == (80, 0, 443)
    assert (container.joined, container.moved) == (ID, False)
    assert container.netns == Path("/proc/self/ns/net").stat().st_ino
    wrong = {**record, "NetworkSettings": {"SandboxKey": "/etc/passwd"}}
    assert parse_inspect(Container(ID, "web", "docker"), wrong).netns == 0


def test_other_events_tell_nothing() -> None:
    assert parse_event(event("exec_create: sh"), Seen("docker")) is None
    assert parse_event({**event("create"), "Actor": {"ID": "system.slice"}}, Seen("docker")) is None


def test_inspected_container_has_its_pid_start_and_ports() -> None:
    ports = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "81/tcp": None}
    networks = {"bridge": {"IPAddress": "172.17.0.2"}}
    state = {"Running": True, "Pid": 4242, "StartedAt": "2026-11-20T20:33:04.123456789Z"}
    record = {"State": state, "NetworkSettings": {"Ports": ports, "Networks": networks}}
    container = parse_inspect(Container(ID, "web", "docker"), record)
    assert (container.pid, container.started) == (4242, 1_795_206_784_123_456_789)
    assert container.ports == (("127.0.0.1", 8080, 80),)
    assert container.addresses == ("172.17.0.2",)


POD = {
    "io.kubernetes.container.name": "api",
    "io.kubernetes.pod.name": "api-0",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.uid": "5a1f",
}
PAUSE = {**POD, "io.kubernetes.container.name": "POD"}


def test_docker_container_is_a_pods_only_where_its_name_says_so_too() -> None:
    record = {**LISTED, "Names": ["/k8s_api_api-0_shop_5a1f_3"], "Labels": POD}
    container = parse_list_entry("docker", record)
    assert container is not None
    assert (container.pod_namespace, container.pod_name) == ("shop", "api-0")
    assert (container.pod_container, container.pod_uid, container.sandbox) == ("api", "5a1f", False)
    pause = parse_list_entry(
        "docker", {**record, "Names": ["/k8s_POD_api-0_shop_5a1f_0"], "Labels": PAUSE}
    )
    assert pause is not None
    assert (pause.pod_name, pause.pod_container, pause.sandbox) == ("api-0", "", True)


def test_images_labels_make_no_pod_of_a_docker_container() -> None:
    marks = {"io.kubernetes.docker.type": "podsandbox", "io.cri-containerd.kind": "sandbox"}
    others = ("k8s_web_web-0_shop_5a1f_0", "k8s_POD_api-0_shop_other_0", "k8s_api", "k8s_")
    for name in ("web", *others):
        for labels in ({**POD, **marks}, {**PAUSE, **marks}):
            container = parse_list_entry("docker", {**LISTED, "Names": [name], "Labels": labels})
            assert container is not None
            assert (container.pod_name, container.sandbox) == ("", False)


def test_renamed_docker_container_is_a_pods_no_more() -> None:
    seen = Seen("docker")
    made = parse_event(event("create", name="k8s_api_api-0_shop_5a1f_0", **POD), seen)
    assert made is not None
    assert made.container.pod_name == "api-0"
    seen.note(made.container)
    renamed = parse_event(event("rename", name="mine", **POD), seen)
    assert renamed is not None
    assert (renamed.container.name, renamed.container.pod_name) == ("mine", "")


def test_times_that_go_prints_are_read_to_the_nanosecond() -> None:
    assert untrusted.timestamp("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert untrusted.timestamp("1970-01-01T01:00:00.000000001+01:00") == 1
    assert untrusted.timestamp("0001-01-01T00:00:00Z") == 0
    assert untrusted.timestamp("yesterday") == 0


def test_names_are_short_and_can_be_printed() -> None:
    assert untrusted.text("x" * 1000) == "x" * 256
    assert untrusted.text("\ud800").encode() == b"?"


@given(JSON, JSON)
def test_no_record_of_an_engine_breaks_the_reader(record: object, inner: object) -> None:
    seen = Seen("docker")
    wrong = dict.fromkeys(LISTED, inner)
    for each in (record, wrong, {**LISTED, "Ports": [inner], "Labels": inner, "Names": [inner]}):
        parse_list_entry("docker", each)
        parse_inspect(Container(ID, "web", "docker"), each)
    actor = {"ID": ID, "Attributes": inner}
    for action in ("create", "start", "destroy", inner):
        parse_event({"Action": action, "Actor": actor, "timeNano": record}, seen)
    networks = {"Networks": {"a": inner, "b": {"IPAddress": inner}}, "Ports": {"80/tcp": [inner]}}
    parse_inspect(
        Container(ID, "web", "docker"),
        {"State": {"Running": True, "Pid": inner, "StartedAt": inner}, "NetworkSettings": networks},
    )


LATER = 1_700_000_001_000_000_000
STEPS = ("create", "connect", "start", "rename", "die", "disconnect", "destroy")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from("ab")), max_size=14))
def test_condensed_events_leave_the_same_containers(steps: list[tuple[str, str]]) -> None:
    records: list[object] = []
    for place, (action, digit) in enumerate(steps):
        if action == "create" and digit in {each for _, each in steps[:place]}:
            continue  # an id is given once
        if ("destroy", digit) in steps[:place]:
            continue
        identifier = digit * 64
        renames = [
            place for place, step in enumerate(steps[: place + 1]) if step == ("rename", digit)
        ]
        attributes = {"name": f"{digit}-{renames[-1:]}"}
        actor = {"ID": identifier, "Attributes": attributes}
        if action.endswith("connect"):
            actor = {"ID": "network", "Attributes": {"container": identifier}}
        kind = "network" if action.endswith("connect") else "container"
        time = 1_700_000_000_000_000_000 + place
        records.append({"Type": kind, "Action": action, "Actor": actor, "timeNano": time})
    assert _after(condensed(records, Seen("docker"))) == _after(records)


def _after(records: Sequence[object]) -> tuple[object, ...]:
    """Return what is known of the containers after some events, and since when they have ended."""
    index, seen, holdings = (
        Index([Docker("/nonexistent")], lambda _: None),
        Seen("docker"),
        Holdings(1, lambda: LATER),
    )
    index.subscribe(holdings.on_change)
    for record in records:
        change = parse_event(record, seen)
        for each in seen.noted(change) if change else ():
            index.apply("docker", each)
    paths = [("docker", digit * 64) for digit in "ab"]
    owners = [index.find(path)[0] for path in paths]
    held = {key: (each.began, each.ended) for key, each in holdings.held.items()}
    names = [(owner.name, owner.running) for owner in owners]
    return {each.id: each for each in index.containers(stopped=True)}, names, held


def test_condensed_events_are_one_for_a_creation_and_its_start_and_for_an_end() -> None:
    records = [event(action, name="web") for action in ("create", "start", "die", "destroy")]
    records[2]["timeNano"] = 5
    kept = condensed(records, Seen("docker"))
    assert kept == [event("start", name="web"), {**event("destroy", name="web"), "timeNano": 5}]
