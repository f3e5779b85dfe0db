"""Losses against loops over plain floats; a batch, a pack and single samples compute the same; who teaches, and how."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import swaa
from swaa.config import FineTuning, Objective
from swaa.engine.tuning.batch import collate
from swaa.engine.tuning.module import FineTuner
from swaa.engine.tuning.objective import answer_logits, compute_losses, kl_divergence
from swaa.engine.tuning.samples import TrainingSample
from swaa.hf import apply_policy
from swaa.hf.lora import add_lora

POLICY = (swaa.SlidingWindow(5) | swaa.SinkTokens(2)).in_phase("prefill").on_layers("::2")
TEXT = tuple(100 + (7 * place) % 150 for place in range(60))
SAMPLES = (
    TrainingSample("one", TEXT[:23], ((15, 23),)),
    TrainingSample("turns", TEXT[5:36], ((8, 12), (20, 31))),
    TrainingSample("short", TEXT[40:49], ((7, 9),)),
    TrainingSample("token", TEXT[30:53], ((22, 23),)),
)
LABELS = Objective()


# ------------------------------------------------------------------------------------------------------- oracles


def probabilities(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    return [weight / sum(weights) for weight in weights]


def cross_entropy(logits: list[list[float]], targets: list[int]) -> float:
    return sum(-math.log(probabilities(row)[target]) for row, target in zip(logits, targets, strict=True))


def divergence(teacher: list[list[float]], student: list[list[float]], temperature: float) -> float:
    total = 0.0
    for of_teacher, of_student in zip(teacher, student, strict=True):
        pairs = zip(probabilities(of_teacher, temperature), probabilities(of_student, temperature), strict=True)
        total += sum(p * (math.log(p) - math.log(q)) for p, q in pairs)
    return total


def predictions(sample: TrainingSample) -> list[tuple[int, int]]:
    """(place that predicts, token to predict) for every answer token."""
    return [(place - 1, sample.ids[place]) for start, end in sample.answers for place in range(start, end)]


def alone(model: Any, sample: TrainingSample) -> Tensor:
    """The logits [N, V] of one sample's answers, from a pass over it alone with all of its logits."""
    decodes = [any(start <= place and place + 1 < end for start, end in sample.answers) for place in range(len(sample))]
    out = model(input_ids=torch.tensor([sample.ids]), decode_mask=torch.tensor([decodes]), use_cache=False)
    return out.logits[0, [place for place, _ in predictions(sample)]].float()


# -------------------------------------------------------------------------------------------- the figures themselves


class Table(nn.Module):
    """A model whose logits are looked up by the token read; it has no ``logits_to_keep``."""

    def __init__(self, vocabulary: int = 7) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(3)) * 2)
        self.teacher = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(4)) * 2
        self.teaches = False

    def forward(self, input_ids: Tensor, attention_mask: Any, decode_mask: Any, use_cache: bool) -> Any:
        return SimpleNamespace(logits=(self.teacher if self.teaches else self.rows)[input_ids])

    @contextlib.contextmanager
    def teaching(self) -> Iterator[None]:
        self.teaches = True
        yield
        self.teaches = False


TOKENS = [
    TrainingSample("a", (0, 3, 5, 2, 6, 1), ((2, 4), (5, 6))),
    TrainingSample("b", (4, 1, 1, 0), ((3, 4),)),
]


