"""Failures that a user can do something about."""


class IgError(Exception):
    """An expected failure: what failed, what was found (and wanted), and what to do.

    `str()` gives the whole message, one part a line; empty parts are left out.
    """

    exit_code = 1

    def __init__(self, failed: str, found: str = "", remedy: str = "") -> None:
        super().__init__(failed, found, remedy)
        self.failed = failed
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        return "\n".join(part for part in (self.failed, self.found, self.remedy) if part)


class UsageError(IgError):
    """An invalid command line."""

    exit_code = 2


class KernelRefused(IgError):
    """The kernel does not have, or does not allow, what was asked of it."""


class RuntimeUnavailable(IgError):
    """A container runtime does not answer on its socket, or stopped answering."""


class MissingDependency(IgError):
    """A package of the distribution is not installed, or does not load."""
