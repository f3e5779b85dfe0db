"""What is looked at during training: the loss on held-out samples, and accuracy under the inference policy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.config import Objective, Validation
from swaa.engine.batch import Batch
from swaa.engine.decode import generate, prefill, teacher_forced
from swaa.engine.recording import final_of, grade_answers
from swaa.engine.tuning.batch import TrainingBatch
from swaa.engine.tuning.objective import compute_losses_and_logits
from swaa.engine.tuning.samples import NO_TARGET


@dataclass(frozen=True)
class Look:
    """A batch to look at, and whether it counts: one that does not only keeps the devices in step."""

    batch: TrainingBatch | Batch
    counts: bool = True

    def to(self, device: torch.device, **options: bool) -> Look:
        """The same on another device. (Lightning moves what has this method.)"""
        return Look(self.batch.to(device, **options), self.counts)


class Looks:
    """Sums up what batches show, and makes figures of the sums.

    Args:
        tokenizer: the model's.
        validation: what is asked for.
    """

    def __init__(self, tokenizer: Any, validation: Validation) -> None:
        self._tokenizer = tokenizer
        self._validation = validation
        self._sums: dict[str, tuple[float, float]] = {}

    def begin(self, objective: Objective) -> None:
        """Forget what was seen. All devices sum up the same figures, whatever batches they get."""
        names = ["loss", "cross_entropy", *(["divergence"] if objective.distils else []), "exact"]
        names += [*(["forced_exact"] if self._scores("teacher_forced") else [])]
        names += ["score", "all_correct"] if self._scores("generate") else []
        self._sums = dict.fromkeys(names, (0.0, 0.0))

    def see(
        self,
        model: Any,
        look: Look,
        objective: Objective,
        teaching: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            model: with the policy on it.
            look: the batch.
            objective: what the training minimises; the same as in :meth:`begin`.
            teaching: see :func:`swaa.engine.tuning.objective.compute_losses`.
        """
        if isinstance(look.batch, TrainingBatch):
            seen = _answers(model, look.batch, objective, teaching)
        else:
            seen = self._accuracy(model, look.batch)
        for name, (total, count) in seen.items() if look.counts else ():
            before = self._sums[name]
            self._sums[name] = (before[0] + total, before[1] + count)

    def figures(self, summed: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means over everything seen on all devices: losses in nats per answer token, the others in [0, 1].

        ``loss`` is the objective, as the training minimises it; ``cross_entropy`` is that with the answers' tokens, and
        ``divergence``, of self-distillation, that from the teacher before the factor of the temperature.
        ``exact`` is the share of samples whose every answer token, the end of the turn among them, is the likeliest;
        the others are of the tasks' examples, and are what ``swaa run`` calls them.

        Args:
            summed: the sum of a tensor over all devices.
        """
        totals, counts = summed(torch.tensor(list(self._sums.values()), dtype=torch.float64)).T.tolist()
        return {name: total / count for name, total, count in zip(self._sums, totals, counts, strict=True) if count}

    def _accuracy(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        read = prefill(model, batch)
        seen: dict[str, tuple[float, float]] = {}
        size = len(batch.samples)
        if self._scores("teacher_forced"):
            seen["forced_exact"] = (float(sum(teacher_forced(model, batch, read).exact)), size)
        if self._scores("generate"):
            made = generate(model, self._tokenizer, batch, read, batch.recipe.decoding)
            parts = zip(batch.samples, made.texts, made.endings, strict=True)
            stop = batch.recipe.decoding.stop
            grades = grade_answers(batch.samples, [final_of(*part, stop) for part in parts])
            graded = [one.score for one in grades if one.score is not None]
            seen["score"] = (sum(graded), len(graded))
            seen["all_correct"] = (float(sum(one.all_correct for one in grades)), len(graded))
        return seen

    def _scores(self, scoring: str) -> bool:
        return bool(self._validation.tasks) and scoring in self._validation.scoring


def _answers(
    model: Any,
    batch: TrainingBatch,
    objective: Objective,
    teaching: Callable[[], AbstractContextManager[object]] | None,
) -> dict[str, tuple[float, float]]:
    """The losses and the exactness of a batch of one sample a row, as sums and counts."""
    wanted_BS = batch.targets != NO_TARGET
    losses, logits_NV = compute_losses_and_logits(model, batch, objective, teaching)
    right_BS = torch.ones_like(wanted_BS)
    right_BS[wanted_BS] = logits_NV.argmax(-1) == batch.targets[wanted_BS]
    tokens = batch.answer_tokens
    seen: dict[str, tuple[float, float]] = {
        "loss": (float(losses.total), tokens),
        "cross_entropy": (float(losses.cross_entropy), tokens),
        "exact": (float(right_BS.all(1).sum()), len(batch.sample_ids)),
    }
    if losses.divergence is not None:
        seen["divergence"] = (float(losses.divergence), tokens)
    return seen
