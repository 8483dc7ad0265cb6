"""`ig explain`: one attempt, its way, and the cause that this host shows for its failure."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.host.namespace import Namespace
from tests.host.tracer import IG, in_own_mounts, ordinary_user
from tests.host.waiting import PATIENCE, until

NETWORK = {"4": "192.0.2.", "6": "2001:db8:2::"}
REFUSED = {"4": "203.0.113.", "6": "2001:db8:3::"}
LOOPBACK = {"4": "127.0.0.1", "6": "::1"}
TABLES = {"4": "iptables", "6": "ip6tables"}
ROUTES = {
    "unreachable": "EHOSTUNREACH",
    "prohibit": "EACCES",
    "blackhole": "EINVAL",
}
PREFIX = {"4": "/30", "6": "/126"}


class Explaining:
    """A running `ig explain`."""

    def __init__(self, near: Namespace, target: str, *arguments: object) -> None:
        command = near.command(IG, "explain", target, "-o", "json", *arguments)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finished(self) -> dict[str, Any]:
        """Return the object that it printed, with its exit status as `status`."""
        out, err = self._process.communicate(timeout=PATIENCE)
        assert out, err.decode()
        return {**json.loads(out), "status": self._process.returncode}


def end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def linked(new_namespace: Callable[[], Namespace]) -> tuple[Namespace, Namespace]:
    """Return two namespaces that reach each other on 192.0.2.0/24 and 2001:db8:2::/64."""
    here, there = new_namespace(), new_namespace()
    here.link(there)
    for namespace, last in ((here, 1), (there, 2)):
        links = json.loads(namespace.ip("-j", "link", "show", "type", "veth"))
        device = links[0]["ifname"]
        namespace.ip("addr", "add", f"{NETWORK['6']}{last}/64", "dev", device, "nodad")
    return here, there


def nft(namespace: Namespace, commands: str) -> None:
    """Run commands of `nft` in a namespace."""
    command = namespace.command("nft", "-f", "-")
    subprocess.run(command, input=commands.encode(), check=True, timeout=PATIENCE)


def causes(
    near: Namespace, targets: Mapping[str, str], *arguments: object
) -> dict[str, tuple[str, str, str]]:
    """Return the outcome, the cause's kind and its confidence for each target, by its key."""
    running = {key: Explaining(near, target, *arguments) for key, target in targets.items()}
    found = {}
    for key, each in running.items():
        told = each.finished()
        cause = told["cause"] or {"kind": "", "confidence": ""}
        found[key] = told["outcome"], cause["kind"], cause["confidence"]
        assert told["status"] == (0 if told["outcome"] == "established" else 1)
        assert bool(told["advice"]) == bool(told["cause"])
    return found


@pytest.mark.parametrize("version", ["4", "6"])
def test_far_end_on_this_host_is_looked_at(
    new_namespace: Callable[[], Namespace], version: str
) -> None:
    here, there = linked(new_namespace)
    far = f"{NETWORK[version]}2"
    good = there.serve(far)
    inside = there.serve(LOOPBACK[version])
    full = there.serve(far, 0, "--deaf", "--backlog", 0)
    here.connect(far, full, "--kind", version)
    for port, *target in (
        (81, "DROP"),
        (82, "REJECT"),
        (83, "REJECT", "--reject-with", "tcp-reset"),
    ):
        rule = ("-p", "tcp", "--dport", port, "-j", *target)
        there.run(TABLES[version], "-A", "INPUT", *rule)
        here.run(TABLES[version], "-A", "OUTPUT", "-p", "tcp", "--dport", port + 10, "-j", *target)
    targets = {"good": good, "inside": inside, "full": full, "wrong port": 9}
    targets |= {"drop in": 81, "reject": 82, "reset": 83}
    targets |= {"drop out": 91, "own reject": 92, "own reset": 93}
    found = causes(here, {key: end(far, port) for key, port in targets.items()})
    assert found == {
        "good": ("established", "", ""),
        "inside": ("refused", "listens-elsewhere", "likely"),
        "full": ("timed-out", "accept-queue-full", "likely"),
        "wrong port": ("refused", "no-listener", "likely"),
        "drop in": ("timed-out", "firewall-drop-in", "seen"),
        "reject": ("refused", "firewall-reject", "seen"),
        "reset": ("refused", "firewall-reject", "seen"),
        "drop out": ("timed-out", "firewall-drop-out", "seen"),
        "own reject": ("refused", "firewall-reject", "seen"),
        "own reset": ("refused", "firewall-reject", "seen"),
    }


