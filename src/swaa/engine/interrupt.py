"""Ctrl-C and ``kill`` as an ordinary exception that Lightning lets through, so that a run can end in order."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_AGAIN = 0.02
"""Seconds until a request that was swallowed is made again."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or ``kill`` during a run; the message says how to go on."""


class StopRequested(BaseException):
    """Raised by a signal inside :func:`stoppable`. No KeyboardInterrupt: Lightning would end the process, with 1."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, Ctrl-C (SIGINT) or ``kill`` (SIGTERM) raises :class:`StopRequested` once; a second one acts as before.

    Without this, Lightning would pass over SIGTERM while it predicts, and the run would go on. What is raised in a
    destructor or in a callback of the garbage collector is swallowed; then the request is made again, at the end of the
    block at the latest: nothing of it is left for the code behind. Signals reach the main thread only, so that
    elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    again: _Again | None = None
    deaf = False

    def arm() -> None:
        for number in before:
            signal.signal(number, stop)

    def settle() -> int | None:
        """All as before; the number of a request that was yet to be made again."""
        nonlocal again, deaf
        deaf, asking, again = True, again, None  # deaf: what is still sent must not act as a second request
        if asking is not None:
            asking.end()
        for number, handler in before.items():
            signal.signal(number, handler)
        return None if asking is None else asking.number

    def stop(number: int, frame: FrameType | None) -> None:
        if not deaf:
            settle()
            raise StopRequested(number)

    def swallowed(found: sys.UnraisableHookArgs) -> None:
        nonlocal again, deaf
        if not isinstance(found.exc_value, StopRequested):
            tell(found)
            return
        arm()  # deaf until the end: this hook would swallow it
        again = again or _Again(found.exc_value.args[0])
        deaf = False

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    tell, sys.unraisablehook = sys.unraisablehook, swallowed
    arm()
    try:
        yield
    finally:
        unheard = settle()
        sys.unraisablehook = tell
        if unheard is not None:
            raise StopRequested(unheard)


class _Again:
    """Sends this process a signal, in a moment and then until it is heard."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._heard = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def end(self) -> None:
        """Send no more."""
        self._heard.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._heard.wait(_AGAIN):
            os.kill(os.getpid(), self.number)
