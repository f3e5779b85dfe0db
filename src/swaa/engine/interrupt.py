"""Ctrl-C as an ordinary exception that Lightning lets through, so that a run can end in order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says how to go on."""


class StopRequested(BaseException):
    """Raised by Ctrl-C inside :func:`stoppable`. No KeyboardInterrupt: Lightning would end the process with code 1."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, Ctrl-C raises :class:`StopRequested` once; a second Ctrl-C is Python's own.

    Signals reach the main thread only, so that elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise StopRequested

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
