"""The training step: against a loop in plain PyTorch, whatever the cutting; its schedule; and losses that are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file
from torch import Tensor

from swaa.config import FineTuning, Optimization
from swaa.engine.trainer import quiet_lightning
from swaa.engine.tuning.checkpoint import Checkpoints, FolderCheckpoints
from swaa.engine.tuning.data import TuningData, plan
from swaa.engine.tuning.module import FineTuner, learning_rate_factor
from swaa.engine.tuning.samples import TrainingSample
from swaa.engine.tuning.setup import Prepared, prepare_model
from swaa.errors import UserError
from swaa.hf import apply_policy

POLICY = "(SlidingWindow(6) | SinkTokens(2)).in_phase('prefill')"
TEXT = [40 + (11 * place) % 200 for place in range(90)]
SAMPLES = tuple(
    TrainingSample(f"s{number}", tuple(TEXT[number : number + length]), ((start, length),))
    for number, (length, start) in enumerate(
        [(30, 22), (9, 7), (17, 12), (24, 6), (12, 11), (20, 15), (28, 20), (8, 3)]
    )
)


def config(model_folder: Path, **sections: Any) -> FineTuning:
    train = {"files": ["of-no-importance.jsonl"], "batch_size": 4, "epochs": 1, **sections.pop("train", {})}
    model = {"name": str(model_folder), "device": "cpu", "dtype": "float32"}
    values = {"policy": POLICY, "train": train, "model": model, "lora": None, **sections}
    return FineTuning.from_dict(values, output="unused")


@dataclass
class Seen(Callback):
    """Gradients as the optimizer gets them, and modes, step by step."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    modes: list[set[bool]] = field(default_factory=list)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        weights = pl_module.model.named_parameters()
        self.gradients.append({name: value.grad.clone() for name, value in weights if value.grad is not None})
        self.modes.append({part.training for part in pl_module.model.modules()})


def fit(config: FineTuning, *, callbacks: Sequence[Callback] = (), samples: Any = SAMPLES) -> tuple[Prepared, Any]:
    """Train as ``swaa finetune`` does, without a folder; what was trained, and the trainer."""
    prepared = prepare_model(config, device="cpu")
    steps = plan(config, samples, world_size=1)
    module = FineTuner(prepared.model, prepared.wrapped, prepared.handle, config, num_steps=len(steps))
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            callbacks=list(callbacks),
            plugins=[FolderCheckpoints()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, TuningData(steps, samples, [], pad=0))
    return prepared, trainer


# -------------------------------------------------------------------------------------------------- learning rate


def factors(schedule: str, warmup: float, num_steps: int) -> list[float]:
    settings = Optimization(schedule=schedule, warmup=warmup)
    return [learning_rate_factor(settings, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("num_steps", [1, 2, 19, 20, 21, 40, 100, 313])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_rises_in_a_twentieth_of_the_steps_and_then_falls(schedule: str, num_steps: int) -> None:
    expected: list[float] = []
    warm = 0
    while warm * 20 < num_steps:  # 5 %, rounded up
        warm += 1
    for number in range(1, num_steps + 1):
        if number <= warm:
            expected.append(number / warm)
        elif schedule == "constant":
            expected.append(1.0)
        else:
            gone = (number - 1 - warm) / (num_steps - warm)  # 0 at the first step after, 1 behind the last
            expected.append(1 - gone if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone)))
    assert factors(schedule, 0.05, num_steps) == pytest.approx(expected)
    assert max(expected) == 1.0


def test_a_schedule_written_out() -> None:
    assert factors("linear", 0.2, 10) == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert factors("linear", 0.0, 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert factors("constant", 1.0, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors("cosine", 0.0, 2) == pytest.approx([1.0, 0.5])


# ----------------------------------------------------------------------------------------------------- one step


def test_steps_are_those_of_a_loop_in_plain_pytorch(model_folder: Path) -> None:
    optimizer = {"learning_rate": 0.01, "weight_decay": 0.1, "betas": [0.8, 0.9], "clip_norm": 0.5, "warmup": 0.4}
    asked = config(model_folder, train={"batch_size": 3, "epochs": 2}, optimizer=optimizer)
    trained, trainer = fit(asked)
    assert trainer.global_step == 6

    plain = prepare_model(asked, device="cpu")
    model, num_steps = plain.model, 6
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    assert matrices
    assert vectors
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))
    for number, step in enumerate(plan(asked, SAMPLES, world_size=1)):
        for group in adam.param_groups:
            group["lr"] = 0.01 * ((number + 1) / 3 if number < 3 else (num_steps - number) / 3)
        members = [SAMPLES[one] for micro in step.ranks[0] for row in micro.rows for one in row]
        assert len(members) == (2 if number % 3 == 2 else 3)
        adam.zero_grad()
        tokens = sum(end - start for sample in members for start, end in sample.answers)
        for sample in members:
            (start, end) = sample.answers[0]
            decodes = torch.tensor([[start <= place < end - 1 for place in range(len(sample))]])
            logits = model(input_ids=torch.tensor([sample.ids]), decode_mask=decodes, use_cache=False).logits[0]
            (
                F.cross_entropy(logits[start - 1 : end - 1], torch.tensor(sample.ids[start:end]), reduction="sum")
                / tokens
            ).backward()
        norm = math.sqrt(sum(float((weight.grad**2).sum()) for weight in model.parameters()))
        if norm > 0.5:
            for weight in model.parameters():
                weight.grad *= 0.5 / norm
        adam.step()
    start_weights = load_file(model_folder / "model.safetensors")
    for (name, mine), (_, its) in zip(model.named_parameters(), trained.model.named_parameters(), strict=True):
        torch.testing.assert_close(its, mine, atol=2e-5, rtol=1e-4, msg=name)
        if name in start_weights:
            assert (its - start_weights[name]).abs().max() > 1e-3, name


