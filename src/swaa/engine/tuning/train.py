"""The training itself: Lightning's Trainer around :class:`FineTuner`, from the last checkpoint on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console

from swaa.config import FineTuning
from swaa.engine.grid import context_of
from swaa.engine.processes import company
from swaa.engine.trainer import quiet_lightning
from swaa.engine.tuning.checkpoint import Checkpoints, FolderCheckpoints, latest, step_of
from swaa.engine.tuning.data import TrainingSet, TuningData, make_looks, plan, training_set
from swaa.engine.tuning.figures import check_evaluation
from swaa.engine.tuning.interactive import refuse_several_devices
from swaa.engine.tuning.logs import make_loggers
from swaa.engine.tuning.looks import Look, Looks
from swaa.engine.tuning.module import FineTuner
from swaa.engine.tuning.progress import TuningProgress
from swaa.engine.tuning.setup import Prepared, prepare_model
from swaa.engine.tuning.sharded import Sharded
from swaa.engine.tuning.steps import Step
from swaa.recipe import Recipe

_PRECISION: dict[str, Any] = {"none": "32-true", "bfloat16": "bf16-mixed"}


@dataclass(frozen=True)
class _Ready:
    """All that a training needs, checked: the model, what it learns from step by step, and what is looked at."""

    prepared: Prepared
    data: TrainingSet
    steps: Sequence[Step]
    seen: Looks | None
    looks: Sequence[Look]


def check(config: FineTuning) -> TrainingSet:
    """Find what is wrong with a training and its evaluation before anything takes minutes; the samples.

    Raises:
        UserError: as of :func:`train`, before its first step.
    """
    refuse_several_devices(config)
    ready = _get_ready(config, "cpu")
    ready.prepared.handle.remove()
    return ready.data


def train(
    config: FineTuning, folder: Path, console: Console, *, remember: Callable[[TrainingSet], None] | None = None
) -> None:
    """Train to the end, or from the last checkpoint of ``folder`` to the end. Every device's process calls this.

    Args:
        config: what is asked for.
        folder: of checkpoints and logs.
        console: where progress is drawn.
        remember: gets the samples before the first step.

    Raises:
        UserError: see :func:`prepare_model`, :func:`training_set`, :func:`check_evaluation`; the loss stopped being a
            number; another device's process failed.
    """
    refuse_several_devices(config)
    settings = config.trainer
    start = latest(folder / "checkpoints")
    done = 0 if start is None else step_of(start)
    ready = _get_ready(config, "cpu" if settings.devices * settings.num_nodes > 1 else config.model.device)
    prepared, data, steps = ready.prepared, ready.data, ready.steps
    if data.dropped:
        names = ", ".join(data.dropped[:5]) + (", …" if len(data.dropped) > 5 else "")
        console.print(f"{len(data.dropped)} samples are too long and left out: {names}", highlight=False, markup=False)
    if remember is not None:
        remember(data)
    module = FineTuner(
        prepared.model, prepared.wrapped, prepared.handle, config, num_steps=len(steps), looks=ready.seen
    )
    loader = TuningData(steps, data.samples, ready.looks, pad=prepared.tokenizer.pad_token_id)
    accelerator = _accelerator(config, prepared.model.device)
    with quiet_lightning():
        trainer = _trainer(config, folder, console, num_steps=len(steps), done=done, accelerator=accelerator)
        try:
            with company(config, trainer, folder / "logs", command="finetune"):
                if start is None and ready.seen is not None:
                    trainer.validate(module, loader, verbose=False)
                if done < len(steps):
                    trainer.fit(module, loader, ckpt_path=start)
        finally:
            prepared.handle.remove()


def _get_ready(config: FineTuning, device: str) -> _Ready:
    """Load, tokenise, plan, and check all of it."""
    prepared = prepare_model(config, device=device)
    context, tokenizer = context_of(prepared.model), prepared.tokenizer
    data = training_set(config.train, tokenizer, context=context)
    steps = plan(config, data.samples, world_size=config.trainer.devices * config.trainer.num_nodes)
    seen, looks = None, []
    if config.validation is not None:
        recipe = Recipe("policy", config.policy, decoding=config.validation.decoding)
        seen = Looks(tokenizer, config.validation)
        looks = make_looks(config.validation, tokenizer, recipe, context=context)
    check_evaluation(config, tokenizer, context=context)
    return _Ready(prepared, data, steps, seen, looks)


def _trainer(
    config: FineTuning, folder: Path, console: Console, *, num_steps: int, done: int, accelerator: str
) -> Trainer:
    settings, wanted = config.trainer, config.validation
    looks = None if wanted is None else min(wanted.every, num_steps)
    callbacks: list[Any] = [TuningProgress(console, num_steps=num_steps, done=done)]
    if wanted is not None and wanted.patience is not None:
        callbacks.append(
            _EarlyStopping(
                "validation/loss",
                mode="min",
                patience=wanted.patience,
                min_delta=wanted.min_delta,
                check_on_train_epoch_end=False,
                check_finite=False,
            )
        )
    # the last of them, so that what it saves holds what the others have seen
    callbacks.append(
        Checkpoints(folder / "checkpoints", every=settings.checkpoint_every, num_steps=num_steps, looks=looks)
    )
    sharded = settings.strategy == "fsdp2"
    return Trainer(
        accelerator=accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=Sharded(settings.devices * settings.num_nodes) if sharded else settings.strategy,
        precision="32-true" if sharded else _PRECISION[settings.mixed_precision],
        max_epochs=1,
        val_check_interval=looks,
        check_val_every_n_epoch=None,
        limit_val_batches=0 if wanted is None else None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=make_loggers(config, folder / "logs", done),
        callbacks=callbacks,
        plugins=[FolderCheckpoints()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )


class _EarlyStopping(EarlyStopping):
    """Stops a training that is resumed after it stopped at once, unless there is more patience now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


def _accelerator(config: FineTuning, device: torch.device) -> str:
    """Lightning's name of the device that the model is on, or goes to where each process has its own."""
    if config.trainer.devices * config.trainer.num_nodes == 1:
        return device.type
    if config.model.device == "auto":  # as :func:`swaa.hf.loading.load` takes it; Lightning's own might be MPS
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.model.device
