"""An experiment from beginning to end: train the weights that its recipes ask for, and evaluate."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from swaa.config import Experiment
from swaa.config.tuned import fine_tuning_of
from swaa.engine.evaluation import check_asked, run_evaluation
from swaa.engine.processes import from_outside, helps
from swaa.engine.tuning.folder import MERGED
from swaa.engine.tuning.run import run_finetuning
from swaa.errors import UserError
from swaa.report import Row


def run_experiment(experiment: Experiment, *, fresh: bool = False, console: Console | None = None) -> list[Row]:
    """Train and evaluate what the experiment's folder does not hold yet, and write its tables.

    Arguments, result and errors as of :func:`run_evaluation`; and those of :func:`run_finetuning`.
    """
    return run_evaluation(experiment, fresh=fresh, console=console, train=train_recipes)


def train_recipes(experiment: Experiment, console: Console, fresh: bool = False) -> dict[str, Path]:
    """Train what is not trained yet, in the first process; the folder of the merged weights, by the hash of the recipe.

    Recipes with one policy and one training share their weights. A training that was interrupted goes on from its last
    checkpoint. Before the first one begins, the evaluation is checked, so that a mistake in it costs no training.

    Args:
        experiment: its recipes name their trainings.
        console: where progress is drawn.
        fresh: train anew what is trained already.

    Raises:
        UserError: something else than swaa starts the processes, and the weights are not there yet.
        UserError, Interrupted: see :func:`check_asked` and :func:`run_finetuning`.
    """
    folders: dict[str, Path] = {}
    done: dict[Path, Path] = {}
    checked = False
    for recipe in experiment.recipes:
        if recipe.fine_tuning is None:
            continue
        config = fine_tuning_of(experiment, recipe)
        merged = config.output / MERGED
        if from_outside(experiment) and not merged.exists():
            raise UserError(
                f"recipe {recipe.name!r}: its weights are not trained yet, and processes that something else starts "
                f"cannot train them in turn. Run it first without a launcher, with trainer.devices=1."
            )
        if helps(experiment) or from_outside(experiment):  # the first process has trained, or a former run
            done[config.output] = merged
        elif config.output not in done:
            if not checked and (fresh or not merged.exists()):
                check_asked(experiment)
                checked = True
            console.print(f"Weights of {recipe.name}: {config.output}", highlight=False, markup=False, soft_wrap=True)
            outcome = run_finetuning(config, fresh=fresh, console=console)
            assert outcome is not None  # only the helpers of a distributed training have none
            done[config.output] = outcome.merged
        folders[recipe.hash] = done[config.output]
    return folders
