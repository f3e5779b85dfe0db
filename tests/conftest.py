"""What every test shares: hypothesis's profiles, one thread a worker, no model hub, and the real model.

Profiles (`pytest --hypothesis-profile=NAME`), in examples a property:

- ``ci``, the default: 2,000, the same ones each time, so that a commit passes or fails for good;
- ``quick``: 50, to work with;
- ``deep``: 20,000, fresh ones each time.

A test never sets a number of its own, which would hold under every profile. An expensive one takes a share of
the profile's: ``@settings(max_examples=settings.default.max_examples // 20)``.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests need no hub: fail at once, not after its retries
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores; set before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_FILE = pytest.StashKey[Path]()
"""Of the latest test."""

settings.register_profile("base", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("base"), max_examples=2_000, derandomize=True)
settings.register_profile("quick", settings.get_profile("base"), max_examples=50)
settings.register_profile("deep", settings.get_profile("base"), max_examples=20_000)
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slow tests first: the last ones, which no worker shares with another, are then short.

    Skips the tests marked ``gpu`` where there is no CUDA device, and says so in the summary.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from looking through all that was imported, again and again."""
    _freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same before the first test of every file: many tests import, compile and keep things of their own.

    The fixtures of the file before are gone by then, and what it left as garbage goes before the rest is kept.
    """
    if item.path != item.session.stash.get(_FILE, None):
        item.session.stash[_FILE] = item.path
        _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The checkpoint of the default model, a real one of 135M parameters; fetched once a machine."""
    from swaa.hf.weights import DEFAULT_MODEL, fetch

    return fetch(DEFAULT_MODEL)
