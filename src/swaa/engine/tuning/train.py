"""The training itself: Lightning's Trainer around :class:`FineTuner`, from the last checkpoint on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console

from swaa.config import FineTuning
from swaa.engine.grid import context_of
from swaa.engine.trainer import quiet_lightning
from swaa.engine.tuning.checkpoint import Checkpoints, FolderCheckpoints, latest, step_of
from swaa.engine.tuning.data import TrainingSet, TuningData, make_looks, plan, training_set
from swaa.engine.tuning.logs import make_loggers
from swaa.engine.tuning.looks import Looks
from swaa.engine.tuning.module import FineTuner
from swaa.engine.tuning.processes import company
from swaa.engine.tuning.progress import TuningProgress
from swaa.engine.tuning.setup import prepare_model
from swaa.engine.tuning.sharded import Sharded
from swaa.recipe import Decoding, Recipe

_PRECISION: dict[str, Any] = {"none": "32-true", "bfloat16": "bf16-mixed"}


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
        UserError: see :func:`prepare_model`, :func:`training_set`; the loss stopped being a number; another device's
            process failed.
    """
    settings = config.trainer
    start = latest(folder / "checkpoints")
    done = 0 if start is None else step_of(start)
    prepared = prepare_model(config, device="cpu" if settings.devices * settings.num_nodes > 1 else config.model.device)
    context = context_of(prepared.model)
    data = training_set(config.train, prepared.tokenizer, context=context)
    if data.dropped:
        names = ", ".join(data.dropped[:5]) + (", …" if len(data.dropped) > 5 else "")
        console.print(f"{len(data.dropped)} samples are too long and left out: {names}", highlight=False, markup=False)
    if remember is not None:
        remember(data)
    steps = plan(config, data.samples, world_size=settings.devices * settings.num_nodes)
    seen, looks = None, []
    if config.validation is not None:
        recipe = Recipe("policy", config.policy, decoding=config.validation.decoding or Decoding())
        seen = Looks(prepared.tokenizer, config.validation)
        looks = make_looks(config.validation, prepared.tokenizer, recipe, context=context)
    module = FineTuner(prepared.model, prepared.wrapped, prepared.handle, config, num_steps=len(steps), looks=seen)
    loader = TuningData(steps, data.samples, looks, pad=prepared.tokenizer.pad_token_id)
    with quiet_lightning():
        trainer = _trainer(config, folder, console, num_steps=len(steps), done=done)
        try:
            with company(config, trainer, folder / "logs"):
                if start is None and seen is not None:
                    trainer.validate(module, loader, verbose=False)
                if done < len(steps):
                    trainer.fit(module, loader, ckpt_path=start)
        finally:
            prepared.handle.remove()


def _trainer(config: FineTuning, folder: Path, console: Console, *, num_steps: int, done: int) -> Trainer:
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
        accelerator=_accelerator(config.model.device),
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
    """Stops a training that is resumed after it stopped at once."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


def _accelerator(device: str) -> str:
    return "auto" if device == "auto" else device
