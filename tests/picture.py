"""Draw docs/top.svg: `ig top tcp` as it is now, on containers that do something.

`python -m tests.picture docs/top.svg`, as root: with an engine of its own, which is removed again.
"""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.host.engine import Engine, PrivateEngine
from tests.host.namespace import PYTHON
from tests.host.terminal import Terminal

SIZE = (92, 10)
SERVER = """
import socket, threading
def answer(connection):
    while data := connection.recv(65536):
        connection.sendall(data * {factor})
def serve(port):
    listener = socket.create_server(("", port), backlog=1024)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
serve({port})
"""
CLIENT = """
import socket, sys, time
held = [
    socket.create_connection((host, port)) for host, port, count in {held} for _ in range(count)
]
while True:
    for each in held[::2]:
        each.sendall(bytes(700))
        each.recv(1 << 20)
    for host, port in {tried}:
        try:
            socket.create_connection((host, port)).close()
        except OSError:
            pass
    time.sleep(0.05)
"""


def start(engine: Engine, name: str, code: str) -> str:
    """Start a container that runs Python code, and return its address."""
    running = engine.run(name, [*PYTHON, "-c", code])
    running.container.rename(name)
    return running.address


def town(engine: Engine) -> None:
    """Start a shop: its parts, and their connections."""
    database = start(engine, "shop-db", SERVER.format(port=5432, factor=9))
    cache = start(engine, "shop-cache", SERVER.format(port=6379, factor=2))
    api = start(engine, "shop-api", SERVER.format(port=8080, factor=3))
    web = [(api, 8080, 12), (cache, 6379, 4)]
    start(engine, "shop-web", CLIENT.format(held=web, tried=[(api, 8080), (api, 8081)]))
    worker = [(database, 5432, 24), (cache, 6379, 8)]
    start(engine, "shop-worker", CLIENT.format(held=worker, tried=[(database, 5432)]))


def drawn(terminal: Terminal) -> list[str]:
    """Return the screen once it has all rows, with rates, and a row is selected."""
    terminal.see(lambda lines: sum("ms" in line for line in lines) >= 3)
    terminal.press("F\x1b[B")
    terminal.see(lambda lines: "failed" in lines[0])
    ends = time.monotonic() + 10
    while time.monotonic() < ends and not any("\x1b[7m" in line for line in terminal.frame[3:]):
        time.sleep(0.05)
    return terminal.frame


def svg(lines: list[str], width: int) -> str:
    """Return a picture of a terminal's lines, which refers to nothing elsewhere."""
    console = Console(
        file=io.StringIO(), record=True, width=width, force_terminal=True, highlight=False
    )
    for line in lines:
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop")
    text = console.export_svg(title="sudo ig top tcp -c shop-*", unique_id="ig")
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    return text.replace("Fira Code, monospace", "monospace")


def picture(engine: Engine) -> str:
    """Return the picture of what an engine's containers do."""
    town(engine)
    terminal = Terminal(
        *("top", "tcp", "-c", "shop-*", "--interval", "1"),
        size=SIZE,
        environment={"DOCKER_HOST": engine.socket},
    )
    try:
        return svg(drawn(terminal), SIZE[0])
    finally:
        terminal.kill()


def main() -> None:
    private = PrivateEngine()
    try:
        private.start()
        Path(sys.argv[1]).write_text(picture(Engine(private.socket)), "utf-8")
    finally:
        private.remove()


if __name__ == "__main__":
    main()
