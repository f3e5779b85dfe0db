"""Checkpoints: a folder each, whole or not there at all.

model.safetensors   the weights that are trained, by name
state.pt            all else that an exact resume needs: optimizer, schedule, progress; plain values and tensors
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from swaa.errors import UserError

WEIGHTS, STATE = "model.safetensors", "state.pt"
KEPT = 2
"""Checkpoints that are kept beside the best one."""
_NAME = re.compile(r"step-(\d+)")


class FolderCheckpoints(CheckpointIO):
    """Writes and reads Lightning's checkpoints as folders with safetensors."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write all, flush it to the disk, and give it its name last, so that a kill leaves no half checkpoint."""
        target = Path(path)
        rest = dict(checkpoint)
        weights = {name: value.detach().contiguous().clone() for name, value in rest.pop("state_dict").items()}
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / WEIGHTS)
        torch.save(rest, partial / STATE)
        for path in (partial / WEIGHTS, partial / STATE, partial):
            _flush(path)
        former = _former(target)
        if target.exists():  # one of the two is there at any moment, whole
            shutil.rmtree(former, ignore_errors=True)
            target.rename(former)
        partial.rename(target)
        _flush(target.parent)
        shutil.rmtree(former, ignore_errors=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it back; nothing in it is executed.

        Raises:
            UserError: a file is missing or damaged; it is named.
        """
        folder = Path(path)
        try:
            rest: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            return {**rest, "state_dict": load_file(folder / WEIGHTS)}
        except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"damaged checkpoint {folder}: {reason}. Delete this folder to resume from the one before it."
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)


class Checkpoints(Callback):
    """Saves every few steps and at the end, keeps the last ones, and the best by validation loss beside them.

    Args:
        folder: where they go, as ``step-000040``, and ``best``.
        every: optimizer steps.
        num_steps: of the whole training.
        looks: optimizer steps between two validations; None for none. There is one after the last step, too, and a
            checkpoint waits for the validation of its step, so that a resumed training has seen what this one saw.
    """

    def __init__(self, folder: Path, *, every: int, num_steps: int, looks: int | None) -> None:
        self._folder = folder
        self._every = every
        self._num_steps = num_steps
        self._looks = looks
        self._best: float | None = None
        self._saved: int | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._num_steps:
            trainer.should_stop = True  # which makes Lightning validate once more
        if self._looks is None or (step % self._looks and step != self._num_steps):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("validation/loss")
        if trainer.state.fn != "fit" or loss is None:
            return
        if self._best is None or float(loss) < self._best:
            self._best = float(loss)
            trainer.save_checkpoint(self._folder / "best")
        if trainer.should_stop:  # early: from here, and not from the end, a training with more patience goes on
            self._save(trainer, trainer.global_step)
        else:
            self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved != trainer.global_step:  # stopped early; all devices have to agree, so none looks at the disk
            self._save(trainer, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    @property
    def last(self) -> Path | None:
        """The latest checkpoint."""
        return latest(self._folder)

    def _save_if_due(self, trainer: Trainer) -> None:
        if trainer.global_step % self._every == 0 or trainer.global_step == self._num_steps:
            self._save(trainer, trainer.global_step)

    def _save(self, trainer: Trainer, step: int) -> None:
        trainer.save_checkpoint(self._path(step))
        self._saved = step
        if trainer.is_global_zero:
            for old in _by_step(self._folder)[:-KEPT]:
                shutil.rmtree(old)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"


def latest(folder: Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    return next(iter(reversed(_by_step(folder))), None)


def best(folder: Path) -> Path | None:
    """The checkpoint with the best validation loss, or None."""
    return named(folder, "best")


def named(folder: Path, name: str) -> Path | None:
    """The checkpoint of this name, or None; the one that it was to replace, if a kill came between the two."""
    path = folder / name
    return next((one for one in (path, _former(path)) if one.is_dir()), None)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps that went into a checkpoint."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights by name, on the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(checkpoint / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"damaged checkpoint {checkpoint}: {error}. Resume from another one.") from error


def _former(checkpoint: Path) -> Path:
    """Where the one that is replaced stays until the new one has its name."""
    return checkpoint.with_name(f".{checkpoint.name}.former")


def _flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _by_step(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=step_of)
