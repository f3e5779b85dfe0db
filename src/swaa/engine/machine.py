"""What a run or a benchmark ran on, in plain data."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from swaa.engine.provenance import git_hash, versions


def session(device: torch.device, extra_versions: dict[str, str] | None = None) -> dict[str, Any]:
    """Machine, load, versions and commit at the beginning of a session; ``load`` above 0 says that others work here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(terse=True),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "git": git_hash(),
        "versions": {**versions(), **(extra_versions or {})},
    }


def cpu_name() -> str:
    """The CPU's model name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
