"""Where metrics go: a CSV file always, TensorBoard and Weights & Biases if asked for."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from swaa.config import FineTuning
from swaa.engine.tuning.processes import helps
from swaa.errors import UserError

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
_PART = "from_step_{:06d}"


def make_loggers(config: FineTuning, folder: Path, done: int) -> list[Any]:
    """The loggers of a training that goes on after ``done`` steps; each part has a file of its own. What former parts
    wrote of later steps is deleted.

    Raises:
        UserError: a logger's package is not installed.
    """
    wanted = config.trainer.loggers
    for name in wanted:
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"trainer.loggers: {name!r} needs the package {package}. Run: pip install {package}")
    part = _PART.format(done)
    for stale in () if helps() else (folder / "csv").glob("from_step_*"):
        if stale.name >= part:  # of steps that are done again
            shutil.rmtree(stale)
    loggers: list[Any] = [CSVLogger(folder, name="csv", version=part, flush_logs_every_n_steps=1)]
    if "tensorboard" in wanted:
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=part))
    if "wandb" in wanted:
        loggers.append(WandbLogger(save_dir=folder, project="swaa", name=config.output.name, config=config.to_dict()))
    return loggers


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
