"""Several devices from a session in which a user types."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from plants import Write
from swaa.config import load_finetuning
from swaa.engine.tuning import run_finetuning
from swaa.engine.tuning.interactive import refuse_several_devices
from swaa.errors import UserError


@pytest.mark.parametrize("changes", [["trainer.devices=2"], ["trainer.num_nodes=3"]])
def test_several_devices_are_refused_in_a_notebook(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str]
) -> None:
    monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)
    config = load_finetuning(write_config(), changes)
    count = changes[0][-1]
    with pytest.raises(UserError, match=f"^trainer: {count} devices need .* run: swaa finetune FILE"):
        run_finetuning(config, console=Console(quiet=True))
    assert not (tmp_path / "tune" / "checkpoints").exists()
    assert not (tmp_path / "tune" / "logs").exists()


def test_one_device_is_not(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)
    config = load_finetuning(write_config(), ["train.max_steps=1"])
    outcome = run_finetuning(config, console=Console(quiet=True))
    assert outcome is not None
    assert [row["step"] for row in outcome.metrics] == [1]


def test_nor_are_several_on_the_command_line(write_config: Write) -> None:
    config = load_finetuning(write_config(), ["trainer.devices=2"])
    assert not hasattr(sys, "ps1")
    refuse_several_devices(config)  # raises nothing; tests/engine/tuning/test_scale.py trains on two
