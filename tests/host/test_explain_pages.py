"""The examples of `ig explain` in docs/ are what it prints.

`IG_WRITE=1 pytest tests/host/test_explain_pages.py` writes them anew. Names and addresses are those
of the pages; times, handles, numbers of link addresses and the like are not compared.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.host.engine import Engine, PrivateEngine, Running
from tests.host.test_explain import nft
from tests.host.tracer import IG, Tracer
from tests.host.waiting import PATIENCE, until

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = re.compile(r"(    \$ sudo ig ((?:explain|trace) .*)\n)((?:    .*\n)*)")
NETWORK = "172.17.0"
VARYING = (
    (r"[0-9.]+(ns|µs|ms|s)\b", "TIME"),
    (r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC"),
    (r"\b(REACHABLE|STALE|DELAY|PROBE)\b", "REACHABLE"),
    (r"\b(INCOMPLETE|FAILED)\b", "FAILED"),
    (r"unreachable \(EHOSTUNREACH\)|timed-out \(ETIMEDOUT\)|unanswered", "SILENT"),
    (r"handle \d+", "handle N"),
    (r"route 172\.17\.0\.0/\d+", "route NETWORK"),
    (r"cause +(likely|seen) +neighbour", "cause neighbour"),
)


ATTEMPTS = (
    *(("shop-db", 5432), ("shop-cache", 6379), ("shop-mail", 25), ("shop-mail", 587)),
    *(("shop-api", 8080), ("10.96.0.10", 80), ("203.0.113.7", 443), ("shop-db", 5433)),
)


class Shop:
    """The containers of the pages, and what is wrong with them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        engine.prefix = "shop"
        self._places: dict[str, str] = {}
        self._addresses: dict[str, str] = {}
        self.web = self._placed(engine.idle("web"))
        database = self._serves("db", "0.0.0.0", 5433)
        self._serves("cache", "127.0.0.1", 6379)
        slow = self._serves("api", "0.0.0.0", 8080, "--deaf", "--backlog", 0)
        mail = self._serves("mail", "0.0.0.0", 25)
        self._serves("search", "0.0.0.0", 9200).container.pause()
        engine.connect(self.web, slow.address, 8080)
        nft(
            mail.namespace,
            """
            table inet mail {
                set submission { type inet_service; elements = { 465, 587 }; }
                chain input {
                    type filter hook input priority filter; policy accept;
                    tcp dport 25 counter drop
                    tcp dport @submission counter reject
                }
            }
        """,
        )
        nft(
            self.web.namespace,
            f"""
            table ip services {{
                chain output {{
                    type nat hook output priority -100;
                    ip daddr . tcp dport vmap {{ 10.96.0.10 . 80 : goto db }}
                }}
                chain db {{
                    meta l4proto tcp dnat to {database.address}:5432
                }}
            }}
        """,
        )
        self.web.namespace.ip("route", "add", "prohibit", "203.0.113.0/24")
        self._database = database.address

    def exhaust_ports(self) -> None:
        """Leave `shop-web` no local port towards the database, until the test ends."""
        inside = self.web.namespace
        inside.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40011")
        held = ("--hold", "--count", 12)
        holding = inside.start("connect", self._database, 5433, *held)
        holding.reports.matching(lambda report: report.get("error") == "", 12)

    def _serves(self, name: str, *arguments: object) -> Running:
        running = self._engine.program(name, "serve", *arguments)
        running.reports.ready()
        return self._placed(running)

    def _placed(self, running: Running) -> Running:
        self._addresses[running.name] = running.address
        self._places[running.address] = f"{NETWORK}.{len(self._places) + 2}"
        return running

    @property
    def _subnet(self) -> str:
        return self.web.address.rpartition(".")[0]

    def run(self, command: str) -> str:
        """Return what a command of a page prints, in the page's words."""
        words = shlex.split(command.replace(f"{NETWORK}.", f"{self._subnet}."))
        text = self._traced(words) if words[0] == "trace" else self._explained(words)
        for there, here in self._places.items():
            # Columns stay aligned: what an address lacks goes before the next column.
            wider = " " * (len(there) - len(here))
            pattern = rf"\b{re.escape(there)}\b(?:((?::\d+)?)(?=  ))?"
            text = re.sub(pattern, lambda m: here + (m[1] + wider if m[1] else ""), text)  # noqa: B023
        text = text.replace(f"{self._subnet}.", f"{NETWORK}.")
        return textwrap.indent("\n".join(map(str.rstrip, text.splitlines())) + "\n", "    ")

    def _explained(self, words: Sequence[str]) -> str:
        done = subprocess.run(
            [IG, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "DOCKER_HOST": self._engine.socket},
        )
        assert done.stdout, done.stderr
        return done.stdout

    def _traced(self, words: Sequence[str]) -> str:
        """Return what a trace prints of one attempt after another of the container `shop-web`."""
        tracer = Tracer(*words, environment={"DOCKER_HOST": self._engine.socket})
        try:
            for count, (name, port) in enumerate(ATTEMPTS, 1):
                address = self._addresses.get(name, name)
                self._engine.connect(self.web, address, port, "--syn-count", 1)
                # The heading is a line, too.
                until(lambda: len(tracer.reports.lines) > count, f"{count} events")  # noqa: B023
            tracer.stop()
        finally:
            tracer.kill()
        return "\n".join(tracer.reports.lines)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    private = PrivateEngine()
    try:
        private.start()
        engine = Engine(private.socket)
        try:
            yield Shop(engine)
        finally:
            engine.close()
    finally:
        private.remove()


def stable(text: str) -> str:
    for pattern, name in VARYING:
        text = re.sub(pattern, name, text)
    return re.sub(r" {2,}", "  ", text)


@pytest.mark.engine
@pytest.mark.anywhere
@pytest.mark.parametrize(("name", "count"), [("explain", 1), ("why", 11)])
def test_examples_of_the_pages_are_what_is_printed(shop: Shop, name: str, count: int) -> None:
    path = DOCS / f"{name}.md"
    text = path.read_text()
    assert len(EXAMPLE.findall(text)) == count
    if name == "why":
        shop.exhaust_ports()
    now = EXAMPLE.sub(lambda match: match[1] + shop.run(match[2]), text)
    if os.environ.get("IG_WRITE") and stable(now) != stable(text):
        path.write_text(now)
        pytest.fail(f"{path.name} was behind; it is written anew")
    assert stable(now) == stable(text), "run IG_WRITE=1 pytest tests/host/test_explain_pages.py"
