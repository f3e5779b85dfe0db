"""The grid of an experiment from beginning to end: load, run what is not on record, write the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from swaa.config import Experiment
from swaa.engine.description import describe, told
from swaa.engine.evaluator import Evaluator
from swaa.engine.folder import RunFolder
from swaa.engine.grid import GridData, check_recipes, context_of, grid_keys, make_chunks, sample_key
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.progress import GridProgress
from swaa.engine.samples import make_samples
from swaa.engine.trainer import BatchWriter, predict
from swaa.hf.loading import load
from swaa.policies import FullAttention
from swaa.report import Record, Row, summarise

Train = Callable[[Experiment, Console], Mapping[str, Path]]
"""Trains what an experiment's recipes ask for; the folders of the weights, by the hash of the recipe."""


def run_evaluation(
    experiment: Experiment, *, fresh: bool = False, console: Console | None = None, train: Train | None = None
) -> list[Row]:
    """Run what the experiment's folder does not hold yet, and write its tables.

    Args:
        experiment: what to run.
        fresh: delete the folder's former results first.
        console: where progress is drawn (default: standard error, if it is a terminal).
        train: called before anything is evaluated, inside the folder's lock; None where no recipe is fine-tuned.

    Returns:
        One row per task, length and recipe, in the experiment's order.

    Raises:
        UserError: see :class:`RunFolder`, :func:`swaa.hf.loading.load`, :func:`make_samples`.
        Interrupted: Ctrl-C; the samples that ended are kept.
    """
    for task in experiment.tasks:
        task.grader.check()
    console = console or Console(stderr=True)
    with RunFolder(experiment, fresh=fresh) as folder:
        try:
            with stoppable():
                records = _finished(experiment, folder)
                if records is None:  # otherwise the model need not be loaded
                    weights = {} if train is None else train(experiment, console)
                    records = _run_grid(experiment, folder, weights, console)
        except StopRequested:
            raise Interrupted(
                f"Interrupted; {len(folder.records())} finished samples are kept in {folder.path}. "
                "Run the same command again to go on from there."
            ) from None
        rows = summarise(records)
        folder.write_tables(rows)
        description = folder.description()
        if description is not None:
            folder.describe({**description, "status": "finished"})
    return rows


def _run_grid(experiment: Experiment, folder: RunFolder, weights: Mapping[str, Path], console: Console) -> list[Record]:
    """Run the samples that are not on record; the records of all samples of the grid."""
    model, tokenizer = _load(experiment, None)
    check_recipes(experiment, model)
    asked = make_samples(experiment, tokenizer, context=context_of(model))
    for line in told(asked.dropped):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    description = describe(experiment, model, asked)
    folder.write_samples(asked.samples)
    folder.describe(description)
    chunks = make_chunks(experiment, asked.samples, folder.finished(), generations=experiment.num_generations)
    total = description["asked"]
    left = sum(len(chunk.samples) * len(chunk.generations) for chunk in chunks)
    progress = GridProgress(total=total, done=total - left, console=console)
    loaded = None
    for wanted, some in groupby(chunks, key=lambda chunk: weights.get(chunk.recipe.hash)):
        if wanted != loaded:
            del model
            model, _ = _load(experiment, wanted)
            loaded = wanted
        evaluator = Evaluator(model, tokenizer, experiment)
        data = GridData(list(some), pad=tokenizer.pad_token_id)
        try:
            predict(evaluator, data, model.device, [BatchWriter(folder.append), progress])
        finally:
            evaluator.restore()
        del evaluator, data
    keys = {
        sample_key(recipe, sample, generation)
        for recipe in experiment.recipes
        for sample in asked.samples
        if sample.prompting == recipe.prompting
        for generation in range(experiment.num_generations)
    }
    return [record for record in _asked_for(experiment, folder.records()) if record.key in keys]


def _load(experiment: Experiment, folder: Path | None) -> tuple[Any, Any]:
    """The experiment's model and tokenizer, with the weights of a folder or, without one, its own."""
    config = experiment.model
    name = config.name if folder is None else str(folder)
    return load(name, FullAttention(), dtype=config.dtype, device=config.device)


def _asked_for(experiment: Experiment, records: list[Record]) -> list[Record]:
    """The records of the experiment's tasks, lengths and recipes, in this order, under the names of now."""
    cells: dict[tuple[str, int, str], list[Record]] = {
        (task.label, length, recipe.hash): []
        for task in experiment.tasks
        for length in experiment.lengths
        for recipe in experiment.recipes
    }
    names = {recipe.hash: recipe.name for recipe in experiment.recipes}
    for record in records:
        cell = cells.get((record.task, record.length, record.recipe_hash))
        if cell is not None:
            cell.append(dataclasses.replace(record, recipe=names[record.recipe_hash]))
    return [record for cell in cells.values() for record in cell]


def _finished(experiment: Experiment, folder: RunFolder) -> list[Record] | None:
    """The records of the experiment's very examples, or None where one is missing or only the samples would tell.

    Examples are known by their ids, which change with the text of a task's file.
    """
    keys = grid_keys(experiment, generations=experiment.num_generations)
    if keys is None or folder.description() is None:
        return None
    grid = set(keys)
    chosen = [record for record in _asked_for(experiment, folder.records()) if record.key in grid]
    return chosen if {record.key for record in chosen} == grid else None
