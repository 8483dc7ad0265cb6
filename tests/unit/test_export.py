"""Metrics: their series are bounded and expire, and their text is Prometheus' whatever is in it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig import buckets
from ig.attempts import OUTCOMES, TYPES
from ig.container import HOST, UNKNOWN_RUNTIME, Container
from ig.errors import UsageError
from ig.export.destinations import Destinations, parse_networks, port_name
from ig.export.metrics import BOUNDS, EXPIRY, Metrics
from ig.export.otlp import attributes
from ig.export.prometheus import exposition
from ig.export.series import OFFSET, SCALE, Metric
from ig.export.server import parse_address
from ig.gadget import Batch
from ig.summary import KINDS

WEB, DB = (Container(id=name * 16, name=name, runtime="docker") for name in ("web1", "db01"))
POD = Container(
    id="f" * 64,
    name="k8s_app",
    runtime="containerd",
    pod_name="shop-0",
    pod_namespace="prod",
    pod_container="app",
)
LAB = "198.51.100.7"
CONNECTS = "ig_tcp_connects_total"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def counted(owner: Container = HOST, peer: Container = HOST, **changes: Any) -> Batch:
    """Return one row as the kernel counts it: established attempts, unless changed."""
    address = bytes(map(int, changes.pop("address", LAB).split("."))).ljust(16, b"\0")
    row: dict[str, Any] = {
        "version": 4,
        "daddr": address,
        "dport": 443,
        "type": TYPES.index("connect"),
        "outcome": OUTCOMES.index("established"),
        "count": 1,
        "retransmits": 0,
        "sent": 0,
        "received": 0,
        "bucket": 0,
        "max_latency": 0,
        "total_latency": 0,
        "other": 0,
        "peer": peer,
    }
    fields = {name: [value] for name, value in {**row, **changes}.items()}
    return Batch(fields, [owner])


def metrics(
    running: list[Container] | None = None, most: int = 100, networks: tuple[str, ...] = ()
) -> tuple[Metrics, Clock]:
    clock = Clock()
    found = Destinations(parse_networks(networks))
    made = Metrics(1.0, most, found, lambda: running or [], runtimes=("docker",), clock=clock)
    made.open()
    return made, clock


def samples(made: Metrics, name: str) -> dict[str, float]:
    """Return the series of a metric by their labels, as text."""
    lines = made.exposition().decode().splitlines()
    found = [re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line) for line in lines]
    return {match[1]: float(match[2]) for match in found if match}


def ends(container: str, destination: str, port: object, **more: str) -> str:
    named = {"container": container, "pod": "", "namespace": "", "runtime": "docker"}
    if not container:
        named["runtime"] = ""
    labels = {**named, "destination": destination, "port": str(port), **more}
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def test_attempts_are_counted_by_owner_destination_port_and_outcome() -> None:
    made, _ = metrics(networks=("lab=198.51.100.0/24", "all=0.0.0.0/0", "nine=9.9.9.9/32"))
    made.write(counted(WEB, DB, count=3, dport=5432, outcome=OUTCOMES.index("refused")))
    made.write(counted(WEB, count=5))
    made.write(counted(WEB, count=7, dport=32768, address="9.9.9.9"))
    made.write(counted(WEB, count=11, dport=60999, address="9.9.9.9"))
    made.write(counted(HOST, count=13, dport=32767, address="9.9.9.8"))
    made.write(counted(WEB, count=2))
    made.write(counted(WEB, count=1, type=TYPES.index("accept")))
    assert samples(made, CONNECTS) == {
        ends("web1", "c/db01", 5432, outcome="refused"): 3,
        ends("web1", "lab", 443, outcome="established"): 7,
        ends("web1", "nine", "ephemeral", outcome="established"): 18,
        ends("", "all", 32767, outcome="established"): 13,
    }


def test_bytes_are_counted_at_closes_by_owner_destination_and_direction() -> None:
    made, _ = metrics()
    for kind in map(TYPES.index, ("close", "unknown")):
        made.write(counted(WEB, DB, type=kind, count=3, dport=0, sent=100, received=7))
    made.write(counted(WEB, type=TYPES.index("close"), sent=11))
    labels = 'container="web1",pod="",namespace="",runtime="docker",destination="{}",direction="{}"'
    assert samples(made, "ig_tcp_bytes_total") == {
        labels.format("c/db01", "transmit"): 200,
        labels.format("c/db01", "receive"): 14,
        labels.format("external", "transmit"): 11,
    }
    assert samples(made, CONNECTS) == {}


def test_labels_of_pods_are_those_of_kubernetes_and_unknown_owners_are_one_series() -> None:
    made, _ = metrics()
    made.write(counted(POD, POD))
    for number in (1, 2):
        name = f"cgroup:{number}"
        made.write(counted(Container(id=name, name=name, runtime=UNKNOWN_RUNTIME)))
    unknown = ends("unknown", "external", 443, outcome="established")
    assert samples(made, CONNECTS) == {
        ends("app", "p/prod/shop-0", 443, outcome="established")
        .replace('pod=""', 'pod="shop-0"')
        .replace('namespace=""', 'namespace="prod"')
        .replace('"docker"', '"containerd"'): 1,
        unknown.replace('=""', '="unknown"').replace('"docker"', '"unknown"'): 2,
    }


def test_segments_sent_again_have_their_kind_and_the_port_that_was_connected_to() -> None:
    made, _ = metrics()
    made.write(counted(WEB, DB, count=2, retransmits=5, kind=0, dport=5432, sport=40000))
    made.write(counted(DB, WEB, count=3, kind=KINDS.index("data"), type=0, dport=0, sport=5432))
    made.write(counted(WEB, DB, count=7, kind=KINDS.index("data"), type=0, dport=5432, sport=0))
    made.write(
        counted(DB, WEB, count=11, kind=KINDS.index("syn-ack"), type=0, dport=0, sport=33000)
    )
    made.write(counted(WEB, count=13, kind=KINDS.index("data"), type=0, dport=0, sport=0, other=1))
    made.tick(0)
    assert samples(made, "ig_tcp_retransmits_total") == {
        ends("web1", "c/db01", 5432, kind="syn"): 5,
        ends("db01", "c/web1", 5432, kind="data"): 3,
        ends("web1", "c/db01", 5432, kind="data"): 7,
        ends("db01", "c/web1", "ephemeral", kind="syn-ack"): 11,
        ends("web1", "other", "other", kind="data"): 13,
    }
    assert samples(made, CONNECTS) == {ends("web1", "c/db01", 5432, outcome="established"): 2}
    overflow = samples(made, "ig_series_overflow_total")
    assert overflow['metric="ig_tcp_retransmits_total"'] == 13


def test_loopback_is_not_external() -> None:
    made, _ = metrics()
    made.write(counted(address="127.0.0.53"))
    assert list(samples(made, CONNECTS)) == [ends("", "loopback", 443, outcome="established")]


def test_series_beyond_the_most_are_counted_as_other_by_outcome() -> None:
    made, _ = metrics(most=2)
    refused = OUTCOMES.index("refused")
    for port in range(1, 8):
        made.write(counted(WEB, dport=port, count=port))
        made.write(counted(WEB, dport=port, count=10 * port, outcome=refused))
    made.write(counted(WEB, dport=1, count=100))
    made.tick(0)
    other = dict.fromkeys(("pod", "namespace", "runtime"), "other")
    assert samples(made, CONNECTS) == {
        ends("web1", "external", 1, outcome="established"): 101,
        ends("web1", "external", 1, outcome="refused"): 10,
        ends("other", "other", "other", **other, outcome="established"): 27,
        ends("other", "other", "other", **other, outcome="refused"): 270,
    }
    assert samples(made, "ig_series")[f'metric="{CONNECTS}"'] == 2
    assert samples(made, "ig_series_overflow_total")[f'metric="{CONNECTS}"'] == 297


def test_counts_without_room_in_the_kernel_have_their_owner_alone() -> None:
    made, _ = metrics()
    made.write(counted(WEB, count=5, dport=0, address="0.0.0.0", other=1))
    made.tick(0)
    assert samples(made, CONNECTS) == {ends("web1", "other", "other", outcome="established"): 5}
    assert samples(made, "ig_series_overflow_total")[f'metric="{CONNECTS}"'] == 5


def test_overflow_counts_events_in_each_metric_not_bytes_or_segments() -> None:
    made, _ = metrics(most=1)
    close = TYPES.index("close")
    for peer in (DB, HOST):
        made.write(counted(WEB, peer, count=3, retransmits=11, bucket=300, total_latency=1))
        made.write(counted(WEB, peer, type=close, count=2, sent=1000, received=500))
    made.tick(0)
    assert samples(made, "ig_series_overflow_total") == {
        f'metric="{CONNECTS}"': 3,
        'metric="ig_tcp_connect_duration_seconds"': 3,
        'metric="ig_tcp_retransmits_total"': 3,
        'metric="ig_tcp_bytes_total"': 4,  # of the first two, those that were received
        'metric="ig_tcp_connect_failures_total"': 0,
    }


def test_full_metric_removes_series_that_do_not_grow_and_lets_them_begin_again() -> None:
    running = [WEB]
    made, clock = metrics(running, most=2)
    for port in (1, 2):
        made.write(counted(WEB, dport=port, count=5))
    clock.now += EXPIRY + 1
    made.write(counted(WEB, dport=2, count=5))
    made.tick(0)
    assert len(samples(made, CONNECTS)) == 2  # there was room so far
    made.write(counted(WEB, dport=3))
    made.tick(0)
    made.write(counted(WEB, dport=3, count=7))
    other = ends(*["other"] * 3, outcome="established").replace('""', '"other"')
    lasting = {
        ends("web1", "external", 2, outcome="established"): 10.0,
        ends("web1", "external", 3, outcome="established"): 7.0,
        other.replace("docker", "other"): 1.0,
    }
    assert samples(made, CONNECTS) == lasting
    made.write(counted(WEB, dport=1))
    clock.now += EXPIRY + 1
    made.tick(0)
    made.write(counted(WEB, dport=1, count=3))
    assert samples(made, CONNECTS)[ends("web1", "external", 1, outcome="established")] == 3


def test_containers_of_the_same_name_of_different_engines_are_apart() -> None:
    made, _ = metrics()
    of_user = "podman /run/user/1000/podman/podman.sock"
    for each in (
        WEB,
        replace(WEB, id="c" * 64, runtime="podman"),
        replace(WEB, id="d" * 64, runtime="podman", source=of_user),
    ):
        made.write(counted(each))
    found = samples(made, CONNECTS)
    assert [re.findall('runtime="([^"]*)"', labels)[0] for labels in found] == [
        *("docker", "podman", of_user),
    ]


def test_containers_are_counted_by_engine_from_none_on() -> None:
    running: list[Container] = []
    made, _ = metrics(running)
    assert samples(made, "ig_containers") == {'runtime="docker"': 0}
    running += [WEB, DB, POD]
    made.tick(0)
    assert samples(made, "ig_containers") == {'runtime="docker"': 2, 'runtime="containerd"': 1}


def test_series_of_containers_go_ten_minutes_after_them() -> None:
    running = [WEB, DB]
    made, clock = metrics(running)
    for row in (counted(WEB), counted(HOST), counted(DB), counted(HOST, DB), counted(WEB, DB)):
        made.write(row)
    lasting = {
        ends("web1", "external", 443, outcome="established"): 1.0,
        ends("", "external", 443, outcome="established"): 1.0,
    }
    clock.now += 10 * EXPIRY
    made.tick(0)
    assert len(samples(made, CONNECTS)) == 5
    running.remove(DB)
    clock.now += EXPIRY
    made.tick(0)
    assert len(samples(made, CONNECTS)) == 5
    clock.now += 1
    made.tick(0)
    assert samples(made, CONNECTS) == lasting
    made.write(counted(DB))  # one with the same name
    assert samples(made, CONNECTS)[ends("db01", "external", 443, outcome="established")] == 1


def test_series_of_containers_that_no_runtime_lists_stay_while_they_connect() -> None:
    made, clock = metrics()
    for _ in range(5):
        clock.now += EXPIRY - 1
        made.write(counted(WEB))
        made.tick(0)
    assert list(samples(made, CONNECTS).values()) == [5]


@pytest.mark.parametrize("latency", [1, 65_535, 65_536, 1_000_000, 2**36 - 1, 2**36, 2**40])
def test_histogram_counts_each_latency_in_the_bucket_that_it_belongs_to(latency: int) -> None:
    made, _ = metrics()
    made.write(counted(bucket=buckets.index(latency), count=3, total_latency=3 * latency))
    name = "ig_tcp_connect_duration_seconds"
    found = {
        float(labels.rpartition('le="')[2].rstrip('"')): count
        for labels, count in samples(made, f"{name}_bucket").items()
    }
    limits = [*(bound / 1e9 for bound in BOUNDS), float("inf")]
    assert found == {limit: 3 * (latency / 1e9 <= limit) for limit in limits}
    assert list(samples(made, f"{name}_count").values()) == [3]
    assert list(samples(made, f"{name}_sum").values()) == [pytest.approx(3 * latency / 1e9)]


def test_histogram_has_only_what_was_established() -> None:
    made, _ = metrics()
    made.write(counted(bucket=300, total_latency=1, outcome=OUTCOMES.index("refused")))
    assert samples(made, "ig_tcp_connect_duration_seconds_count") == {}


def test_bounds_of_the_histogram_are_bounds_of_the_buckets() -> None:
    for bound in BOUNDS:
        assert buckets.bounds(buckets.index(bound))[1] == bound + 1


def test_losses_never_become_fewer() -> None:
    made, _ = metrics()
    made.lost({"ring": 0, "late": 0})
    made.lost({"ring": 5, "slow": 1})
    made.lost({"ring": 3})
    assert samples(made, "ig_events_lost_total") == {
        'cause="ring"': 5,
        'cause="late"': 0,
        'cause="slow"': 1,
    }


@given(st.lists(st.text(), max_size=3))
def test_exposition_has_a_line_per_series_whatever_is_in_labels(values: list[str]) -> None:
    metric = Metric("m_total", "counter", "Help\nwith \\ lines.", ("a",))
    for value in values:
        metric.add((value,), 1, 100)
    first, second, *lines = exposition([metric]).decode().splitlines()
    assert [first, second] == ["# HELP m_total Help\\nwith \\\\ lines.", "# TYPE m_total counter"]
    assert len(lines) == len(set(values))
    for line in lines:
        assert re.fullmatch(r'm_total\{a="(?:[^"\\\n]|\\\\|\\"|\\n)*"\} \d+', line)
        assert line.isprintable()


@pytest.mark.parametrize("text", ["127.0.0.1:9435", "[::1]:9435", "0.0.0.0:0", "10.1.2.3:65535"])
def test_addresses_to_listen_on_are_taken_as_they_are_written(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(":9435", "9435", "localhost:9435", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536"),
        *("::1:9435", "[127.0.0.1]:x", "[::1%lo]:9435", "1.2.3:80", "127.0.0.1:9435 x", "[]:1"),
    ],
)
def test_addresses_to_listen_on_that_do_not_say_where_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_address(text)
    assert "127.0.0.1:9435" in refused.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        *("10.0.0.0/8", "a=10.0.0.1/8", "a=", "=10.0.0.0/8", "a=b", "external=10.0.0.0/8"),
        *("other=::/0", "c/x=10.0.0.0/8", 'a"=10.0.0.0/8', "a\n=10.0.0.0/8", "x" * 64 + "=::/0"),
    ],
)
def test_networks_that_are_none_or_have_no_name_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_networks([text])


def test_network_without_a_name_is_quoted_in_the_message() -> None:
    with pytest.raises(UsageError, match=r"(?s)'10.0.0.0/8'.*no name.*office="):
        parse_networks(["10.0.0.0/8"])


def test_networks_are_found_by_their_longest_prefix_in_both_families() -> None:
    names = ("wide=10.0.0.0/8", "narrow=10.1.0.0/16", "six=2001:db8::/32", "again=10.9.0.0/16")
    found = Destinations(parse_networks(names))
    asked = (
        "10.0.0.1",
        "10.1.0.1",
        "10.9.0.1",
        "2001:db8::1",
        "2001:db9::1",
        "::1",
        "::ffff:10.1.0.1",
    )
    assert [found.name(HOST, each) for each in asked] == [
        *("wide", "narrow", "again", "six", "external", "loopback", "narrow"),
    ]
    assert found.name(WEB, "10.0.0.1") == "c/web1"


def test_ports_that_kernels_choose_are_one() -> None:
    assert [port_name(port) for port in (0, 1, 32767, 32768, 65535)] == [
        *("0", "1", "32767", "ephemeral", "ephemeral"),
    ]


@given(st.integers(1 << 10, 1 << 37))
def test_exponential_buckets_are_those_of_opentelemetry(nanoseconds: int) -> None:
    metric = Metric("m", "histogram", "", exponential=True)
    metric.observe((), nanoseconds, (3, 0), 1)
    (sample,) = metric.samples()
    number = OFFSET + sample.values.index(3)
    growth = 2 ** (1 / (1 << SCALE))
    seconds = nanoseconds / 10**9
    assert growth**number * 0.9999 <= seconds <= growth ** (number + 1) * 1.0001


def test_exponential_histogram_is_not_in_the_text_and_has_the_same_numbers() -> None:
    destinations = Destinations()
    made = Metrics(1.0, 100, destinations, list, exponential=True)
    made.write(counted(count=7, bucket=buckets.index(90_000), total_latency=630_000))
    with made.reading() as read:
        both = [each for each in read if each.name == "ig_tcp_connect_duration_seconds"]
        sums = [[sum(each.values[:-1]), each.values[-1]] for it in both for each in it.samples()]
    assert sums == [[7, 630_000]] * 2
    assert made.exposition().count(b"# TYPE ig_tcp_connect_duration_seconds ") == 1


def test_failures_are_counted_by_cause_where_causes_are_looked_for() -> None:
    made, _ = metrics()
    refused = OUTCOMES.index("refused")
    made.write(counted(outcome=refused))
    assert samples(made, "ig_tcp_connect_failures_total") == {}
    made.write(counted(outcome=refused, count=5, cause_kind="no-listener"))
    made.write(counted(outcome=refused, count=3, cause_kind=""))
    made.write(counted(cause_kind="syn-lost-repeated"))
    assert samples(made, "ig_tcp_connect_failures_total") == {
        ends("", "external", 443, cause="no-listener"): 5,
        ends("", "external", 443, cause="unknown"): 3,
    }


def test_attributes_are_those_of_the_conventions() -> None:
    labels = ("container", "pod", "namespace", "destination", "port", "outcome")
    metric = Metric("m", "counter", "", labels)
    for values in (
        ("app", "shop-0", "prod", "external", "443", "timed-out"),
        ("", "", "", "loopback", "ephemeral", "failed"),
        ("web\x1b", "", "", "c/db", "1", "established"),
    ):
        metric.add(values, 1, 100)
    assert [attributes(metric, sample) for sample in metric.samples()] == [
        {
            "k8s.container.name": "app",
            "k8s.pod.name": "shop-0",
            "k8s.namespace.name": "prod",
            "ig.destination": "external",
            "server.port": 443,
            "ig.outcome": "timed-out",
            "error.type": "timed_out",
        },
        {
            "ig.destination": "loopback",
            "ig.port": "ephemeral",
            "ig.outcome": "failed",
            "error.type": "_OTHER",
        },
        {
            "container.name": "web\\x1b",
            "ig.destination": "c/db",
            "server.port": 1,
            "ig.outcome": "established",
        },
    ]
