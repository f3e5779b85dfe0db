"""A progress bar over the optimizer steps; in a log file, a line now and then."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from swaa.engine.progress import make_progress, print_line

_SECONDS_BETWEEN_LINES = 30.0


class TuningProgress(Callback):
    """Counts optimizer steps and shows the loss, and what each look shows.

    Args:
        console: where to draw; where it is no terminal, lines are printed at most every half minute.
        num_steps: of the whole training.
        done: steps of a former run.
    """

    def __init__(self, console: Console, *, num_steps: int, done: int) -> None:
        self._progress = make_progress(console)
        self._console = console
        self._num_steps = num_steps
        self._bar = self._progress.add_task("step", total=num_steps, completed=done)
        self._printed = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        step, figures = trainer.global_step, trainer.callback_metrics
        said = f"loss {float(figures['train/loss']):.4f}"
        self._progress.update(self._bar, completed=step, description=said)
        if not self._console.is_terminal and time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            speed = float(figures["train/tokens_per_second"])
            print_line(self._progress.console, f"step {step} of {self._num_steps}: {said}, {speed:.0f} tokens/s")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            seen = {
                name.removeprefix("validation/"): float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("validation/")
            }
            print_line(
                self._progress.console,
                f"after step {trainer.global_step}: " + ", ".join(f"{k} {v:.4f}" for k, v in seen.items()),
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._progress.stop()
