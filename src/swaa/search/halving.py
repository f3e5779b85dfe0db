"""Successive halving: candidates by their calibration NLL, then teacher-forced on more samples.

At each stage candidates are points of quality and costs, and whole Pareto fronts go on
(:func:`swaa.search.front.halved`), so that cheap candidates are not thrown out for being cheap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from swaa.config import Experiment, Search
from swaa.engine.evaluation import run_evaluation
from swaa.policies import FullAttention
from swaa.recipe import Recipe
from swaa.search.budget import Costs
from swaa.search.front import Point, halved
from swaa.search.space import Candidate

FULL = "full attention"
"""The name of the recipe that all are compared with."""


@dataclass(frozen=True)
class Scored:
    """A candidate and what is known of it before the test.

    Attributes:
        candidate: the choice.
        costs: predicted.
        calibration_nll: of the right answers of the calibration samples, in nats a token; None for controls.
        validation_nll: the same of the second stage.
        validation_accuracy: share of samples of the second stage whose every answer token was the likeliest.
    """

    candidate: Candidate
    costs: Costs
    calibration_nll: float | None = None
    validation_nll: float | None = None
    validation_accuracy: float | None = None


def recipe_of(search: Search, candidate: Candidate | None) -> Recipe:
    """The recipe of a candidate; None is full attention."""
    name, policy = (FULL, FullAttention()) if candidate is None else (candidate.name, candidate.policy)
    return Recipe(name, policy, decoding=search.decoding)


def after_calibration(scored: Sequence[Scored], keep: float) -> list[Scored]:
    """The candidates that go on after the first stage."""
    return _halved(scored, [_known(one.calibration_nll) for one in scored], keep)


def after_validation(scored: Sequence[Scored], keep: float, metric: str) -> list[Scored]:
    """The candidates that go on to the test."""
    if metric == "accuracy":
        return _halved(scored, [-_known(one.validation_accuracy) for one in scored], keep)
    return _halved(scored, [_known(one.validation_nll) for one in scored], keep)


def validate(search: Search, scored: Sequence[Scored], output: Path, console: Console) -> list[Scored]:
    """Teacher-force candidates on the samples of the second stage.

    Raises:
        UserError, Interrupted: see :func:`run_evaluation`.
    """
    recipes = {recipe_of(search, one.candidate): one for one in scored}
    experiment = Experiment(
        recipes=tuple(recipes),
        tasks=search.calibration.tasks,
        lengths=search.calibration.lengths,
        output=output,
        plugins=search.plugins,
        model=search.model,
        num_examples=search.halving.num_examples,
        seed=search.halving.seed,
        batch_size=search.batch_size,
        scoring=("teacher_forced",),
    )
    rows = run_evaluation(experiment, console=console)
    found = []
    for recipe, one in recipes.items():
        mine = [row for row in rows if row.recipe == recipe.name]
        total = sum(row.n for row in mine)
        nll = sum(_known(row.nll) * row.n for row in mine) / total
        right = sum(row.forced.value * row.n for row in mine if row.forced) / total
        found.append(dataclasses.replace(one, validation_nll=nll, validation_accuracy=right))
    return found


def _halved(scored: Sequence[Scored], losses: Sequence[float], keep: float) -> list[Scored]:
    points: list[Point] = [(loss, *one.costs.point) for loss, one in zip(losses, scored, strict=True)]
    return [scored[place] for place in halved(points, keep)]


def _known(value: float | None) -> float:
    assert value is not None, "the stage has measured it"
    return value
