"""Lightning's predict loop as our runs use it: quiet, on the model's device, each batch written as it ends."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

_NOISE = (
    ".*does not have many workers.*",  # batches are made faster than a worker starts
    ".*Couldn't infer the batch indices.*",  # our batches name their samples themselves
    ".*GPU available but not used.*",
    ".*sync_dist=True.*",  # our figures are the same on all devices
    ".*your dataloader is not resumable.*",  # ours goes on by itself
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
)


def predict(module: LightningModule, data: LightningDataModule, device: Any, callbacks: Sequence[Callback]) -> None:
    """Run every batch of ``data`` through ``module`` on ``device``; what comes of them is the callbacks' to keep."""
    with quiet_lightning():
        devices = 1 if device.index is None else [device.index]
        trainer = make_trainer(callbacks, accelerator=device.type, devices=devices)
        trainer.predict(module, data, return_predictions=False)


def make_trainer(callbacks: Sequence[Callback], **where: Any) -> Trainer:
    """Lightning's trainer with the predict loop as our runs use it; ``where`` goes to it as it is."""
    return Trainer(
        **where,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # our data module deals the batches out
        inference_mode=False,  # masks outlive a batch, and inference tensors cannot be trained through
        callbacks=list(callbacks),
    )


class BatchWriter(BasePredictionWriter):
    """Hands what came of every batch to ``append`` as the batch ends."""

    def __init__(self, append: Callable[[list[Any]], None]) -> None:
        super().__init__(write_interval="batch")
        self._append = append

    def write_with(self, append: Callable[[list[Any]], None]) -> None:
        """Hand what comes from now on to this one."""
        self._append = append

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Any],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self._append(prediction)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's lines on accelerators and workers, which say nothing about a run of ours."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
