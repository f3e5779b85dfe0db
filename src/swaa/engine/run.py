"""An experiment from beginning to end: load, run the grid, write the tables."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console

from swaa.config import Experiment
from swaa.engine.evaluator import Evaluator, RecordWriter
from swaa.engine.folder import RunFolder
from swaa.engine.grid import GridData, make_chunks, make_samples, sample_key
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.progress import GridProgress
from swaa.hf import model_shape
from swaa.hf.loading import load
from swaa.policies import FullAttention, bind
from swaa.reading import within
from swaa.report import Key, Record, Row, summarise


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
    _check_recipes(experiment, model)
    samples = make_samples(experiment, tokenizer, context=_context(model))
    chunks = make_chunks(experiment, samples, folder.finished())
    left = sum(len(chunk.samples) for chunk in chunks)
    progress = GridProgress(total=experiment.num_samples, done=experiment.num_samples - left, console=console)
    if chunks:
        evaluator = Evaluator(model, tokenizer, experiment)
        _predict(evaluator, GridData(chunks, pad=tokenizer.pad_token_id), folder, progress)
    grid = {sample_key(recipe, sample) for recipe in experiment.recipes for sample in samples}
    return [record for record in _asked_for(experiment, folder.records()) if record.key in grid]


def _predict(evaluator: Evaluator, data: GridData, folder: RunFolder, progress: GridProgress) -> None:
    device = evaluator.model.device
    with _quiet_lightning():
        trainer = Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,  # masks outlive a batch, and inference tensors cannot be trained through
            callbacks=[RecordWriter(folder), progress],
        )
        try:
            trainer.predict(evaluator, data, return_predictions=False)
        finally:
            evaluator.restore()


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
    grid = {
        Key(recipe.hash, task.label, length, example)
        for task in experiment.tasks
        for length in experiment.lengths
        for example in task.example_ids(length=length, num_examples=experiment.num_examples, seed=experiment.seed)
        for recipe in experiment.recipes
    }
    chosen = [record for record in _asked_for(experiment, records) if record.key in grid]
    return chosen if {record.key for record in chosen} == grid else None


def _check_recipes(experiment: Experiment, model: Any) -> None:
    """Refuse a policy that does not fit the model now, not when its turn comes."""
    shape = model_shape(model)
    for recipe in experiment.recipes:
        with within(f"recipe {recipe.name!r}"):
            bind(recipe.policy, num_layers=shape.num_layers, num_heads=shape.num_heads)


def _context(model: Any) -> int | None:
    """The longest sequence that the model was made for, in tokens; None if its config names none."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if length else None


_NOISE = (
    ".*does not have many workers.*",  # batches are made faster than a worker starts
    ".*Couldn't infer the batch indices.*",  # our batches name their samples themselves
    ".*GPU available but not used.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's lines on accelerators and workers, which say nothing about a run of ours."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)
