"""A progress bar over the whole grid, with the time that is left; in a log file, a line per recipe."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from swaa.engine.batch import Batch


def make_progress(console: Console) -> Progress:
    """A bar with the time it took and the time that is left; none where the console is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def print_line(console: Console, line: str) -> None:
    """A line of a log: not broken, not coloured, and its brackets are no markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class GridProgress(Callback):
    """Counts samples of the grid; those of a former run count as done.

    Args:
        total: samples of the grid.
        done: samples on record already.
        console: where to draw; where it is no terminal, one line is printed as each recipe begins.
    """

    def __init__(self, *, total: int, done: int, console: Console) -> None:
        self._progress = make_progress(console)
        self._recipe = ""
        self._bar = self._progress.add_task("samples", total=total, completed=done)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress.start()

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch.recipe.name == self._recipe:
            return
        self._recipe = batch.recipe.name
        self._progress.update(self._bar, description=self._recipe)
        if not self._progress.console.is_terminal:
            bar = self._progress.tasks[self._bar]
            line = f"{bar.completed:.0f} of {bar.total:.0f} samples done; now: {self._recipe}"
            print_line(self._progress.console, line)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch.counts:
            self._progress.advance(self._bar, len(batch.samples) * len(batch.generations) * trainer.world_size)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._progress.stop()
