"""Calibration items: the prompts, with their right answers, on which units are scored, alone and in padded batches.

Shapes: B rows, S slots (left-padded), A answer tokens (right-aligned).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from swaa.engine.prompting import count_tokens, prepare
from swaa.errors import UserError, invalid
from swaa.reading import check_items, check_whole, within
from swaa.tasks import Task


@dataclass(frozen=True)
class Item:
    """One calibration sample.

    Attributes:
        id: the example's.
        ids: tokens of the prompt; at least one.
        answer_ids: tokens of the right answer; at least one.
    """

    id: str
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("ids", "answer_ids"):
            value = getattr(self, name)
            if not value or not all(isinstance(token, int) for token in value):
                mend = "Make items with calibration_items."
                raise invalid(f"Item.{name}", accepted="a tuple of at least one token id", got=value, mend=mend)

    def __len__(self) -> int:
        """Tokens that a model reads: all but the answer's last, which predicts nothing."""
        return len(self.ids) + len(self.answer_ids) - 1


def calibration_items(
    tasks: Sequence[Task], tokenizer: Any, *, length: int, num_examples: int, seed: int
) -> tuple[Item, ...]:
    """The first examples of every task, asked directly.

    Args:
        tasks: of any kind; ``task: file`` reads a file of one's own.
        tokenizer: the model's.
        length: tokens of each prompt, for tasks that write them; of a file's prompts, those of at most so many.
        num_examples: of each task; fewer where a file has no more that fit.
        seed: of the examples. Choose another one than for the test.

    Raises:
        UserError: a task has no answers, or no example that fits; an argument is out of its range.
    """
    check_items("calibration.tasks", list(tasks), of="task", mend="Name a task, such as needle_multikey.")
    check_whole("calibration.length", length, minimum=1)
    check_whole("calibration.num_examples", num_examples, minimum=1)
    check_whole("calibration.seed", seed, minimum=0)
    return tuple(item for task in tasks for item in _of_task(task, tokenizer, length, num_examples, seed))


def _of_task(task: Task, tokenizer: Any, length: int, num_examples: int, seed: int) -> list[Item]:
    counter = partial(count_tokens, tokenizer)
    with within(f"calibration task {task.label}"):
        examples = task.examples(length=length, num_examples=num_examples, seed=seed, count_tokens=counter)
        prompts = ((example.id, prepare(tokenizer, example)) for example in examples)
        items = (Item(name, prompt.ids, prompt.answer_ids) for name, prompt in prompts)
        fitting = (item for item in items if task.sized or len(item.ids) <= length)
        found = list(islice(fitting, num_examples))
        if not found:
            raise UserError(f"no example has at most {length} prompt tokens. Ask for a longer calibration.length.")
    return found


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """Items that run together: prompt and answer in one row, so that one forward pass scores them.

    Attributes:
        places: of the items among all.
        input_ids: ``[B, S]`` prompt and answer without its last token, left-padded.
        attention_mask: ``[B, S]`` 1 at real tokens; None where all are.
        position_ids: ``[B, S]`` index among the row's real tokens; 0 at padding.
        prompt_lengths: ``[B]`` real prompt tokens.
        answer_ids: ``[B, A]`` right-aligned: the last A slots predict them.
        answer_mask: ``[B, A]`` bool: real answer tokens.
    """

    places: tuple[int, ...]
    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    prompt_lengths: Tensor
    answer_ids: Tensor
    answer_mask: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def to(self, device: torch.device) -> ItemBatch:
        """The batch on another device."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        tensors = (self.position_ids, self.prompt_lengths, self.answer_ids, self.answer_mask)
        return ItemBatch(self.places, self.input_ids.to(device), mask, *(tensor.to(device) for tensor in tensors))


def make_batches(items: Sequence[Item], *, batch_size: int, pad: int = 0) -> Iterator[ItemBatch]:
    """The items in batches, longest first, so that rows of a batch are of similar length."""
    order = sorted(range(len(items)), key=lambda place: -len(items[place]))  # stable
    for start in range(0, len(order), batch_size):
        places = tuple(order[start : start + batch_size])
        yield _collate([items[place] for place in places], places, pad)


def _collate(items: Sequence[Item], places: tuple[int, ...], pad: int) -> ItemBatch:
    rows = [(*item.ids, *item.answer_ids[:-1]) for item in items]
    input_ids, mask = _right_aligned(rows, pad)
    answer_ids, answer_mask = _right_aligned([item.answer_ids for item in items], pad)
    return ItemBatch(
        places=places,
        input_ids=input_ids,
        attention_mask=None if bool(mask.all()) else mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        prompt_lengths=torch.tensor([len(item.ids) for item in items]),
        answer_ids=answer_ids,
        answer_mask=answer_mask.bool(),
    )


def _right_aligned(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """``[B, longest]`` tokens, padded on the left, and 1 at the real ones."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
