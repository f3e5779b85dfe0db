"""An experiment from beginning to end: load, run the grid, write the tables."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from swaa.config import Experiment
from swaa.engine.evaluator import Evaluator
from swaa.engine.folder import RunFolder
from swaa.engine.grid import GridData, check_recipes, context_of, grid_keys, make_chunks, make_samples, sample_key
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.progress import GridProgress
from swaa.engine.trainer import BatchWriter, predict
from swaa.hf.loading import load
from swaa.policies import FullAttention
from swaa.report import Record, Row, summarise


def run_experiment(experiment: Experiment, *, fresh: bool = False, console: Console | None = None) -> list[Row]:
    """Run what the experiment's folder does not hold yet, and write its tables.

    Args:
        experiment: what to run.
        fresh: delete the folder's former results first.
        console: where progress is drawn (default: standard error, if it is a terminal).

    Returns:
        One row per task, length and recipe, in the experiment's order.

    Raises:
        UserError: see :class:`RunFolder`, :func:`swaa.hf.loading.load`, :func:`make_samples`.
        Interrupted: Ctrl-C; the samples that ended are kept.
    """
    with RunFolder(experiment, fresh=fresh) as folder:
        try:
            with stoppable():
                records = _finished(experiment, folder.records())
                if records is None:  # otherwise the model need not be loaded
                    records = _run_grid(experiment, folder, console or Console(stderr=True))
        except StopRequested:
            raise Interrupted(
                f"Interrupted; {len(folder.records())} finished samples are kept in {folder.path}. "
                "Run the same command again to go on from there."
            ) from None
        rows = summarise(records)
        folder.write_tables(rows)
    return rows


def _run_grid(experiment: Experiment, folder: RunFolder, console: Console) -> list[Record]:
    """Run the samples that are not on record; the records of all samples of the grid."""
    config = experiment.model
    model, tokenizer = load(config.name, FullAttention(), dtype=config.dtype, device=config.device)
    check_recipes(experiment, model)
    samples = make_samples(experiment, tokenizer, context=context_of(model))
    chunks = make_chunks(experiment, samples, folder.finished())
    left = sum(len(chunk.samples) for chunk in chunks)
    progress = GridProgress(total=experiment.num_samples, done=experiment.num_samples - left, console=console)
    if chunks:
        evaluator = Evaluator(model, tokenizer, experiment)
        data = GridData(chunks, pad=tokenizer.pad_token_id)
        try:
            predict(evaluator, data, model.device, [BatchWriter(folder.append), progress])
        finally:
            evaluator.restore()
    grid = {sample_key(recipe, sample) for recipe in experiment.recipes for sample in samples}
    return [record for record in _asked_for(experiment, folder.records()) if record.key in grid]


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


def _finished(experiment: Experiment, records: list[Record]) -> list[Record] | None:
    """The records of the experiment's very examples, or None where one is missing.

    Examples are known by their ids, which change with the text of a task's file.
    """
    grid = set(grid_keys(experiment))
    chosen = [record for record in _asked_for(experiment, records) if record.key in grid]
    return chosen if {record.key for record in chosen} == grid else None
