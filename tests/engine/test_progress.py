from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from swaa.config import load_experiment
from swaa.engine import run_experiment

SMALL = ["num_examples=1", "lengths=[400]"]


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def test_a_log_file_gets_a_line_per_recipe(experiment_file: Path, screen: io.StringIO) -> None:
    run_experiment(load_experiment(experiment_file, SMALL), console=Console(file=screen))
    assert screen.getvalue().splitlines() == [
        "0 of 6 samples done; now: FA",
        "2 of 6 samples done; now: swa",
        "4 of 6 samples done; now: half",
    ]


def test_what_a_former_run_did_counts(experiment_file: Path, screen: io.StringIO) -> None:
    run_experiment(load_experiment(experiment_file, SMALL), console=Console(file=io.StringIO()))
    more = load_experiment(experiment_file, ["num_examples=2", "lengths=[400]"])
    run_experiment(more, console=Console(file=screen))
    assert screen.getvalue().splitlines()[0] == "6 of 12 samples done; now: FA"


def test_a_terminal_gets_a_bar_with_the_time_left(experiment_file: Path, screen: io.StringIO) -> None:
    run_experiment(
        load_experiment(experiment_file, SMALL), console=Console(file=screen, force_terminal=True, width=120)
    )
    assert "6/6" in screen.getvalue()
    assert "left" in screen.getvalue()
