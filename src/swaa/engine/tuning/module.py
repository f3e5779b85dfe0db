"""The Lightning module that fine-tunes a model under a policy: one Lightning batch is one optimizer step."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor

from swaa.config import FineTuning, Optimization
from swaa.engine.decode import now
from swaa.engine.tuning.anneal import annealed
from swaa.engine.tuning.batch import TrainingBatch
from swaa.engine.tuning.checkpoint import Checkpoints
from swaa.engine.tuning.logs import flush
from swaa.engine.tuning.looks import Looks
from swaa.engine.tuning.objective import Losses, compute_losses
from swaa.errors import UserError
from swaa.hf.apply import PolicyHandle
from swaa.hf.lora import adapter_off, check_trainable_state
from swaa.hf.sharding import gather_no_more, shard, whole


@dataclass(frozen=True)
class StepBatch:
    """A device's part of one optimizer step.

    Attributes:
        micros: micro-batches with whether they count; one that does not only keeps the devices in step.
        answer_tokens: of the whole step, over all devices.
    """

    micros: tuple[tuple[TrainingBatch, bool], ...]
    answer_tokens: int

    def to(self, device: torch.device, **options: bool) -> StepBatch:
        """The same on another device. (Lightning moves what has this method.)"""
        return StepBatch(
            tuple((micro.to(device, **options), counts) for micro, counts in self.micros), self.answer_tokens
        )


class FineTuner(LightningModule):
    """Trains the weights that require gradients under the policy.

    The loss of a step is the mean over all its answer tokens, wherever they stand, so that the cutting of a step into
    micro-batches, packs and devices changes nothing but rounding. Random numbers (dropout) are drawn from streams made
    from the seed, the step and the device, so that a resumed training draws what an uninterrupted one would.

    Args:
        model: the transformers model, its adapter inside.
        wrapped: the same model in its PEFT wrapper, or again the model.
        handle: the policy on it.
        config: what is asked for.
        num_steps: optimizer steps of the whole training.
        looks: what is measured in validation; None for nothing.
    """

    def __init__(
        self,
        model: Any,
        wrapped: Any,
        handle: PolicyHandle,
        config: FineTuning,
        *,
        num_steps: int,
        looks: Looks | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.num_steps = num_steps
        self._wrapped = [wrapped]  # in a list, so that its weights are not registered a second time
        self._handle = handle
        self._config = config
        self._looks = looks

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and self.device_mesh is not None:
            # called for each validation and fit: the second time all is done
            shard(self.model, self.device_mesh["data_parallel"], self._config.trainer.mixed_precision)

    def on_fit_start(self) -> None:
        self.train()  # a model is loaded in eval mode, in which nothing drops out and no activation is recomputed

    def configure_optimizers(self) -> Any:
        settings = self._config.optimizer
        trained = self._trained()
        groups = [
            {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=settings.learning_rate, betas=settings.betas
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(settings, step, self.num_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, step: StepBatch, index: int) -> None:
        """One optimizer step.

        Raises:
            UserError: the loss or its gradient is not finite, and the weights are still those of the step before; or
                the step made a weight that is not finite. No checkpoint has any of it.
        """
        number, start = self.global_step, now(self.device)
        optimizer: Any = self.optimizers()
        policy = annealed(self._config.policy, self._config.annealing, number, self.num_steps)
        sums = torch.zeros(4, device=self.device)  # loss, cross entropy, divergence, tokens: of this device
        with self._handle.using(policy):
            for position, (micro, counts) in enumerate(step.micros):
                self._seed(number, position)
                with self._synchronised(position == len(step.micros) - 1):
                    losses = compute_losses(self.model, micro, self._config.objective, self._teaching)
                    # a strategy averages gradients over its devices, and the sum is wanted
                    scale = self.trainer.world_size / step.answer_tokens if counts else 0.0
                    self.manual_backward(losses.total * scale)
                if counts:
                    sums += _parts(losses, micro)
        sums = self._summed(sums)
        means = sums[:3] / step.answer_tokens
        if not bool(torch.isfinite(means).all()):
            raise UserError(self._not_finite(number + 1, "loss", float(means[0])))
        norm = self._clip()
        if not math.isfinite(norm):
            raise UserError(self._not_finite(number + 1, "gradient's norm", norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        size = self._size()
        if not math.isfinite(size):
            raise UserError(self._not_finite(number + 1, "norm of the trained weights", size))
        schedule: Any = self.lr_schedulers()
        rate = schedule.get_last_lr()[0]
        schedule.step()
        seconds = now(self.device) - start
        logged = {
            "train/loss": means[0],
            "train/cross_entropy": means[1],
            "train/gradient_norm": norm,
            "train/learning_rate": rate,
            "train/answer_tokens": float(step.answer_tokens),
            "train/seconds": seconds,
            "train/tokens_per_second": sums[3] / seconds,
        }
        if self._config.objective.distils:
            logged["train/divergence"] = means[2]
        self._log(number + 1, logged)

    def validation_step(self, batch: Any, index: int) -> None:
        assert self._looks is not None
        with self._handle.using(self._config.policy):
            self._looks.see(self.model, batch, self._config.objective, self._teaching)

    def on_validation_epoch_start(self) -> None:
        assert self._looks is not None
        self._looks.begin(self._config.objective)

    def on_validation_epoch_end(self) -> None:
        assert self._looks is not None
        gather_no_more(self.model)
        figures = self._looks.figures(self._summed)
        self._log(self.global_step, {f"validation/{name}": value for name, value in figures.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Only what is trained is kept: the base's weights are where they came from."""
        names = {name for name, weight in self.named_parameters() if weight.requires_grad}
        state = checkpoint["state_dict"]  # of sharded weights, one device has it, and the others have nothing
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in names}
        flush(self.loggers)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse one that would leave a trained weight as it is.

        Raises:
            UserError: its weights are not the trained ones, or have other shapes.
        """
        try:
            check_trainable_state(self, checkpoint["state_dict"])
        except UserError as error:
            raise UserError(f"cannot go on from {self.trainer.ckpt_path}: {error}") from error

    @property
    def strict_loading(self) -> bool:
        """False: a checkpoint holds the trained weights alone; :meth:`on_load_checkpoint` checks them."""
        return False

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        raise AttributeError("strict_loading is fixed")

    def _teaching(self) -> AbstractContextManager[object]:
        """Inside, the model is the teacher: its adapter off, the teacher's composition on, no dropout."""
        stack = contextlib.ExitStack()
        stack.enter_context(adapter_off(self._wrapped[0]))
        stack.enter_context(self._handle.using(self._config.teacher_policy))
        stack.enter_context(_evaluating(self.model))
        return stack

    def _seed(self, step: int, micro: int) -> None:
        stream = random.Random(f"{self._config.seed}/{step}/{self.global_rank}/{micro}")
        torch.manual_seed(stream.getrandbits(63))

    @contextlib.contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        """Gradients are exchanged once a step, in the backward pass of its last micro-batch."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            self.model.set_requires_gradient_sync(last)
            yield
        elif isinstance(strategy, DDPStrategy) and not last:
            wrapper: Any = strategy.model
            with wrapper.no_sync():
                yield
        else:
            yield

    def _log(self, step: int, figures: Mapping[str, Tensor | float]) -> None:
        """Write figures at once, ahead of the checkpoint of their step, and show them to the callbacks."""
        values = {name: float(value) for name, value in figures.items()}
        for logger in self.loggers:
            logger.log_metrics(values, step=step)
        self.log_dict(values, logger=False)

    def _summed(self, values: Tensor) -> Tensor:
        """The sum over all devices."""
        if self.trainer.world_size == 1:
            return values
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")  # NCCL sees its devices only

    def _clip(self) -> float:
        limit = self._config.optimizer.clip_norm
        trained = [weight for weight in self.model.parameters() if weight.grad is not None]
        norm: Any = torch.nn.utils.clip_grad_norm_(trained, math.inf if limit is None else limit)
        return float(whole(norm))

    def _size(self) -> float:
        """The norm of the trained weights: one pass over them, and one number to wait for."""
        norm: Any = torch.nn.utils.get_total_norm([weight.detach() for weight in self._trained()])
        return float(whole(norm))

    def _trained(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def _not_finite(self, step: int, what: str, value: float) -> str:
        trainer: Any = self.trainer
        last = next((kept.last for kept in trainer.callbacks if isinstance(kept, Checkpoints)), None)
        return (
            f"step {step}: the {what} is {value}, and no number. The last good checkpoint: {last or 'none yet'}. Lower "
            "optimizer.learning_rate, clip more (optimizer.clip_norm), or train in float32."
        )


def learning_rate_factor(settings: Optimization, step: int, num_steps: int) -> float:
    """What the learning rate of optimizer step ``step`` (from 0) is multiplied with: a warm-up, then the schedule."""
    warmup = math.ceil(settings.warmup * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    left = (num_steps - step) / max(1, num_steps - warmup)  # from 1 down to 0 after the last step
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[settings.schedule]


def _parts(losses: Losses, micro: TrainingBatch) -> Tensor:
    total = losses.total.detach()
    divergence = torch.zeros_like(total) if losses.divergence is None else losses.divergence
    return torch.stack([total, losses.cross_entropy, divergence, total.new_tensor(micro.num_tokens)])


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
