"""A tiny random model, tasks of our own, and what a model says of single requests."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval.api.instance import Instance
from torch.utils import collect_env

from engine.conftest import make_model, make_tokenizer
from swaa.harness import SwaaLM

DATA = Path(__file__).parent / "data"
TASKS = ("far_colours", "echo", "prose")


@pytest.fixture(scope="session", autouse=True)
def cache_of_datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """lm-eval keeps the data of tasks in a cache: one of the tests' own."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session", autouse=True)
def description_of_the_machine() -> Iterator[None]:
    """lm-eval has `pip list` run for the description that it puts into every result: two seconds, once is enough."""
    before = collect_env.get_pretty_env_info
    collect_env.get_pretty_env_info = functools.cache(before)
    yield
    collect_env.get_pretty_env_info = before


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
    return make_tokenizer()


@pytest.fixture
def model() -> Any:
    """Four layers, one token a byte, attention as a model from the hub has it."""
    return make_model(attn_implementation="sdpa")


@pytest.fixture
def ours(model: Any, tokenizer: Any) -> Iterator[Callable[..., Any]]:
    """Makes a `SwaaLM` of the tiny model."""
    made: list[SwaaLM] = []

    def make(policy: Any = None, **options: Any) -> Any:
        made.append(SwaaLM(model, tokenizer=tokenizer, policy=policy, **options))
        return made[-1]

    yield make
    for one in reversed(made):
        one.handle.remove()


def asked(kind: str, *arguments: Any, task: str = "quiz", document: int = 0) -> Instance:
    """A request as lm-eval makes it."""
    return Instance(kind, doc={}, arguments=arguments, idx=0, metadata=(task, document, 1))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The tiny model as a checkpoint."""
    path = tmp_path_factory.mktemp("tiny")
    make_model().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
