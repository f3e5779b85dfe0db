"""What is minimised: sums over answer tokens, so that any cutting into micro-batches gives the same step.

Shapes: B rows, S tokens, P columns in which some row has a target, N targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swaa.config import Objective
from swaa.engine.decode import accepts
from swaa.engine.tuning.batch import TrainingBatch
from swaa.engine.tuning.samples import NO_TARGET


@dataclass(frozen=True)
class Losses:
    """Sums over the N targets of a micro-batch.

    Attributes:
        total: what is minimised, in nats; the others are for looking at.
        cross_entropy: with the answers' tokens, in nats; detached.
        divergence: from the teacher, in nats, before the factor of the temperature; detached, and None without one.
    """

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor | None = None


def compute_losses(
    model: Any,
    batch: TrainingBatch,
    objective: Objective,
    teaching: Callable[[], AbstractContextManager[object]] | None = None,
) -> Losses:
    """One forward pass, and for self-distillation one more of the teacher.

    Args:
        model: with the policy on it.
        batch: a micro-batch.
        objective: what is minimised.
        teaching: a context in which the same model is the teacher; needed where ``objective.distils``.
    """
    return compute_losses_and_logits(model, batch, objective, teaching)[0]


def compute_losses_and_logits(
    model: Any,
    batch: TrainingBatch,
    objective: Objective,
    teaching: Callable[[], AbstractContextManager[object]] | None = None,
) -> tuple[Losses, Tensor]:
    """The same, and the float32 logits ``[N, V]`` that the losses are of."""
    targets_N = batch.targets[batch.targets != NO_TARGET]
    if not objective.distils:
        student_NV = answer_logits(model, batch)
        total = cross_entropy = F.cross_entropy(student_NV, targets_N, reduction="sum")
        return Losses(total, cross_entropy.detach()), student_NV
    assert teaching is not None
    with torch.no_grad(), teaching():
        teacher_NV = answer_logits(model, batch)
    student_NV = answer_logits(model, batch)
    divergence = kl_divergence(teacher_NV, student_NV, objective.temperature)
    cross_entropy = F.cross_entropy(student_NV, targets_N, reduction="sum")
    total = (1 - objective.label_weight) * objective.temperature**2 * divergence
    if objective.label_weight:
        total = total + objective.label_weight * cross_entropy
    return Losses(total, cross_entropy.detach(), divergence.detach()), student_NV


def kl_divergence(teacher_NV: Tensor, student_NV: Tensor, temperature: float) -> Tensor:
    """``sum_n KL(softmax(teacher_n / T) || softmax(student_n / T))`` in nats (arXiv 1503.02531)."""
    log_teacher_NV = (teacher_NV / temperature).log_softmax(-1)
    log_student_NV = (student_NV / temperature).log_softmax(-1)
    return F.kl_div(log_student_NV, log_teacher_NV, reduction="sum", log_target=True)


def answer_logits(model: Any, batch: TrainingBatch) -> Tensor:
    """The float32 logits ``[N, V]`` that predict the targets, row by row; of other tokens none are computed.

    The vocabulary's matrix is a fifth of a small model's work, and its output most of the memory.
    """
    wanted_BS = batch.targets != NO_TARGET
    columns_P = wanted_BS.any(0).nonzero()[:, 0]
    spares = accepts(model, "logits_to_keep")
    options: dict[str, Any] = {"logits_to_keep": columns_P} if spares else {}
    if accepts(model, "position_ids"):
        options["position_ids"] = batch.position_ids
    out = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decode_mask=batch.decode_mask,
        use_cache=False,
        **options,
    )
    logits: Tensor = out.logits[wanted_BS[:, columns_P]] if spares else out.logits[wanted_BS]
    return logits.float()
