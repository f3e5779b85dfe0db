"""The quickstart's recipes on the real model, at reduced size."""

from __future__ import annotations

from pathlib import Path

import pytest

from swaa.config import load_experiment
from swaa.engine import run_experiment

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


@pytest.mark.slow
def test_the_order_of_the_paper_shows_on_the_real_model(smollm2: Path, tmp_path: Path) -> None:
    """Six samples of 500 tokens: full attention answers, naive SWA and each single method do not, and sinks, FA
    decode and half the layers together come near full attention."""
    changes = [f"model.name={smollm2}", "lengths=[500]", "num_examples=6", "batch_size=6"]
    experiment = load_experiment(QUICKSTART, changes, output=tmp_path)
    rows = {row.recipe: row for row in run_experiment(experiment)}
    best = rows["sink 10 + FA decode + 1/2 FA layers"]
    weak = [rows[name] for name in ("naive SWA", "sink 10", "FA decode", "1/2 FA layers")]
    full = rows["FA"]
    assert full.accuracy is not None
    assert full.nll is not None
    assert best.nll is not None
    assert full.accuracy.value >= 0.5
    for row in weak:
        assert row.nll is not None
        assert row.nll > 2 * max(full.nll, best.nll) + 0.5
