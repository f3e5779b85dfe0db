"""Samples of a recipe, padded into tensors.

Shapes: B samples, S prompt tokens (left-padded), A answer tokens (right-padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from swaa.engine.prompting import Prompt
from swaa.prompting import Prompting
from swaa.recipe import Recipe
from swaa.tasks import Example, Task


@dataclass(frozen=True)
class Sample:
    """One example of a task, ready for the model.

    Attributes:
        task: where it comes from.
        length: the prompt length that was asked for, in tokens.
        example: the question and its answer.
        prompt: both as tokens.
        prompting: how the question is asked.
        evidence_distance: tokens from the beginning of the farthest evidence to the prompt's end, where it is known.
    """

    task: Task
    length: int
    example: Example
    prompt: Prompt
    prompting: Prompting = field(default_factory=Prompting)
    evidence_distance: int | None = None


@dataclass(frozen=True)
class Batch:
    """Samples that run together under one recipe.

    Attributes:
        recipe: what adapts the model.
        samples: the B samples, in the order of the rows.
        prompt_ids: ``[B, S]`` prompt tokens, left-padded.
        prompt_mask: ``[B, S]`` 1 at real tokens.
        answer_ids: ``[B, A]`` tokens of the reference answers, right-padded.
        answer_mask: ``[B, A]`` 1 at real tokens.
        generations: numbers of the answers that are generated of each sample.
        counts: False for a filler, of which nothing is run.
    """

    recipe: Recipe
    samples: tuple[Sample, ...]
    prompt_ids: Tensor
    prompt_mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    generations: tuple[int, ...] = (0,)
    counts: bool = True

    @property
    def prompt_lengths(self) -> Tensor:
        """``[B]`` real prompt tokens of each sample."""
        return self.prompt_mask.sum(1)

    def to(self, device: torch.device, **options: bool) -> Batch:
        """The batch on another device. (Lightning moves what has this method.)"""
        names = ("prompt_ids", "prompt_mask", "answer_ids", "answer_mask")
        return replace(self, **{name: getattr(self, name).to(device, **options) for name in names})

    def head(self) -> Batch:
        """The batch's first sample alone, as wide as the batch."""
        return replace(
            self,
            samples=self.samples[:1],
            prompt_ids=self.prompt_ids[:1],
            prompt_mask=self.prompt_mask[:1],
            answer_ids=self.answer_ids[:1],
            answer_mask=self.answer_mask[:1],
            generations=(0,),
        )


def collate(recipe: Recipe, samples: Sequence[Sample], *, pad: int, generations: tuple[int, ...] = (0,)) -> Batch:
    """Pad the samples with the token ``pad``: prompts on the left, answers on the right."""
    prompt_ids, prompt_mask = _padded([sample.prompt.ids for sample in samples], pad, left=True)
    answer_ids, answer_mask = _padded([sample.prompt.answer_ids for sample in samples], pad, left=False)
    return Batch(recipe, tuple(samples), prompt_ids, prompt_mask, answer_ids, answer_mask, generations)


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """``[B, longest]`` tokens and the mask of the real ones."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids, mask