CUTS: list[dict[str, Any]] = [
    {"micro_batch_size": 2},
    {"micro_batch_size": 3},
    {"micro_batch_size": 8},
    {"pack_length": 40},
    {"pack_length": 200},
]


@pytest.mark.parametrize("lora", [None, {"dropout": 0.0, "targets": "all-linear"}], ids=["full", "lora"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_how_a_step_is_cut_changes_no_gradient(
    model_folder: Path, cut: dict[str, int], lora: dict[str, Any] | None
) -> None:
    found = []
    for train in ({}, cut):
        seen = Seen()
        fit(config(model_folder, train={**train, "max_steps": 1}, lora=lora), callbacks=[seen])
        found.append(seen.gradients[0])
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 4
    for name, expected in found[0].items():
        scale = float(expected.abs().max())
        assert float((found[1][name] - expected).abs().max()) <= 2e-4 * scale, name


def test_recomputing_activations_changes_no_gradient(model_folder: Path) -> None:
    found, recomputed = [], []
    for checkpointing in (False, True):
        seen = Seen()
        asked = config(
            model_folder,
            train={"max_steps": 1},
            lora={"dropout": 0.3},
            objective={"name": "self_distillation"},
            trainer={"gradient_checkpointing": checkpointing},
        )
        prepared, _ = fit(asked, callbacks=[seen])
        found.append(seen.gradients[0])
        recomputed.append(prepared.model.is_gradient_checkpointing)
    assert recomputed == [False, True]
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, msg=name)


def test_all_of_the_model_is_in_training_mode(model_folder: Path) -> None:
    seen = Seen()
    fit(config(model_folder, lora={"dropout": 0.5}), callbacks=[seen])
    assert seen.modes == [{True}, {True}]


def test_dropout_drops_and_its_draws_depend_on_the_seed_and_the_step_alone(model_folder: Path) -> None:
    """Two steps on the same samples, with next to no learning between them."""

    def gradients(dropout: float, before: int) -> list[Tensor]:
        seen = Seen()
        torch.manual_seed(before)
        sections = {"lora": {"dropout": dropout}, "optimizer": {"learning_rate": 1e-9}}
        fit(config(model_folder, train={"batch_size": 8, "epochs": 2}, **sections), callbacks=[seen])
        return [torch.cat([grad.flatten() for grad in of_step.values()]) for of_step in seen.gradients]

    first, again = gradients(0.5, before=1), gradients(0.5, before=2)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    without = gradients(0.0, before=1)
    assert (without[0] - without[1]).abs().max() < 1e-4 * without[0].abs().max()
    for one, other in ((first[0], without[0]), (first[0], first[1])):
        assert (one - other).abs().max() > 1e-2 * one.abs().max()


@pytest.mark.parametrize("limit", [None, 0.25, 1e6])
def test_gradients_are_scaled_down_to_the_limit(model_folder: Path, limit: float | None) -> None:
    seen = Seen()
    _, trainer = fit(config(model_folder, optimizer={"clip_norm": limit}, train={"max_steps": 1}), callbacks=[seen])
    used = math.sqrt(sum(float((gradient**2).sum()) for gradient in seen.gradients[0].values()))
    before = float(trainer.callback_metrics["train/gradient_norm"])
    assert before > 1
    assert used == pytest.approx(0.25 if limit == 0.25 else before, rel=1e-4)


def test_what_is_logged_is_true(model_folder: Path) -> None:
    objective = {"name": "self_distillation", "temperature": 2.0, "label_weight": 0.25}
    asked = config(model_folder, lora={"dropout": 0.0}, objective=objective, train={"max_steps": 1})
    _, trainer = fit(asked)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    mixed = 0.75 * 4 * logged["train/divergence"] + 0.25 * logged["train/cross_entropy"]
    assert logged["train/loss"] == pytest.approx(mixed, rel=1e-5)
    members = [
        SAMPLES[one] for micro in plan(asked, SAMPLES, world_size=1)[0].ranks[0] for row in micro.rows for one in row
    ]
    assert logged["train/answer_tokens"] == sum(sample.num_answer_tokens for sample in members)
    tokens = sum(len(sample) for sample in members)
    assert logged["train/tokens_per_second"] * logged["train/seconds"] == pytest.approx(tokens, rel=1e-4)
    assert logged["train/learning_rate"] == pytest.approx(1e-4)


# --------------------------------------------------------------------------------------------- losses that are none


class Poison(Callback):
    """From a step on, one weight is not a number, or so large that only the gradient is none."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value
        self.before: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.model.model.layers[1].mlp.down_proj.weight[0, 0] = self.value
            self.before = {name: weight.clone() for name, weight in pl_module.model.named_parameters()}


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(-1.5), other.nan_to_num(-1.5))


@pytest.mark.parametrize(("step", "kept"), [(0, "none yet"), (3, "step-000002")])
def test_a_loss_that_is_no_number_stops_the_training(model_folder: Path, tmp_path: Path, step: int, kept: str) -> None:
    poison = Poison(step, math.nan)
    checkpoints = Checkpoints(tmp_path, every=2, num_steps=4, looks=None)
    asked = config(model_folder, train={"batch_size": 2})
    where = kept if step == 0 else str(tmp_path / kept)
    message = f"step {step + 1}: the loss is nan, and no number. The last good checkpoint: {where}. Lower optimizer."
    with pytest.raises(UserError, match=message):
        fit(asked, callbacks=[poison, checkpoints])
    assert poison.before
    assert [path.name for path in sorted(tmp_path.iterdir())] == ([] if step == 0 else [kept])
    if step:
        assert all(bool(value.isfinite().all()) for value in load_file(tmp_path / kept / "model.safetensors").values())


class Spiked(Callback):
    """The gradient of one weight is infinite, from real arithmetic: a factor that overflows on its way back."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.model: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        weight = pl_module.model.model.norm.weight
        weight.register_hook(lambda gradient: gradient * 1e38 * 1e38)
        self.model = pl_module.model
        self.before = {name: value.detach().clone() for name, value in self.model.named_parameters()}


def test_a_gradient_that_is_no_number_stops_it_too_before_a_weight_changes(model_folder: Path) -> None:
    spiked = Spiked()
    with pytest.raises(
        UserError, match="step 1: the gradient's norm is (inf|nan), and no number. The last good checkpoint: none"
    ):
        fit(config(model_folder), callbacks=[spiked])
    for name, value in spiked.model.named_parameters():
        assert torch.equal(value, spiked.before[name]), name


class Lost(Callback):
    """A finite gradient, and an optimizer that makes a weight of it that is not finite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            optimizer.param_groups[0]["params"][0].grad[0, 0] = math.nan  # after the look at the gradient's norm


def test_weights_that_are_no_numbers_get_into_no_checkpoint(model_folder: Path, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=1, num_steps=4, looks=None)
    message = f"step 3: the norm of the trained weights is nan.* The last good checkpoint: {tmp_path / 'step-000002'}."
    with pytest.raises(UserError, match=message):
        fit(config(model_folder, train={"batch_size": 2}), callbacks=[Lost(2), checkpoints])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]
    for kept in tmp_path.iterdir():
        assert all(bool(value.isfinite().all()) for value in load_file(kept / "model.safetensors").values())


def test_weights_are_those_of_the_step_before_the_loss_was_none(model_folder: Path) -> None:
    poison, spy = Poison(1, math.nan), Seen()
    keep: dict[str, Any] = {}

    class Keep(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            keep["model"] = pl_module.model

    with pytest.raises(UserError, match="step 2: the loss is nan"):
        fit(config(model_folder), callbacks=[poison, spy, Keep()])
    assert len(spy.gradients) == 1
    for name, weight in keep["model"].named_parameters():
        assert equal(weight, poison.before[name]), name


def test_the_policy_comes_off_without_a_trace(model_folder: Path, model: Any) -> None:
    prepared, _ = fit(config(model_folder, annealing={"start_window": 30}))
    ids = torch.tensor([TEXT[:40]])
    with torch.no_grad():
        under = prepared.model.eval()(input_ids=ids, use_cache=False).logits
        prepared.handle.remove()
        plain = prepared.model(input_ids=ids, use_cache=False).logits
        with apply_policy(prepared.model, POLICY):
            again = prepared.model(input_ids=ids, use_cache=False).logits
    assert torch.equal(under, again)
    assert not torch.allclose(under, plain)
