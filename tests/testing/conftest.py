"""The plants, known by name while a module of these tests runs; a runner of the command line in processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swaa.policies import registry

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def own_registry() -> Iterator[None]:
    """What is registered in the test is known to it alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_policies", dict(registry._policies))
        patch.setattr(registry, "_patterns", dict(registry._patterns))
        yield


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs ``python -m swaa …`` with more folders to import from; captured, not checked."""

    def run(*argv: str, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        env = dict(os.environ, OMP_NUM_THREADS="1")
        if path is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), env.get("PYTHONPATH")]))
        arguments = [sys.executable, "-m", "swaa", *argv]
        return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    return run
