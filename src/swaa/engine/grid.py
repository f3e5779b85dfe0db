"""The grid of a run: every example under every recipe, in batches that an interruption does not change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from swaa.config import ModelConfig
from swaa.engine.batch import Batch, Sample, collate
from swaa.engine.prompting import count_tokens, prepare
from swaa.errors import UserError
from swaa.hf import model_shape
from swaa.policies import bind
from swaa.reading import within
from swaa.recipe import Recipe
from swaa.report import Key
from swaa.tasks import Task


class Grid(Protocol):
    """What is asked for: every example of tasks x lengths, under every recipe. An experiment, a distillation."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def recipes(self) -> tuple[Recipe, ...]: ...
    @property
    def tasks(self) -> tuple[Task, ...]: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def num_examples(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


@dataclass(frozen=True)
class Chunk:
    """Samples that run together under one recipe."""

    recipe: Recipe
    samples: tuple[Sample, ...]


def make_samples(grid: Grid, tokenizer: Any, *, context: int | None) -> list[Sample]:
    """The examples of every task and length, rendered and tokenised; the same for every recipe.

    Args:
        tokenizer: the model's.
        context: the longest sequence that the model was made for, in tokens; None if it names none.

    Raises:
        UserError: prompt and answer do not fit into the context, or the task refuses.
    """
    room = max(recipe.decoding.max_new_tokens for recipe in grid.recipes)
    for length in grid.lengths:
        _check_fits(grid, "lengths", length, room, context)
    counter = partial(count_tokens, tokenizer)
    samples = []
    for task in grid.tasks:
        for length in grid.lengths:
            for example in task.examples(
                length=length,
                num_examples=grid.num_examples,
                seed=grid.seed,
                count_tokens=counter,
            ):
                prompt = prepare(tokenizer, example)
                needed = max(room, len(prompt.answer_ids))
                _check_fits(grid, f"task {task.label!r}, example {example.id}", len(prompt.ids), needed, context)
                samples.append(Sample(task, length, example, prompt))
    return samples


def _check_fits(grid: Grid, what: str, prompt: int, answer: int, context: int | None) -> None:
    if context is not None and prompt + answer > context:
        raise UserError(
            f"{what}: {prompt} prompt tokens and {answer} new ones are {prompt + answer} tokens, and the "
            f"context of {grid.model.name} is {context}. "
            f"Ask for a length of at most {context - answer}, or choose a model with a longer context."
        )


def make_chunks(grid: Grid, samples: Sequence[Sample], finished: Collection[Key]) -> list[Chunk]:
    """What is left to run, recipe by recipe, long prompts first so that a lack of memory shows at once.

    The batches are laid out over the whole grid and finished samples taken out of them afterwards, so that an
    interrupted run goes on with the very batches it would have had.
    """
    ordered = sorted(samples, key=lambda sample: -len(sample.prompt.ids))  # stable: equal lengths keep their order
    size = grid.batch_size
    chunks = []
    for recipe in grid.recipes:
        for start in range(0, len(ordered), size):
            left = [sample for sample in ordered[start : start + size] if sample_key(recipe, sample) not in finished]
            if left:
                chunks.append(Chunk(recipe, tuple(left)))
    return chunks


def sample_key(recipe: Recipe, sample: Sample) -> Key:
    """What identifies a sample under a recipe in the records."""
    return Key(recipe.hash, sample.task.label, sample.length, sample.example.id)


def grid_keys(grid: Grid) -> list[Key]:
    """The keys of the grid's samples, without making them, in the order of :func:`make_samples`, recipe by recipe.

    Examples are known by their ids, which change with the text of a task's file.
    """
    return [
        Key(recipe.hash, task.label, length, example)
        for recipe in grid.recipes
        for task in grid.tasks
        for length in grid.lengths
        for example in task.example_ids(length=length, num_examples=grid.num_examples, seed=grid.seed)
    ]


def check_recipes(grid: Grid, model: Any) -> None:
    """Refuse a policy that does not fit the model now, not when its turn comes.

    Raises:
        UserError: a policy names a layer or a head that the model has not; the recipe is named.
    """
    shape = model_shape(model)
    for recipe in grid.recipes:
        with within(f"recipe {recipe.name!r}"):
            bind(recipe.policy, num_layers=shape.num_layers, num_heads=shape.num_heads)


def context_of(model: Any) -> int | None:
    """The longest sequence that the model was made for, in tokens; None if its config names none."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if length else None


class GridData(LightningDataModule):
    """Chunks -> padded batches, one at a time.

    Args:
        chunks: what to run, in order.
        pad: the token that fills up rows.
    """

    def __init__(self, chunks: Sequence[Chunk], *, pad: int) -> None:
        super().__init__()
        self._chunks = chunks
        self._pad = pad

    def predict_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self._chunks, batch_size=None, collate_fn=self._collate)  # type: ignore[arg-type]

    def _collate(self, chunk: Chunk) -> Batch:
        return collate(chunk.recipe, chunk.samples, pad=self._pad)