@pytest.mark.parametrize("rows", [[[TOKENS[0]]], [[TOKENS[0]], [TOKENS[1]]], [TOKENS]], ids=["one", "padded", "packed"])
@pytest.mark.parametrize(("temperature", "label_weight"), [(1.0, 0.0), (2.5, 0.0), (0.5, 0.3), (3.0, 1.0)])
def test_losses_are_what_loops_over_plain_floats_give(
    rows: list[list[TrainingSample]], temperature: float, label_weight: float
) -> None:
    model, batch = Table(), collate(rows, pad=6)
    pairs = [(sample.ids[place], token) for row in rows for sample in row for place, token in predictions(sample)]
    student = [model.rows[read].tolist() for read, _ in pairs]
    teacher = [model.teacher[read].tolist() for read, _ in pairs]
    hard, soft = cross_entropy(student, [token for _, token in pairs]), divergence(teacher, student, temperature)

    labels = compute_losses(model, batch, LABELS)
    assert float(labels.total.detach()) == pytest.approx(hard, rel=1e-5)
    assert float(labels.cross_entropy) == pytest.approx(hard, rel=1e-5)
    assert labels.divergence is None

    objective = Objective("self_distillation", temperature=temperature, label_weight=label_weight)
    losses = compute_losses(model, batch, objective, model.teaching)
    assert losses.divergence is not None
    assert float(losses.divergence) == pytest.approx(soft, rel=1e-5)
    assert float(losses.cross_entropy) == pytest.approx(hard, rel=1e-5)
    mixed = (1 - label_weight) * temperature**2 * soft + label_weight * hard
    assert float(losses.total.detach()) == pytest.approx(mixed, rel=1e-5)
    assert losses.total.requires_grad
    assert not losses.divergence.requires_grad
    assert not losses.cross_entropy.requires_grad


