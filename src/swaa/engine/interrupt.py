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
    destructor or in a callback of the garbage collector is swallowed; then the request is made again. Signals reach the
    main thread only, so that elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        raise StopRequested(number)

    def swallowed(found: sys.UnraisableHookArgs) -> None:
        if not isinstance(found.exc_value, StopRequested):
            tell(found)
            return
        (number,) = found.exc_value.args
        signal.signal(number, stop)
        threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()  # now, this hook would swallow it

    tell, sys.unraisablehook = sys.unraisablehook, swallowed
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()
        sys.unraisablehook = tell
