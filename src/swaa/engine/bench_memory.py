"""How much memory a piece of work takes: the peak of the device on CUDA, of the process's resident set on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_SAMPLING_SECONDS = 0.005


@dataclass
class Memory:
    """Bytes of a piece of work; None where the system does not tell.

    Attributes:
        rest_bytes: in use before it began, weights and libraries among them.
        peak_bytes: the most that was in use at any moment of it.
    """

    rest_bytes: int | None = None
    peak_bytes: int | None = None


@contextlib.contextmanager
def watch_memory(device: torch.device) -> Iterator[Memory]:
    """Measure the block inside; ``peak_bytes`` is there once it has ended.

    On Linux the kernel keeps the peak of the resident set and forgets it on request; where it does not, it is sampled.
    """
    memory = Memory()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        memory.rest_bytes = torch.cuda.memory_allocated(device)
        yield memory
        memory.peak_bytes = torch.cuda.max_memory_allocated(device)
        return
    _give_back()
    memory.rest_bytes = _status("VmRSS")
    if memory.rest_bytes is None:
        yield memory
    elif _forget_peak():
        yield memory
        memory.peak_bytes = _status("VmHWM")
    else:
        with _sampled(memory):
            yield memory


def _status(name: str) -> int | None:
    """A line of the process's status, in bytes."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _forget_peak() -> bool:
    """Set the kernel's record of the peak to what is resident now; False where it does not let us."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _give_back() -> None:
    """Return what was freed to the system, so that the next peak is not hidden below it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _sampled(memory: Memory) -> Iterator[None]:
    done = threading.Event()
    seen = [memory.rest_bytes or 0]

    def sample() -> None:
        while not done.wait(_SAMPLING_SECONDS):
            seen.append(max(seen.pop(), _status("VmRSS") or 0))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    memory.peak_bytes = max(seen[0], _status("VmRSS") or 0)
