"""A tiny random model, tasks of our own, and what a model says of single requests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
TASKS = ("far_colours", "echo", "prose")


@pytest.fixture(scope="session", autouse=True)
def cache_of_datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """lm-eval keeps the data of tasks in a cache: one of the tests' own, set before `datasets` is imported."""
    before = os.environ.get("HF_DATASETS_CACHE")
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))
    yield
    if before is None:
        del os.environ["HF_DATASETS_CACHE"]
    else:
        os.environ["HF_DATASETS_CACHE"] = before


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tests' tasks, with the place of their data filled in."""
    folder = tmp_path_factory.mktemp("tasks")
    for file in DATA.iterdir():
        shutil.copy(file, folder)
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace("HERE", str(folder)))
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from engine.conftest import make_tokenizer

    return make_tokenizer()


@pytest.fixture
def model() -> Any:
    """Four layers, one token a byte, attention as a model from the hub has it."""
    from engine.conftest import make_model

    return make_model(attn_implementation="sdpa")


@pytest.fixture
def ours(model: Any, tokenizer: Any) -> Iterator[Callable[..., Any]]:
    """Makes a `SwaaLM` of the tiny model."""
    from swaa.harness import SwaaLM

    made: list[Any] = []

    def make(policy: Any = None, **options: Any) -> Any:
        made.append(SwaaLM(model, tokenizer=tokenizer, policy=policy, **options))
        return made[-1]

    yield make
    for one in reversed(made):
        one.handle.remove()
