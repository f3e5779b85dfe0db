"""The data of a fine-tuning: samples, tokenised and checked, and the order in which a device sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from swaa.config import FineTuning, Validation
from swaa.config.finetune_parts import Source, Training
from swaa.engine.batch import Sample
from swaa.engine.batch import collate as collate_prompts
from swaa.engine.prompting import count_tokens, prepare
from swaa.engine.tuning.batch import collate
from swaa.engine.tuning.looks import Look
from swaa.engine.tuning.module import StepBatch
from swaa.engine.tuning.samples import TrainingSample, fit, make_sample
from swaa.engine.tuning.steps import Step, plan_steps
from swaa.errors import UserError
from swaa.recipe import Recipe
from swaa.tasks.conversations import Conversation, read_conversations


@dataclass(frozen=True)
class TrainingSet:
    """The samples that are trained on.

    Attributes:
        samples: in the order of their source.
        dropped: names of those that were too long.
    """

    samples: tuple[TrainingSample, ...]
    dropped: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Twelve hex digits that tell these samples from any others, whatever they and their files are called."""
        told = repr([(sample.ids, sample.answers) for sample in self.samples])
        return hashlib.sha256(told.encode()).hexdigest()[:12]


def training_set(config: Training, tokenizer: Any, *, context: int | None) -> TrainingSet:
    """The samples of a training, tokenised and no longer than the model's context.

    Raises:
        UserError: a file is malformed, a sample is too long or has no answer, or there is none at all.
    """
    samples = [make_sample(tokenizer, one) for one in conversations(config, tokenizer)]
    limit = max_length(config, context)
    dropped: Sequence[str] = ()
    if limit is not None:
        samples, dropped = fit(samples, limit, config.too_long)
    return TrainingSet(tuple(samples), tuple(dropped))


def max_length(config: Training, context: int | None) -> int | None:
    """Tokens of the longest sample allowed.

    Raises:
        UserError: more is asked for than the model's context.
    """
    limits = {"train.max_length": config.max_length, "train.pack_length": config.pack_length}
    if context is not None and config.max_length is not None and config.max_length > context:
        raise UserError(
            f"train.max_length: {config.max_length} tokens, and the model's context is {context}. Lower it, or leave "
            "it out."
        )
    known = [limit for limit in (*limits.values(), context) if limit is not None]
    return min(known, default=None)


def conversations(source: Source, tokenizer: Any) -> list[Conversation]:
    """The conversations of a source: its tasks' examples with their reference answers, then those of its files."""
    examples = [sample.example for sample in task_samples(source, tokenizer)]
    found = [Conversation.of_example(one, prompting) for one in examples for prompting in source.promptings]
    for file in source.files:
        found += read_conversations(file)
    return found


def task_samples(source: Source, tokenizer: Any) -> list[Sample]:
    """The examples of a source's tasks, rendered for evaluation.

    Of a task that has its own lengths these are the first ``num_examples`` whose prompts are no longer than the longest
    length.
    """
    found: list[Sample] = []
    for task in source.tasks:
        for length in source.lengths if task.sized else (max(source.lengths),):
            examples = task.examples(
                length=length,
                num_examples=source.num_examples,
                seed=source.seed,
                count_tokens=partial(count_tokens, tokenizer),
            )
            samples = (Sample(task, length, example, prepare(tokenizer, example)) for example in examples)
            fitting = (sample for sample in samples if task.sized or len(sample.prompt.ids) <= length)
            found += islice(fitting, source.num_examples)
    return found


def plan(config: FineTuning, samples: Sequence[TrainingSample], *, world_size: int) -> list[Step]:
    """The optimizer steps of a whole training."""
    train = config.train
    steps = plan_steps(
        [len(sample.ids) for sample in samples],
        [sample.num_answer_tokens for sample in samples],
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        pack_length=train.pack_length,
        world_size=world_size,
        epochs=train.epochs,
        seed=config.seed,
    )
    return steps[: train.max_steps]


class TuningData(LightningDataModule):
    """Steps and looks, padded into tensors as their turn comes. All epochs are one for Lightning.

    Args:
        steps: of the whole training; a resumed one begins with the step at which it stands.
        samples: what the steps' numbers mean.
        looks: batches of the validation.
        pad: the token that fills up rows.
    """

    def __init__(
        self, steps: Sequence[Step], samples: Sequence[TrainingSample], looks: Sequence[Look], *, pad: int
    ) -> None:
        super().__init__()
        self._steps = steps
        self._samples = samples
        self._looks = looks
        self._pad = pad

    def train_dataloader(self) -> DataLoader[StepBatch]:
        trainer = self.trainer
        assert trainer is not None
        steps = _Steps(self._steps, self._samples, self._pad, trainer.global_rank)
        order = _From(trainer.global_step, len(steps))
        return DataLoader(steps, batch_size=None, sampler=order)

    def val_dataloader(self) -> DataLoader[Look]:
        assert self.trainer is not None
        mine = deal(self._looks, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(mine, batch_size=None, collate_fn=_same)  # type: ignore[arg-type]


def make_looks(config: Validation, tokenizer: Any, recipe: Recipe, *, context: int | None) -> list[Look]:
    """The batches of a validation: all samples for the loss, and the tasks' for accuracy.

    Raises:
        UserError: a file is malformed, or a sample is longer than the model's context.
    """
    samples = [make_sample(tokenizer, one) for one in conversations(config, tokenizer)]
    if context is not None:
        samples, _ = fit(samples, context, "error")
    samples.sort(key=lambda sample: len(sample.ids))
    size, pad = config.batch_size, tokenizer.pad_token_id
    looks = [Look(collate([[one] for one in some], pad=pad)) for some in _parts(samples, size)]
    prompts = sorted(task_samples(config, tokenizer), key=lambda sample: len(sample.prompt.ids))
    looks += [Look(collate_prompts(recipe, some, pad=pad)) for some in _parts(prompts, size)]
    return looks


def deal(looks: Sequence[Look], rank: int, world_size: int) -> list[Look]:
    """One device's part. Every device gets as many of each kind, in the same order; fillers do not count."""
    kinds: dict[type, list[Look]] = {}
    for look in looks:
        kinds.setdefault(type(look.batch), []).append(look)
    mine = []
    for some in kinds.values():
        rounds = -(-len(some) // world_size)
        places = [turn * world_size + rank for turn in range(rounds)]
        mine += [some[place] if place < len(some) else Look(some[-1].batch, counts=False) for place in places]
    return mine


class _Steps(Dataset[StepBatch]):
    """One device's part of every step."""

    def __init__(self, steps: Sequence[Step], samples: Sequence[TrainingSample], pad: int, rank: int) -> None:
        self._steps, self._samples, self._pad, self._rank = steps, samples, pad, rank

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> StepBatch:
        step = self._steps[index]
        micros = [
            (collate([[self._samples[one] for one in row] for row in micro.rows], pad=self._pad), micro.counts)
            for micro in step.ranks[self._rank]
        ]
        return StepBatch(tuple(micros), step.answer_tokens)


class _From(Sampler[int]):
    """Counts from where a training stands; as long as the whole, since Lightning counts the steps done as well."""

    def __init__(self, first: int, stop: int) -> None:
        self._first, self._stop = first, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._stop))

    def __len__(self) -> int:
        return self._stop


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _same(look: Look) -> Look:
    return look
