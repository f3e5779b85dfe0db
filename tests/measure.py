"""Seconds and memory of a statement, in a process of its own: this one's peak tells what any earlier test took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import time
import torch
{setup}

# as many threads as suit it best: on a busy machine, handing work to a second one can cost a hundred times more
threads = (torch.get_num_threads(), 1)

def peak_mb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

{warm_up}
before, seconds = peak_mb(), []
for _ in range({rounds}):
    torch.set_num_threads(threads[_ % len(threads)])
    start = time.perf_counter()
    {statement}
    seconds.append(time.perf_counter() - start)
print(min(seconds), peak_mb() - before)
"""


def time_and_memory(setup: str, statement: str, *, warm_up: str, rounds: int = 1) -> tuple[float, float]:
    """The least seconds of ``rounds``, and how many MB the peak memory grew beyond that of setup and warm-up."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    program = _PROGRAM.format(setup=setup, warm_up=warm_up, statement=statement, rounds=rounds)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes
