"""The grid of a run: every example under every recipe, in batches that an interruption does not change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from swaa.config import ModelConfig, Prompts
from swaa.engine.batch import Batch, Sample, collate
from swaa.hf import model_shape
from swaa.policies import bind
from swaa.policies.scores import bind_scores
from swaa.reading import within
from swaa.recipe import Recipe
from swaa.report import Key


class Grid(Prompts, Protocol):
    """What is asked for: every example of tasks x lengths, under every recipe. An experiment, a distillation."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def recipes(self) -> tuple[Recipe, ...]: ...


@dataclass(frozen=True)
class Chunk:
    """Samples that run together under one recipe.

    Attributes:
        recipe: what adapts the model.
        samples: that run together.
        generations: numbers of the answers that are generated of each of them.
        counts: False for a filler, which keeps a process company whose peers have something to do.
    """

    recipe: Recipe
    samples: tuple[Sample, ...]
    generations: tuple[int, ...] = (0,)
    counts: bool = True


def make_chunks(
    grid: Grid, samples: Sequence[Sample], finished: Collection[Key], *, generations: int = 1
) -> list[Chunk]:
    """What is left to run, recipe by recipe, long prompts first so that a lack of memory shows at once.

    The batches are laid out over the whole grid and finished samples taken out of them afterwards, so that an
    interrupted run goes on with the very batches it would have had. Samples of a batch whose missing generations differ
    run in batches of their own.
    """
    ordered = sorted(samples, key=lambda sample: -len(sample.prompt.ids))  # stable: equal lengths keep their order
    chunks = []
    for recipe in grid.recipes:
        mine = [sample for sample in ordered if sample.prompting == recipe.prompting]
        for start in range(0, len(mine), grid.batch_size):
            left: dict[tuple[int, ...], list[Sample]] = {}
            for sample in mine[start : start + grid.batch_size]:
                missing = tuple(n for n in range(generations) if sample_key(recipe, sample, n) not in finished)
                left.setdefault(missing, []).append(sample)
            chunks += [Chunk(recipe, tuple(some), missing) for missing, some in left.items() if missing]
    return chunks


def sample_key(recipe: Recipe, sample: Sample, generation: int = 0) -> Key:
    """What identifies an answer to a sample under a recipe in the records."""
    return Key(recipe.hash, sample.task.label, sample.length, sample.example.id, generation)


def grid_keys(grid: Grid, *, generations: int = 1) -> list[Key] | None:
    """The keys of the grid's samples, without making them, recipe by recipe; None where only making them tells.

    Examples are known by their ids, which change with the text of a task's file.
    """
    if not all(task.sized for task in grid.tasks):
        return None  # which examples fit is the tokenizer's to say
    return [
        Key(recipe.hash, task.label, length, example, generation)
        for recipe in grid.recipes
        for task in grid.tasks
        for length in grid.lengths
        for example in task.example_ids(length=length, num_examples=grid.num_examples, seed=grid.seed)
        for generation in range(generations)
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
            if recipe.scores is not None:
                bind_scores(recipe.scores, shape.num_layers, shape.num_heads)


def context_of(model: Any) -> int | None:
    """The longest sequence that the model was made for, in tokens; None if its config names none."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if length else None


class GridData(LightningDataModule):
    """Chunks -> padded batches, one at a time; of several processes each takes its turn.

    Args:
        chunks: what to run, in order.
        pad: the token that fills up rows.
    """

    def __init__(self, chunks: Sequence[Chunk], *, pad: int) -> None:
        super().__init__()
        self._chunks = chunks
        self._pad = pad

    def predict_dataloader(self) -> DataLoader[Batch]:
        trainer = self.trainer
        mine = self._chunks if trainer is None else self._chunks[trainer.global_rank :: trainer.world_size]
        mine = mine or [replace(self._chunks[0], counts=False)]  # Lightning refuses a process without batches
        return DataLoader(mine, batch_size=None, collate_fn=self._collate)  # type: ignore[arg-type]  # of one item

    def _collate(self, chunk: Chunk) -> Batch:
        batch = collate(chunk.recipe, chunk.samples, pad=self._pad, generations=chunk.generations)
        return batch if chunk.counts else replace(batch, counts=False)
