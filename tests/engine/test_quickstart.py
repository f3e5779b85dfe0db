"""The quickstart's recipes on the real model, at reduced size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from swaa.config import load_experiment
from swaa.engine import run_experiment

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


BEST = "sink 10 + FA decode + 1/2 FA layers"
WEAK = ("naive SWA", "FA decode", "1/2 FA layers")


@pytest.mark.slow
def test_the_order_of_the_paper_shows_on_the_real_model(smollm2: Path, tmp_path: Path) -> None:
    """Four teacher-forced samples: each single method loses the answer, the three together nearly keep it.

    Compared by nats per answer token, which tell more of four samples than right and wrong do.
    """
    changes = [f"model.name={smollm2}", "scoring=[teacher_forced]", "num_examples=4", "batch_size=4", "lengths=[450]"]
    experiment = load_experiment(QUICKSTART, changes, output=tmp_path)
    chosen = tuple(recipe for recipe in experiment.recipes if recipe.name in ("FA", BEST, *WEAK))
    rows = run_experiment(dataclasses.replace(experiment, recipes=chosen))
    nll = {row.recipe: row.nll or 0.0 for row in rows}
    assert nll.keys() == {"FA", BEST, *WEAK}
    assert nll[BEST] < nll["FA"] + 0.2
    assert all(nll[name] > nll["FA"] + 0.4 for name in WEAK)
