"""Where metrics go: a CSV file always, TensorBoard and Weights & Biases if asked for."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from swaa.config import FineTuning
from swaa.engine.processes import helps
from swaa.errors import UserError

_INSTALL = {"tensorboard": "pip install 'swaa[tensorboard]'", "wandb": "pip install wandb"}
_RUN = "wandb-run-id"
_PART = "from_step_{:06d}"


def make_loggers(config: FineTuning, folder: Path, done: int) -> list[Any]:
    """The loggers of a training that goes on after ``done`` steps; each part has a file of its own. What former parts
    wrote of later steps is deleted, and TensorBoard is told not to show it. W&B goes on in the same run.

    Raises:
        UserError: a logger's package is not installed.
    """
    wanted = config.trainer.loggers
    for name in wanted:
        if name in _INSTALL and importlib.util.find_spec(name) is None:
            raise UserError(f"trainer.loggers: {name!r} needs the package {name}. Run: {_INSTALL[name]}")
    part = _PART.format(done)
    for stale in () if helps(config) else (folder / "csv").glob("from_step_*"):
        if stale.name >= part:  # of steps that are done again
            shutil.rmtree(stale)
    loggers: list[Any] = [CSVLogger(folder, name="csv", version=part, flush_logs_every_n_steps=1)]
    if "tensorboard" in wanted:
        # all parts are one run, so that a step which an earlier part has, too, is purged from it
        purge = done + 1 if done else 0  # of no step at all even the look before the first one is done again
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version="", purge_step=purge))
    if "wandb" in wanted:
        loggers.append(
            WandbLogger(
                save_dir=folder,
                project="swaa",
                name=config.output.name,
                config=config.to_dict(),
                id=None if helps(config) else run_id(folder),  # the first process alone writes there
                resume="allow",
            )
        )
    return loggers


def run_id(folder: Path) -> str:
    """The name of this training's run at W&B: made once, and kept in the folder."""
    kept = folder / _RUN
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return kept.read_text(encoding="utf-8").strip()


def flush(loggers: Iterable[Any]) -> None:
    """Write out what TensorBoard holds back, for a checkpoint: a resumed training does not log these steps again."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of all parts, one mapping for each step that has any; of a step done twice the later part's."""
    steps: dict[int, dict[str, float]] = {}
    for path in sorted((folder / "csv").glob("from_step_*/metrics.csv")):
        first = int(path.parent.name.rpartition("_")[2])
        steps = {step: values for step, values in steps.items() if step <= first}
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                values = {key: float(value) for key, value in row.items() if value and key not in ("step", "epoch")}
                steps.setdefault(int(row["step"]), {}).update(values)
    return [{"step": step, **values} for step, values in sorted(steps.items())]
