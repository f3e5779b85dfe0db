"""The grid of a run: every example under every recipe, in batches that an interruption does not change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from swaa.config import Experiment
from swaa.engine.batch import Batch, Sample, collate
from swaa.engine.prompting import count_tokens, prepare
from swaa.errors import UserError
from swaa.recipe import Recipe
from swaa.report import Key


@dataclass(frozen=True)
class Chunk:
    """Samples that run together under one recipe."""

    recipe: Recipe
    samples: tuple[Sample, ...]


def make_samples(experiment: Experiment, tokenizer: Any, *, context: int | None) -> list[Sample]:
    """The examples of every task and length, rendered and tokenised; the same for every recipe.

    Args:
        tokenizer: the model's.
        context: the longest sequence that the model was made for, in tokens; None if it names none.

    Raises:
        UserError: prompt and answer do not fit into the context, or the task refuses.
    """
    room = max(recipe.decoding.max_new_tokens for recipe in experiment.recipes)
    for length in experiment.lengths:
        _check_fits(experiment, "lengths", length, room, context)
    counter = partial(count_tokens, tokenizer)
    samples = []
    for task in experiment.tasks:
        for length in experiment.lengths:
            for example in task.examples(
                length=length,
                num_examples=experiment.num_examples,
                seed=experiment.seed,
                count_tokens=counter,
            ):
                prompt = prepare(tokenizer, example)
                needed = max(room, len(prompt.answer_ids))
                _check_fits(experiment, f"task {task.label!r}, example {example.id}", len(prompt.ids), needed, context)
                samples.append(Sample(task, length, example, prompt))
    return samples


def _check_fits(experiment: Experiment, what: str, prompt: int, answer: int, context: int | None) -> None:
    if context is not None and prompt + answer > context:
        raise UserError(
            f"{what}: {prompt} prompt tokens and {answer} new ones are {prompt + answer} tokens, and the "
            f"context of {experiment.model.name} is {context}. "
            f"Ask for a length of at most {context - answer}, or choose a model with a longer context."
        )


def make_chunks(experiment: Experiment, samples: Sequence[Sample], finished: Collection[Key]) -> list[Chunk]:
    """What is left to run, recipe by recipe, long prompts first so that a lack of memory shows at once.

    The batches are laid out over the whole grid and finished samples taken out of them afterwards, so that an
    interrupted run goes on with the very batches it would have had.
    """
    ordered = sorted(samples, key=lambda sample: -len(sample.prompt.ids))  # stable: equal lengths keep their order
    size = experiment.batch_size
    chunks = []
    for recipe in experiment.recipes:
        for start in range(0, len(ordered), size):
            left = [sample for sample in ordered[start : start + size] if sample_key(recipe, sample) not in finished]
            if left:
                chunks.append(Chunk(recipe, tuple(left)))
    return chunks


def sample_key(recipe: Recipe, sample: Sample) -> Key:
    """What identifies a sample under a recipe in the records."""
    return Key(recipe.hash, sample.task.label, sample.length, sample.example.id)


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