def test_a_divergence_is_the_teachers_from_the_student_and_nought_from_oneself() -> None:
    sure, unsure = torch.tensor([[8.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    for teacher, student in ((sure, unsure), (unsure, sure)):
        expected = divergence(teacher.tolist(), student.tolist(), 1.0)
        assert float(kl_divergence(teacher, student, 1.0)) == pytest.approx(expected, rel=1e-5)
    assert float(kl_divergence(sure, sure, 2.0)) == 0.0


def test_only_tokens_that_predict_an_answer_count() -> None:
    model, batch = Table(), collate([[TOKENS[0]], [TOKENS[1]]], pad=6)
    compute_losses(model, batch, LABELS).total.backward()
    assert model.rows.grad is not None
    touched = {row for row in range(7) if bool(model.rows.grad[row].any())}
    assert touched == {3, 5, 6, 1}  # what is read before answer tokens; the pad, 6, is read there as well


# ------------------------------------------------------------------------------- batches, packs and single samples

ROWS: dict[str, list[list[TrainingSample]]] = {
    "one": [[SAMPLES[1]]],
    "padded": [[sample] for sample in SAMPLES],
    "packed": [list(SAMPLES)],
    "packs": [[SAMPLES[0], SAMPLES[2]], [SAMPLES[2], SAMPLES[3]]],
}


class WithoutKeep(nn.Module):
    """The tiny model, as one that computes all logits or none."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, decode_mask: Tensor, use_cache: bool
    ) -> Any:
        return self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            decode_mask=decode_mask,
            use_cache=use_cache,
        )


@pytest.mark.parametrize("keeps", [True, False], ids=["logits_to_keep", "all logits"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_answer_logits_are_those_of_each_sample_alone(
    model: Any, rows: list[list[TrainingSample]], keeps: bool
) -> None:
    with apply_policy(model, POLICY), torch.no_grad():
        found = answer_logits(model if keeps else WithoutKeep(model), collate(rows, pad=0))
        expected = torch.cat([alone(model, sample) for row in rows for sample in row])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_the_policy_and_its_phases_matter_here(model: Any) -> None:
    """Otherwise the tests around this one would prove little."""

    def logits(policy: swaa.AttentionPolicy) -> Tensor:
        with apply_policy(model, policy), torch.no_grad():
            return answer_logits(model, collate([list(SAMPLES)], pad=0))

    everywhere = (swaa.SlidingWindow(5) | swaa.SinkTokens(2)).on_layers("::2")
    seen = [logits(policy) for policy in (POLICY, everywhere, swaa.FullAttention())]
    assert all((one - other).abs().max() > 0.1 for one, other in ((seen[0], seen[1]), (seen[0], seen[2])))


def gradients(model: nn.Module, losses: Iterator[Tensor]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    named = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return total, named


@pytest.mark.parametrize("kernel", ["dense", "blockwise"])
@pytest.mark.parametrize("distils", [False, True], ids=["labels", "self_distillation"])
@pytest.mark.parametrize("rows", [ROWS["padded"], ROWS["packed"]], ids=["padded", "packed"])
def test_loss_and_gradients_of_many_are_the_sums_of_those_of_each(
    model: Any, rows: list[list[TrainingSample]], distils: bool, kernel: str
) -> None:
    objective = Objective("self_distillation", temperature=2.0, label_weight=0.25) if distils else LABELS
    with apply_policy(model, POLICY, kernel=kernel) as handle:

        def full() -> AbstractContextManager[object]:
            return handle.using(swaa.FullAttention())

        def loss(some: list[list[TrainingSample]]) -> Tensor:
            return compute_losses(model, collate(some, pad=0), objective, full).total

        each, expected = gradients(model, (loss([[sample]]) for sample in SAMPLES))
        together, found = gradients(model, (loss(some) for some in [rows]))
    assert together == pytest.approx(each, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        assert float((found[name] - gradient).abs().max()) < 1e-4 * scale, name


# ----------------------------------------------------------------------------------------------------- the teacher


@pytest.fixture
def tuner(model: Any) -> tuple[Any, Callable[[], AbstractContextManager[object]]]:
    """The model of a fine-tuning, its adapter not zero, in training mode; and what makes it the teacher."""
    wrapped = add_lora(model, r=4, dropout=0.5, targets=["q_proj", "v_proj"], seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * 0.2)
    settings = {"name": "self_distillation"}
    values = {
        "policy": str(POLICY),
        "train": {"files": ["data.jsonl"]},
        "objective": settings,
        "lora": {"dropout": 0.5},
    }
    config = FineTuning.from_dict(values, output="unused")
    module = FineTuner(model, wrapped, apply_policy(model, POLICY), config, num_steps=1)
    module.train()
    return model, module._teaching


BATCH = collate([[sample] for sample in SAMPLES], pad=0)


def test_the_teacher_is_the_base_model_under_full_attention(tuner: Any, model_folder: Path) -> None:
    model, teaching = tuner
    base = LlamaForCausalLM.from_pretrained(model_folder)
    for sample in SAMPLES:
        batch = collate([[sample]], pad=0)
        with torch.no_grad():
            columns = torch.tensor([place for place, _ in predictions(sample)])  # as many rows: the same rounding
            expected = base(input_ids=batch.input_ids, logits_to_keep=columns).logits[0]
            with teaching():
                assert not any(part.training for part in model.modules())
                taught = answer_logits(model, batch)
            assert torch.equal(taught, expected)
            assert (answer_logits(model, batch) - taught).abs().max() > 0.1, "the student is somebody else"


def test_after_teaching_the_student_has_its_policy_adapter_and_dropout_again(tuner: Any) -> None:
    model, teaching = tuner

    def student(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return answer_logits(model, BATCH)

    before = student(1)
    assert not torch.equal(before, student(2)), "dropout drops"
    with teaching():
        pass
    assert model.training
    assert torch.equal(student(1), before)
    with pytest.raises(RuntimeError, match="in the teacher"), teaching():
        raise RuntimeError("in the teacher")
    assert torch.equal(student(1), before)


def test_the_teacher_gets_no_gradient(tuner: Any) -> None:
    model, teaching = tuner
    with teaching():
        teacher = answer_logits(model, BATCH).detach()
    objective = Objective("self_distillation", temperature=2.0)
    torch.manual_seed(0)
    losses = compute_losses(model, BATCH, objective, teaching)
    losses.total.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert all("lora_" in name for name in found)
    assert any(bool(gradient.any()) for gradient in found.values())

    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    (4.0 * kl_divergence(teacher, answer_logits(model, BATCH), 2.0)).backward()  # the teacher as mere numbers
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, found[name])
