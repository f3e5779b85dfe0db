"""The grid of an experiment from beginning to end: load, run what is not on record, write the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from swaa.config import Experiment
from swaa.engine.description import describe, num_answers, redescribe, told
from swaa.engine.evaluator import Evaluator
from swaa.engine.folder import RunFolder
from swaa.engine.grid import Chunk, GridData, check_recipes, context_of, grid_keys, make_chunks, sample_key
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.perplexity_folder import PerplexityFolder
from swaa.engine.processes import check_world_size, company, from_outside, helping, helps
from swaa.engine.progress import GridProgress, print_line
from swaa.engine.samples import Asked, make_samples
from swaa.engine.trainer import BatchWriter, make_trainer, quiet_lightning
from swaa.errors import UserError
from swaa.hf.loading import load
from swaa.policies import FullAttention
from swaa.report import Record, Row

Train = Callable[[Experiment, Console, bool], Mapping[str, Path]]
"""Trains what an experiment's recipes ask for, or trains it afresh; the folders of the weights, by the hash of the
recipe."""


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
        One row per task, length and recipe, in the experiment's order; none in a process that only helps.

    Raises:
        UserError: see :class:`RunFolder`, :func:`swaa.hf.loading.load`, :func:`make_samples`; another process of
            several failed.
        Interrupted: Ctrl-C; the samples that ended are kept.
    """
    for task in experiment.tasks:
        task.check()
        task.grader.check()
    check_world_size(experiment)
    if fresh and from_outside(experiment):
        raise UserError(
            f"--fresh: with processes that something else starts, none can delete before the others look. Delete "
            f"{experiment.output} yourself, and leave --fresh out."
        )
    console = console or Console(stderr=True)
    train = train or _no_training
    if helps(experiment):
        with helping():
            quiet = Console(stderr=True, quiet=True)
            _run_grid(experiment, RunFolder(experiment), train(experiment, quiet, False), quiet)
        return []
    with RunFolder(experiment, fresh=fresh) as folder:
        folder.check_graders()
        folder.check_code()
        try:
            with stoppable():
                records = _finished(experiment, folder)
                if records is not None:  # the model need not be loaded
                    folder.describe(redescribe(experiment, folder.description() or {}))
                else:
                    records = _run_grid(experiment, folder, train(experiment, console, fresh), console)
        except StopRequested:
            raise Interrupted(
                f"Interrupted; {len(folder.records())} finished samples are kept in {folder.path}. "
                "Run the same command again to go on from there."
            ) from None
        return folder.end(records)


def check_asked(experiment: Experiment) -> None:
    """Refuse now what could not be evaluated later, such as prompts that do not fit into the model's context.

    Raises:
        UserError: see :func:`check_recipes` and :func:`make_samples`.
    """
    model, tokenizer = _load(experiment, None)
    check_recipes(experiment, model)
    make_samples(experiment, tokenizer, context=context_of(model))


def _run_grid(experiment: Experiment, folder: RunFolder, weights: Mapping[str, Path], console: Console) -> list[Record]:
    """Run the samples that are not on record; the records of all samples of the grid. Every process does its part."""
    model, tokenizer = _load(experiment, None)
    check_recipes(experiment, model)
    asked = make_samples(experiment, tokenizer, context=context_of(model))
    chunks = make_chunks(experiment, asked.samples, folder.finished(), generations=experiment.num_generations)
    if not helps(experiment):
        _describe(experiment, folder, model, asked, console)
        _measure_text(experiment, weights, model, tokenizer, console)
    left = sum(len(chunk.samples) * len(chunk.generations) for chunk in chunks)
    total = num_answers(experiment, asked)
    progress = GridProgress(total=total, done=total - left, console=console)
    if chunks:
        _run_chunks(experiment, folder, weights, chunks, progress, (model, tokenizer))
    keys = {
        sample_key(recipe, sample, generation)
        for recipe in experiment.recipes
        for sample in asked.samples
        if sample.prompting == recipe.prompting
        for generation in range(experiment.num_generations)
    }
    return [record for record in _asked_for(experiment, folder.records()) if record.key in keys]


def _run_chunks(
    experiment: Experiment,
    folder: RunFolder,
    weights: Mapping[str, Path],
    chunks: Sequence[Chunk],
    progress: GridProgress,
    loaded: tuple[Any, Any],
) -> None:
    """Run this process's part of the batches, one set of weights after another."""
    model, tokenizer = loaded
    several = experiment.trainer.devices * experiment.trainer.num_nodes > 1
    device = {"accelerator": model.device.type, "devices": 1 if model.device.index is None else [model.device.index]}
    processes = {"accelerator": model.device.type, **dataclasses.asdict(experiment.trainer)}
    by_weights: dict[Path | None, list[Chunk]] = {}
    for chunk in chunks:
        by_weights.setdefault(weights.get(chunk.recipe.hash), []).append(chunk)
    writer = BatchWriter(folder.append)
    with quiet_lightning():
        trainer = make_trainer([writer, progress], **(processes if several else device))
        with company(experiment, trainer, folder.path / "logs", command="run"):
            writer.write_with(folder.writer(trainer.global_rank).append)
            for wanted, some in by_weights.items():
                tuned = None if wanted is None else _load(experiment, wanted)[0]
                evaluator = Evaluator(model if tuned is None else tuned, tokenizer, experiment)
                try:
                    data = GridData(some, pad=tokenizer.pad_token_id)
                    trainer.predict(evaluator, data, return_predictions=False)
                finally:
                    evaluator.restore()
            trainer.strategy.barrier()  # a process that is through waits for the others


def _describe(experiment: Experiment, folder: RunFolder, model: Any, asked: Asked, console: Console) -> None:
    """Write what the run is, and tell what is left out."""
    folder.write_samples(asked.samples)
    folder.describe(describe(experiment, model, asked))
    for line in told(asked.dropped):
        print_line(console, line)


def _measure_text(
    experiment: Experiment, weights: Mapping[str, Path], model: Any, tokenizer: Any, console: Console
) -> None:
    """Measure every recipe on the text that the experiment names, if it does."""
    if experiment.perplexity is None:
        return
    with PerplexityFolder(experiment.output, experiment.perplexity, experiment.model) as text:
        missing = [recipe for recipe in experiment.recipes if text.missing(recipe)]
        if missing:
            text.find_key_tokens(model, tokenizer)
        for place, recipe in enumerate(missing):
            print_line(console, f"reading text, recipe {place + 1} of {len(missing)}: {recipe.name}")
            tuned = weights.get(recipe.hash)
            text.measure(model if tuned is None else _load(experiment, tuned)[0], recipe)


def _text_is_missing(experiment: Experiment) -> bool:
    if experiment.perplexity is None:
        return False
    with PerplexityFolder(experiment.output, experiment.perplexity, experiment.model) as text:
        return any(text.missing(recipe) for recipe in experiment.recipes)


def _no_training(experiment: Experiment, console: Console, fresh: bool) -> Mapping[str, Path]:
    """For experiments without fine-tuned recipes."""
    assert all(recipe.fine_tuning is None for recipe in experiment.recipes), "swaa.engine.run trains"
    return {}


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
    if keys is None or folder.description() is None or _text_is_missing(experiment):
        return None
    grid = set(keys)
    chosen = [record for record in _asked_for(experiment, folder.records()) if record.key in grid]
    return chosen if {record.key for record in chosen} == grid else None
