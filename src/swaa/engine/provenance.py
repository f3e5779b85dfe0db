"""Where a record comes from: the commit of the code and the versions of what it ran on."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch


@functools.cache
def git_hash() -> str | None:
    """The commit of the repository that this code lies in, with ``+`` where tracked files were altered; else None."""
    root = Path(__file__).parent
    try:
        tracked = _git(root, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(root, "rev-parse", "HEAD") if tracked else ""
        altered = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if altered else commit


@functools.cache
def versions() -> dict[str, str]:
    """Version by name, of Python and the libraries."""
    return {
        "python": platform.python_version(),
        "swaa": importlib.metadata.version("swaa"),
        "torch": str(torch.__version__),  # with its build, such as +cu130, which a wheel's metadata may leave out
        "transformers": importlib.metadata.version("transformers"),
        "lightning": importlib.metadata.version("lightning"),
    }


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
