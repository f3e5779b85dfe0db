"""Fine-tunings of the tiny model, small enough for seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from plants import Write, conversations, write_lines


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "plants.jsonl", conversations())


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(values.get(key), dict)
        values[key] = _merged(values[key], value) if both else value
    return values


@pytest.fixture(scope="session")
def write_config_to(model_folder: Path, data_file: Path) -> Write:
    """Writes a fine-tuning file into a folder: 14 samples, 7 a step, 6 steps; sections are merged into this."""

    def write(folder: Path, name: str = "tune", **changes: Any) -> Path:
        values: dict[str, Any] = {
            "policy": "(SlidingWindow(12) | SinkTokens(2)).in_phase('prefill').on_layers('::2')",
            "model": {"name": str(model_folder), "device": "cpu", "dtype": "float32"},
            "train": {"files": [str(data_file)], "batch_size": 7, "micro_batch_size": 4, "epochs": 3},
            "trainer": {"checkpoint_every": 2},
            "output": str(folder / name),
        }
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(_merged(values, changes), indent=1), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_config(tmp_path: Path, write_config_to: Write) -> Write:
    """The same, into the folder of the test."""
    return partial(write_config_to, tmp_path)
