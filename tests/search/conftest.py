"""A search on a tiny model of four layers, and the folder that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.conftest import make_model, make_tokenizer
from swaa.config import load_search
from swaa.search.run import run_search

SEARCH = """
model: {{name: {model}, device: cpu}}
calibration: {{tasks: [{{name: needle_single}}], length: 400, num_examples: 2}}
space: {{windows: [16], sinks: [4], phases: [both], counts: [0, 1, 2, 4]}}
scorers: [add_one, {{name: drop_one, metric: kl}}]
budget: {{max_kv_share: 0.6}}
halving: {{num_examples: 2, keep: 0.4}}
controls: {{patterns: ["::2"], random: 1}}
test: {{tasks: [{{name: needle_single}}], lengths: [400], num_examples: 3, seed: 7}}
decoding: {{max_new_tokens: 2}}
"""


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the search."""
    folder = tmp_path_factory.mktemp("search")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    path = folder / "tiny.yaml"
    path.write_text(SEARCH.format(model=folder / "model"))
    return path


@pytest.fixture(scope="session")
def done(file: Path) -> Path:
    """The folder of the search, which has ended. Tests that change it copy it."""
    folder = file.parent / "done"
    run_search(load_search(file, output=folder))
    return folder
