"""From tasks to samples: every example of a grid, rendered and tokenised once for each way of asking.

Tasks of our own make prompts of the very length that is asked for. A published benchmark has the lengths that it has:
there the grid's lengths are the upper edges of bins, and what fits into none is left out, counted and named.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from swaa.engine.batch import Sample
from swaa.engine.grid import Grid
from swaa.engine.prompting import Prompt, count_tokens, evidence_distance, prepare
from swaa.errors import UserError
from swaa.tasks import Example, Task


@dataclass(frozen=True)
class Dropped:
    """What became of the examples of a task that has its own lengths.

    Attributes:
        task: its label.
        length_limit: tokens of the longest prompt that is asked for.
        offered: examples that were looked at.
        kept: of these, those that are asked.
        too_long: ids and prompt tokens of those that are longer.
        full: those that fit into a bin that has ``num_examples`` already.
        left_out: what the task itself leaves out of its file, by reason.
    """

    task: str
    length_limit: int
    offered: int
    kept: int
    too_long: tuple[tuple[str, int], ...] = ()
    full: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    def told(self) -> str:
        """One line for the user."""
        parts = [f"{self.task}: {self.kept} of {self.offered} examples asked"]
        if self.too_long:
            names = ", ".join(f"{name} ({tokens:,})" for name, tokens in self.too_long[:3])
            more = ", …" if len(self.too_long) > 3 else ""
            parts.append(f"{len(self.too_long)} longer than {self.length_limit:,} tokens left out ({names}{more})")
        if self.full:
            parts.append(f"{self.full} beyond num_examples")
        parts += [f"{count} {reason}" for reason, count in self.left_out.items()]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        named = [{"example": name, "tokens": tokens} for name, tokens in self.too_long]
        return {**dataclasses.asdict(self), "too_long": named, "left_out": dict(self.left_out)}


@dataclass(frozen=True)
class Asked:
    """What a grid asks.

    Attributes:
        samples: in the grid's order; one of each example for each way of asking.
        dropped: of tasks that have their own lengths.
    """

    samples: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]


def make_samples(grid: Grid, tokenizer: Any, *, context: int | None) -> Asked:
    """The examples of every task and length; the same for every recipe but for the way of asking.

    Args:
        tokenizer: the model's.
        context: the longest sequence that the model was made for, in tokens; None if it names none.

    Raises:
        UserError: prompt and answer do not fit into the context, or the task refuses; nothing is left to ask.
    """
    making = _Making(grid, tokenizer, context)
    for length in grid.lengths:
        making.check_fits("lengths", length, making.room)
    samples: list[Sample] = []
    dropped = []
    for task in grid.tasks:
        if task.sized:
            samples += making.sized(task)
        else:
            chosen, told = making.unsized(task)
            samples += chosen
            dropped.append(told)
    if not samples:
        told_lines = "; ".join(one.told() for one in dropped)
        raise UserError(f"nothing is left to ask: {told_lines}. Ask for longer lengths.")
    return Asked(tuple(samples), tuple(dropped))


class _Making:
    """Examples -> samples, for one grid and tokenizer."""

    def __init__(self, grid: Grid, tokenizer: Any, context: int | None) -> None:
        self._grid, self._tokenizer, self._context = grid, tokenizer, context
        self._promptings = tuple(dict.fromkeys(recipe.prompting for recipe in grid.recipes))
        self.room = max(recipe.decoding.max_new_tokens for recipe in grid.recipes)

    def sized(self, task: Task) -> Iterator[Sample]:
        """The samples of a task that makes its prompts to measure."""
        for length in self._grid.lengths:
            for example in self._examples(task, length):
                for sample in self._samples(task, length, example):
                    needed = max(self.room, len(sample.prompt.answer_ids))
                    self.check_fits(f"task {task.label!r}, example {example.id}", len(sample.prompt.ids), needed)
                    yield sample

    def unsized(self, task: Task) -> tuple[list[Sample], Dropped]:
        """The samples of a task that has its own lengths, at most ``num_examples`` a bin, and what is left out."""
        edges = sorted(self._grid.lengths)
        bins: dict[int, list[list[Sample]]] = {edge: [] for edge in edges}
        too_long: list[tuple[str, int]] = []
        offered = full = 0
        for example in self._examples(task, edges[-1]):
            if all(len(found) == self._grid.num_examples for found in bins.values()):
                break
            offered += 1
            tokens = len(prepare(self._tokenizer, example).ids)
            place = bisect.bisect_left(edges, tokens)
            chosen = list(self._samples(task, edges[place], example)) if place < len(edges) else []
            if not chosen or not all(self._fits(sample.prompt) for sample in chosen):
                too_long.append((example.id, tokens))
            elif len(bins[edges[place]]) == self._grid.num_examples:
                full += 1
            else:
                bins[edges[place]].append(chosen)
        samples = [sample for edge in self._grid.lengths for chosen in bins[edge] for sample in chosen]
        kept = sum(len(found) for found in bins.values())
        told = Dropped(task.label, edges[-1], offered, kept, tuple(too_long), full, task.left_out)
        return samples, told

    def check_fits(self, what: str, prompt: int, answer: int) -> None:
        """Refuse what is longer than the model's context."""
        context = self._context
        if context is not None and prompt + answer > context:
            raise UserError(
                f"{what}: {prompt} prompt tokens and {answer} new ones are {prompt + answer} tokens, and the "
                f"context of {self._grid.model.name} is {context}. "
                f"Ask for a length of at most {context - answer}, or choose a model with a longer context."
            )

    def _examples(self, task: Task, length: int) -> Iterator[Example]:
        return task.examples(
            length=length,
            num_examples=self._grid.num_examples,
            seed=self._grid.seed,
            count_tokens=partial(count_tokens, self._tokenizer),
        )

    def _samples(self, task: Task, length: int, example: Example) -> Iterator[Sample]:
        for prompting in self._promptings:
            prompt = prepare(self._tokenizer, example, prompting)
            distance = evidence_distance(self._tokenizer, example, prompt)
            yield Sample(task, length, example, prompt, prompting, distance)

    def _fits(self, prompt: Prompt) -> bool:
        needed = max(self.room, len(prompt.answer_ids))
        return self._context is None or len(prompt.ids) + needed <= self._context
