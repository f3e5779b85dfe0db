"""Loggers over several parts of one training: every step once, and all of them on the disk with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from plants import Write
from swaa.config import load_finetuning
from swaa.engine.tuning import run_finetuning
from swaa.engine.tuning.checkpoint import FolderCheckpoints
from swaa.engine.tuning.logs import make_loggers, run_id

pytest.importorskip("tensorboard")


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value), as TensorBoard shows them; there is one run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = {path.parent for path in folder.rglob("events.*")}
    events = EventAccumulator(str(run)).Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


@pytest.mark.parametrize("done", [0, 2, 4])
def test_tensorboard_shows_no_step_twice_after_a_resume(write_config: Write, tmp_path: Path, done: int) -> None:
    """Cut off after step 5, whose last checkpoint is of step ``done``; 0 is none, and all is done again."""
    config = load_finetuning(write_config(trainer={"loggers": ["csv", "tensorboard"]}))
    for part, steps in ((0, range(6)), (done, range(done + 1 if done else 0, 7))):
        board = make_loggers(config, tmp_path, part)[1]
        for step in steps:
            board.log_metrics({"loss": step + part / 100}, step=step)
        board.finalize("success")
    expected = [(step, round(step + (done / 100 if step > done else 0.0), 4)) for step in range(7)]
    assert scalars(tmp_path / "tensorboard", "loss") == expected


def test_what_was_logged_is_on_the_disk_with_the_checkpoint(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_finetuning(write_config(trainer={"loggers": ["csv", "tensorboard"]}))
    seen: list[list[int]] = []
    save = FolderCheckpoints.save_checkpoint

    def watched(self: Any, *args: Any, **options: Any) -> None:
        found = scalars(config.output / "logs" / "tensorboard", "train/loss")
        seen.append([step for step, _ in found])
        save(self, *args, **options)

    monkeypatch.setattr(FolderCheckpoints, "save_checkpoint", watched)
    assert run_finetuning(config, console=Console(quiet=True)) is not None
    assert seen == [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]


def test_a_training_keeps_the_name_of_its_run(tmp_path: Path) -> None:
    name = run_id(tmp_path / "one")
    assert name
    assert run_id(tmp_path / "one") == name
    assert run_id(tmp_path / "two") != name