@pytest.mark.parametrize("version", ["4", "6"])
def test_routes_and_unanswering_neighbours_are_distinguished(
    new_namespace: Callable[[], Namespace], version: str
) -> None:
    here, _ = linked(new_namespace)
    targets = {"silent": end(f"{NETWORK[version]}9", 80)}
    expected = {"silent": ("timed-out", "neighbour", "likely")}
    for place, kind in enumerate(ROUTES):
        base = f"{REFUSED[version]}{4 * place:x}"
        here.ip(f"-{version}", "route", "add", kind, f"{base}{PREFIX[version]}")
        targets[kind] = end(f"{REFUSED[version]}{4 * place + 1:x}", 80)
        expected[kind] = "failed", "route", "seen"
    targets["none"] = end(f"{REFUSED[version]}99", 80)
    expected["none"] = "failed", "route", "seen"
    found = causes(here, targets)
    # The kernel may give up on the neighbour just before or just after it does on the SYN.
    assert found.pop("silent")[1] == expected.pop("silent")[1]
    assert found == expected
    told = Explaining(here, targets["prohibit"]).finished()
    assert told["error"] == ROUTES["prohibit"]
    assert told["cause"]["where"].startswith(f"network namespace {here.inode}")
    assert f"{REFUSED[version]}4{PREFIX[version]} is prohibit" in told["cause"]["detail"]
    assert [step["result"] for step in told["steps"] if step["step"] == "route"] == ["failed"]


def test_peers_elsewhere_are_distinguished_from_this_host(namespace: Namespace) -> None:
    namespace.peer("--answer", "reset")
    found = causes(namespace, {"reset": "198.51.100.77:80", "six": "[2001:db8:51::77]:80"})
    assert found == dict.fromkeys(found, ("refused", "peer-refused", "likely"))


def test_end_on_this_host_behind_proxy_arp_is_not_called_elsewhere(
    new_namespace: Callable[[], Namespace],
) -> None:
    here, there = linked(new_namespace)
    near, far = (
        json.loads(each.ip("-j", "link", "show", "type", "veth"))[0]["ifname"]
        for each in (here, there)
    )
    other = new_namespace()
    there.link(other, "198.18.0")
    there.run("sysctl", "-qw", f"net.ipv4.conf.{far}.proxy_arp=1", "net.ipv4.ip_forward=1")
    there.ip("route", "add", "default", "via", "198.18.0.2")
    other.ip("route", "add", "default", "via", "198.18.0.1")
    here.ip("route", "add", "169.254.1.1", "dev", near, "scope", "link")
    here.ip("route", "add", "default", "via", "169.254.1.1")
    reset = ("-j", "REJECT", "--reject-with", "tcp-reset")
    other.run("iptables", "-A", "FORWARD", "-p", "tcp", *reset)
    other.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for target in ("198.18.0.2:9", "203.0.113.9:80"):
        told = Explaining(here, target).finished()
        assert (told["outcome"], told["cause"]) == ("refused", None)
        assert any("where 169.254.1.1 on" in line for line in told["unread"])


def test_silence_elsewhere_is_no_more_than_that(namespace: Namespace) -> None:
    namespace.peer("--answer", "nothing")
    early = Explaining(namespace, "198.51.100.77:80", "--timeout", "300ms")
    told = Explaining(namespace, "198.51.100.77:80", "--timeout", "1200ms").finished()
    assert (told["outcome"], told["cause"]["kind"]) == ("unanswered", "no-answer")
    assert told["cause"]["confidence"] == "likely"
    assert told["latency_raw"] >= 1_200_000_000
    before_second_syn = early.finished()
    assert (before_second_syn["outcome"], before_second_syn["cause"]) == ("unanswered", None)


def test_namespaces_that_look_alike_are_not_distinguished_by_guessing(
    new_namespace: Callable[[], Namespace],
) -> None:
    here, there = linked(new_namespace)
    (link,) = json.loads(there.ip("-j", "link", "show", "type", "veth"))
    twin = new_namespace()
    twin.ip("link", "add", "same", "address", link["address"], "type", "veth")
    twin.ip("addr", "add", "192.0.2.2/24", "dev", "same")
    twin.ip("link", "set", "same", "up")
    told = Explaining(here, "192.0.2.2:9").finished()
    assert (told["outcome"], told["cause"]) == ("refused", None)
    assert any(line.startswith("which of 2 network namespaces") for line in told["unread"])


def syn_sent(namespace: Namespace) -> bool:
    return bool(namespace.run("ss", "-Htn", "state", "syn-sent").strip())


