"""The real command, run as a user runs it, and what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.host.reports import Report, Reports
from tests.host.waiting import PATIENCE, until

IG = Path(sys.executable).with_name("ig")


def ordinary_user() -> list[str]:
    """Return what a command is begun with to be an ordinary user's, who can reach `ig`."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*user, "test", "-x", str(IG)], check=False).returncode:
        # This checkout is in a folder of root's.
        reach = "-all,+dac_read_search"
        user += [f"--bounding-set={reach}", f"--inh-caps={reach}", f"--ambient-caps={reach}"]
    return user


def in_own_mounts(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's script in a mount namespace of its own, and give what it printed."""
    command = ["unshare", "--mount", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def session(leader: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


class Tracer:
    """A running `ig`. Its stdout is in `reports`, its stderr (all of it so far) in `stderr`."""

    def __init__(
        self,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        ready: bool = True,
        within: Sequence[str] = (),
    ) -> None:
        """Start `ig ARGUMENTS`, and unless `ready` is false wait until every probe is attached.

        `within` is a command that runs it.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="ig-")
        ready_file = Path(self._folder.name) / "ready"
        command = [*within, str(IG), *map(str, arguments)]
        if ready:
            command += ["--ready-file", str(ready_file)]
        self._stderr_file = Path(self._folder.name) / "stderr"
        with self._stderr_file.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        assert self.process.stdout
        self.reports = Reports(iter(lambda: os.read(self._stdout, 65536), b""))
        if ready:
            try:
                until(lambda: ready_file.exists() or self._ended(), "ig to be ready")
            except TimeoutError:
                self.kill()
                raise

    @property
    def _stdout(self) -> int:
        assert self.process.stdout
        return self.process.stdout.fileno()

    def _ended(self) -> bool:
        if self.process.poll() is None:
            return False
        raise AssertionError(f"ig ended with {self.process.returncode}: {self.stderr}")

    @property
    def stderr(self) -> str:
        return self._stderr_file.read_text() if self._stderr_file.exists() else self._last_words

    _last_words = ""

    @property
    def events(self) -> list[Report]:
        """The JSON objects that it printed so far."""
        return list(self.reports.objects)

    def wait_for(
        self, wanted: Callable[[Report], object], count: int = 1, seconds: float = PATIENCE
    ) -> list[Report]:
        """Return the events that `wanted` holds for, once there are `count` of them."""
        return self.reports.matching(wanted, count, seconds)

    def says(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until it has said `text` on stderr."""
        until(lambda: text in self.stderr, f"{text!r} on stderr", seconds)

    def finished(self, seconds: float = PATIENCE) -> tuple[list[Report], str, int]:
        """Wait until it ends by itself; give its events, its stderr and its exit code."""
        code = self.process.wait(seconds)
        events = self.reports.all(seconds)
        self._last_words = self.stderr
        self._folder.cleanup()
        return events, self._last_words, code

    def stop(self, number: int = signal.SIGINT) -> tuple[list[Report], str, int]:
        """Send a signal (Ctrl-C's), then as `finished`."""
        self.process.send_signal(number)
        return self.finished()

    def kill(self) -> None:
        """End it, whatever it does; nothing happens if it has ended."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self._last_words = self.stderr
        self._folder.cleanup()
