"""Requests to stop: SIGINT (Ctrl-C), SIGTERM and SIGHUP.

A handler is all that interrupts a blocking call, so it raises wherever nothing must be finished.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN = 0.2  # seconds


class Stopped(BaseException):
    """A stop was requested and nothing has to be finished; not a failure."""


class Stop:
    """Whether the user wants to end. Calling it returns that.

    From its creation on a signal raises Stopped in the main thread, whatever it waits for; within
    `noted()` it is only noted, and who writes there looks at it.
    """

    _over = False

    def __init__(self) -> None:
        self._wanted = False
        self._raises = True
        for number in (*SIGNALS, signal.SIGALRM):
            # `nohup` ignores SIGHUP for those that it starts.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._signalled)

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self._wanted

    def _signalled(self, *_: object) -> None:
        # No lock: the thread that it interrupts may hold it.
        if not self._wanted:
            self._wanted = True
            # What is raised where the interpreter calls back (at a fork, in a destructor) is lost.
            signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
        if self._raises and not self._over:
            raise Stopped

    @classmethod
    def over(cls) -> None:
        """Stop raising: the process is ending."""
        cls._over = True

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Only note signals meanwhile, so that what is begun is finished. Raises Stopped before."""
        self._check()
        self._raises = False
        try:
            yield
        finally:
            self._raises = True

    def wait(self, seconds: float) -> bool:
        """Wait for so many seconds, or until the user wants to end; return whether that is so."""
        raises = self._raises
        with suppress(Stopped):
            try:
                self._raises = True
                self._check()
                time.sleep(seconds)
            finally:  # before Stopped would pass the caller
                self._raises = raises
        self._raises = raises  # if a signal came just before that
        return self._wanted

    def _check(self) -> None:
        if self._wanted:
            raise Stopped