@pytest.mark.anywhere
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_attempt_is_not_called_established(
    namespace: Namespace, number: signal.Signals
) -> None:
    namespace.peer("--answer", "nothing")
    command = namespace.command(IG, "explain", "198.51.100.7:80", "--timeout", "60s")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        until(lambda: syn_sent(namespace), "the SYN")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 1


@pytest.mark.anywhere
def test_reader_that_is_gone_does_not_change_the_exit_status(namespace: Namespace) -> None:
    port = namespace.serve("127.0.0.1")
    for target, status in ((f"127.0.0.1:{port}", 0), ("127.0.0.1:9", 1)):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as pipe:
            command = namespace.command(IG, "explain", target)
            done = subprocess.run(command, stdout=pipe, timeout=PATIENCE, check=False)
        assert done.returncode == status


@pytest.mark.anywhere
def test_names_that_nobody_resolves_are_given_up(namespace: Namespace, tmp_path: Path) -> None:
    namespace.peer("--answer", "nothing")
    (tmp_path / "resolv.conf").write_text("nameserver 198.51.100.53\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: dns\n")
    script = "".join(
        f"mount --bind {path} /etc/{path.name} && " for path in sorted(tmp_path.iterdir())
    )
    inside = shlex.join(namespace.command(IG, "explain", "host.example:80", "-t", "300ms"))
    done = in_own_mounts(f"{script} exec {inside}")
    assert done.returncode == 1
    assert "It was not resolved within 0.3 s" in done.stderr


def test_rules_that_allow_are_not_blamed(new_namespace: Callable[[], Namespace]) -> None:
    here, there = linked(new_namespace)
    for rule in (
        ("-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"),
        ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"),
        ("-p", "tcp", "--dport", 9, "-s", "192.0.2.0/25", "-j", "ACCEPT"),
        ("-p", "udp", "-j", "DROP"),
        ("-i", "lo", "-j", "DROP"),
        ("-s", "192.0.2.128/25", "-j", "DROP"),
    ):
        there.run("iptables", "-A", "INPUT", *rule)
    there.run("iptables", "-N", "mine")
    there.run("iptables", "-A", "INPUT", "-p", "tcp", "-j", "mine")
    there.run("iptables", "-A", "mine", "-p", "tcp", "--dport", 10, "-j", "DROP")
    there.run("iptables", "-P", "INPUT", "DROP")
    allowed = Explaining(here, "192.0.2.2:9")
    by_rule, by_policy = Explaining(here, "192.0.2.2:10"), Explaining(here, "192.0.2.2:11")
    assert allowed.finished()["cause"]["kind"] == "no-listener"
    detail = by_rule.finished()["cause"]["detail"]
    assert "table ip filter, chain mine, rule 1" in detail
    told = by_policy.finished()["cause"]
    assert told["kind"] == "firewall-drop-in"
    assert "chain INPUT, policy drop" in told["detail"]


def test_rules_that_are_not_read_are_named(new_namespace: Callable[[], Namespace]) -> None:
    here, there = linked(new_namespace)
    command = there.command("iptables-legacy", "-A", "INPUT", "-p", "tcp", "-j", "DROP")
    if not shutil.which(command[3]) or subprocess.run(command, check=False).returncode:
        pytest.skip("needs iptables-legacy, and a kernel that has it")
    told = Explaining(here, "192.0.2.2:9", "--timeout", "300ms").finished()
    assert (told["outcome"], told["cause"]) == ("unanswered", None)
    assert any("iptables-legacy has tables (filter)" in line for line in told["unread"])


def test_routers_on_this_host_are_followed(new_namespace: Callable[[], Namespace]) -> None:
    here, router, there = (new_namespace() for _ in range(3))
    here.link(router)
    router.link(there, "198.18.0")
    here.ip("route", "add", "default", "via", "192.0.2.2")
    there.ip("route", "add", "default", "via", "198.18.0.1")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    off = Explaining(here, "198.18.0.2:9", "--timeout", "300ms").finished()
    assert (off["cause"]["kind"], off["outcome"]) == ("route", "unanswered")
    assert "does not forward" in off["cause"]["detail"]
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    router.run("iptables", "-A", "FORWARD", "-p", "tcp", "--dport", 9, "-j", "DROP")
    router.ip("route", "add", "unreachable", "203.0.113.0/24")
    device = json.loads(router.ip("-j", "addr", "show", "to", "192.0.2.2"))[0]["ifname"]
    router.ip("rule", "add", "iif", device, "to", "203.0.113.128/25", "lookup", 100)
    router.ip("route", "add", "prohibit", "default", "table", 100)
    ruled = Explaining(here, "203.0.113.129:9")
    targets = {"dropped": "198.18.0.2:9", "no listener": "198.18.0.2:10", "route": "203.0.113.1:9"}
    assert causes(here, targets) == {
        "dropped": ("timed-out", "firewall-drop-in", "seen"),
        "no listener": ("refused", "no-listener", "likely"),
        "route": ("unreachable", "route", "likely"),
    }
    assert "is prohibit" in ruled.finished()["cause"]["detail"]


