"""Failures that a user can do something about."""

from collections.abc import Sequence


class IgError(Exception):
    """An expected failure: what failed, what was found (and wanted), and what to do.

    `output` is what a compiler or the kernel printed, in lines. `str()` returns the whole message,
    one part a line; empty parts are left out.
    """

    exit_code = 1

    def __init__(
        self, failed: str, found: str = "", remedy: str = "", output: Sequence[str] = ()
    ) -> None:
        super().__init__(failed, found, remedy, output)
        self.failed = failed
        self.found = found
        self.remedy = remedy
        self.output = output

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of the message; what they quote may contain ends of lines itself."""
        return [part for part in (self.failed, self.found, *self.output, self.remedy) if part]


class UsageError(IgError):
    """An invalid command line."""

    exit_code = 2


class KernelRefused(IgError):
    """The kernel does not have, or does not allow, what was asked of it."""


class RuntimeUnavailable(IgError):
    """A container runtime does not answer on its socket, or stopped answering."""


class MissingDependency(IgError):
    """A package of the distribution is not installed, or does not load."""