def run(*arguments: object, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*within, str(IG), "explain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.anywhere
def test_names_are_resolved_as_the_host_does(namespace: Namespace) -> None:
    port = namespace.serve("127.0.0.1")
    done = run("-4", f"localhost:{port}", within=namespace.command())
    rows = {row.split()[0]: row for row in done.stdout.splitlines()}
    assert done.returncode == 0
    assert "localhost: 127.0.0.1" in rows["name"]
    assert f"127.0.0.1:{port}" in rows["listener"]
    assert "established" in rows["outcome"]
    assert "cause" not in rows
    unknown = run("no-such-name.invalid:80", within=namespace.command())
    assert unknown.returncode == 1
    assert "Cannot resolve 'no-such-name.invalid'" in unknown.stderr


@pytest.mark.anywhere
def test_process_names_do_not_reach_the_terminal_raw(
    new_namespace: Callable[[], Namespace],
) -> None:
    here, there = linked(new_namespace)
    script = "printf '\\033]0;x' > /proc/self/comm; echo '{\"ready\": true}'; read -r _ < /dev/zero"
    process = subprocess.Popen(
        there.command("sh", "-c", script), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout
        assert b"ready" in process.stdout.readline()
        done = run("192.0.2.2:9", within=here.command())
    finally:
        process.kill()
        process.wait(PATIENCE)
        assert process.stdout
        process.stdout.close()
    assert "\x1b" not in done.stdout
    assert "(of \\x1b]0;x)" in done.stdout


@pytest.mark.anywhere
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("192.0.2.1",), "Invalid destination '192.0.2.1'"),
        (("2001:db8::1:80",), "brackets for IPv6"),
        (("192.0.2.1:0",), "Invalid port '0'"),
        (("192.0.2.1:80", "--timeout", "0"), "Invalid timeout 0"),
        (("192.0.2.1:80", "-o", "xml"), "Unknown output mode 'xml'"),
        ((), "Missing argument 'TARGET'"),
    ],
)
def test_wrong_arguments_are_usage_errors(arguments: Sequence[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.anywhere
def test_without_root_it_says_so() -> None:
    done = run("127.0.0.1:9", within=ordinary_user())
    assert done.returncode == 1
    assert "Explaining a connection needs root" in done.stderr


@pytest.mark.parametrize("version", ["4", "6"])
def test_local_ports_that_are_all_in_use_are_counted(
    new_namespace: Callable[[], Namespace], version: str
) -> None:
    here, there = linked(new_namespace)
    here.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40005")
    here.run("sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=40001,40003-40003,50000")
    far = f"{NETWORK[version]}2"
    port, other = there.serve(far), there.serve(far)
    holding = here.start("connect", far, port, "--kind", version, "--hold", "--count", 4)
    holding.reports.matching(lambda report: report.get("error") == "", 4)
    found = Explaining(here, end(far, port)).finished()
    assert (found["outcome"], found["error"]) == ("failed", "EADDRNOTAVAIL")
    assert (found["cause"]["kind"], found["cause"]["confidence"]) == (
        "local-port-exhausted",
        "seen",
    )
    assert "4 of 4 local ports (40000 to 40005) are in use" in found["cause"]["detail"]
    assert Explaining(here, end(far, other)).finished()["outcome"] == "established"


def test_listener_of_the_wrong_family_is_reported(new_namespace: Callable[[], Namespace]) -> None:
    here, there = linked(new_namespace)
    both = there.serve("::")
    only = there.serve("::", 0, "--v6only")
    four = there.serve("0.0.0.0")
    shared = there.serve("::", 0, "--reuseport")
    there.serve("::", shared, "--reuseport")
    targets = {"both": f"192.0.2.2:{both}", "shared": f"192.0.2.2:{shared}"}
    targets |= {"only": f"192.0.2.2:{only}", "four": f"[2001:db8:2::2]:{four}"}
    assert causes(here, targets) == {
        "both": ("established", "", ""),
        "shared": ("established", "", ""),
        "only": ("refused", "listens-elsewhere", "likely"),
        "four": ("refused", "listens-elsewhere", "likely"),
    }
    told = Explaining(here, f"192.0.2.2:{only}").finished()
    assert f"port {only} is listened on at :: (IPv6 only) only" in told["cause"]["detail"]
