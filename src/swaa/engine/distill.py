"""A distillation from beginning to end: ask every prompt several times, grade, sift, write the data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from rich.console import Console

from swaa.config import Distillation
from swaa.engine.batch import Batch, Sample
from swaa.engine.decode import Generation, generate, prefill
from swaa.engine.distill_answers import Answer, PromptAnswers
from swaa.engine.distill_folder import ANSWERS, DistillationFolder, check_formats
from swaa.engine.distill_sift import Counts, Sifted, sift
from swaa.engine.grid import GridData, check_recipes, context_of, grid_keys, make_chunks, sample_key
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.progress import GridProgress
from swaa.engine.provenance import git_hash, versions
from swaa.engine.recording import final_of, grade_answers, reply_of
from swaa.engine.samples import make_samples
from swaa.engine.trainer import BatchWriter, predict
from swaa.errors import UserError
from swaa.hf import apply_policy
from swaa.hf.loading import load
from swaa.policies import FullAttention
from swaa.report import Key


@dataclass(frozen=True)
class DistillationResult:
    """What a distillation made.

    Attributes:
        files: the data, ``data.jsonl`` first.
        counts: of all answers.
        cells: counts by task and length.
    """

    files: tuple[Path, ...]
    counts: Counts
    cells: Mapping[tuple[str, int], Counts]

    def lines(self) -> list[str]:
        """What to tell the user, a line each."""
        whole = self.counts
        left_out = ", ".join(f"{count} {reason}" for reason, count in whole.left_out.items()) or "none"
        lines = [
            f"{whole.prompts} prompts, {whole.answers} answers, {whole.correct} correct ({_share(whole)})",
            f"{whole.kept} conversations kept; left out: {left_out}",
        ]
        if whole.empty:
            lines.append(f"prompts that nothing was kept of: {whole.empty} of {whole.prompts}")
        if len(self.cells) > 1:
            lines += [
                f"  {task}, {length:,} tokens: {cell.kept} kept of {cell.answers}, correct {_share(cell)}"
                for (task, length), cell in self.cells.items()
            ]
        return lines


def run_distillation(
    config: Distillation, *, fresh: bool = False, console: Console | None = None
) -> DistillationResult:
    """Ask the prompts that the distillation's folder holds no answers to yet, and write its data.

    Args:
        config: what to ask, and what to keep.
        fresh: delete the folder's former results first.
        console: where progress is drawn (default: standard error, if it is a terminal).

    Raises:
        UserError: see :class:`DistillationFolder`, :func:`swaa.hf.loading.load`, :func:`make_samples`; Parquet cannot
            be written; a task's grader is unknown; nothing is kept (the answers stay in the folder).
        Interrupted: Ctrl-C; the answers to prompts whose batch ended are kept.
    """
    check_formats(config)
    for task in config.tasks:
        task.grader.check()
    with DistillationFolder(config, fresh=fresh) as folder:
        try:
            with stoppable():
                keys = grid_keys(config)
                if keys is None or not {record.key for record in folder.answers()}.issuperset(keys):
                    keys = _ask(config, folder, console or Console(stderr=True))
        except StopRequested:
            raise Interrupted(
                f"Interrupted; the answers to {len(folder.answers())} prompts are kept in {folder.path}. "
                "Run the same command again to go on from there."
            ) from None
        known = {record.key: record for record in folder.answers()}
        records = [known[key] for key in keys]
        sifted = sift(records, config)
        if not sifted.conversations:
            folder.delete_data()
            raise _nothing_kept(folder.path, sifted.counts)
        names = folder.write_data(sifted.conversations, _provenance(config, records, sifted))
    return DistillationResult(tuple(folder.path / name for name in names), sifted.counts, sifted.cells)


def _ask(config: Distillation, folder: DistillationFolder, console: Console) -> list[Key]:
    """Answer the prompts that have no answers yet; the keys of all prompts, in order."""
    model, tokenizer = load(config.model.name, FullAttention(), dtype=config.model.dtype, device=config.model.device)
    check_recipes(config, model)
    asked = make_samples(config, tokenizer, context=context_of(model))
    for dropped in asked.dropped:
        console.print(dropped.told(), highlight=False, markup=False, soft_wrap=True)
    samples = asked.samples
    chunks = make_chunks(config, samples, {record.key for record in folder.answers()})
    if chunks:
        left = sum(len(chunk.samples) for chunk in chunks)
        progress = GridProgress(total=len(samples), done=len(samples) - left, console=console)
        data = GridData(chunks, pad=tokenizer.pad_token_id)
        with apply_policy(model, config.recipe.policy, kernel=config.model.kernel):
            teacher = Teacher(model, tokenizer, config)
            predict(teacher, data, model.device, [BatchWriter(folder.append), progress])
    return [sample_key(config.recipe, sample) for sample in samples]


class Teacher(LightningModule):
    """Answers batches of prompts several times each, and grades the answers.

    Args:
        model: a causal language model under the teacher's policy.
        tokenizer: its own.
        config: what is asked for.
    """

    def __init__(self, model: Any, tokenizer: Any, config: Distillation) -> None:
        super().__init__()
        self.model = model.eval()
        self._tokenizer = tokenizer
        self._config = config
        self._control = control_tokens(tokenizer)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[PromptAnswers]:
        """The prompts of a batch with their answers, in the order of its rows.

        The prompts are read once; each answer goes on from a copy of what was read, with random streams of its own.
        """
        read = prefill(self.model, batch, self._config.model.prefill_chunk_size)
        decoding = self._config.recipe.decoding
        answers: list[list[Answer]] = [[] for _ in batch.samples]
        for index in range(self._config.samples_per_prompt):
            copied = replace(read, cache=copy.deepcopy(read.cache))
            own = replace(decoding, seed=decoding.seed + index)
            made = generate(self.model, self._tokenizer, batch, copied, own)
            for row, answer in enumerate(self._answers(batch.samples, made)):
                answers[row].append(answer)
        return [self._record(sample, tuple(own)) for sample, own in zip(batch.samples, answers, strict=True)]

    def _answers(self, samples: Sequence[Sample], made: Generation) -> list[Answer]:
        """One answer a sample, graded by what follows its reasoning.

        Raises:
            UserError: a judge could not grade one; what is on record stays, and the run goes on from there.
        """
        parts = list(zip(samples, made.texts, made.endings, strict=True))
        stop = self._config.recipe.decoding.stop
        replies = [reply_of(*part, stop) for part in parts]
        grades = grade_answers(samples, [final_of(*part, stop) for part in parts])
        answers = []
        for text, reply, tokens, ending, grade in zip(
            made.texts, replies, made.num_tokens, made.endings, grades, strict=True
        ):
            if grade.error is not None:
                raise UserError(f"an answer could not be graded: {grade.error} Run the same command again to go on.")
            control = any(mark in reply for mark in self._control)
            answers.append(Answer(text, tokens, ending, reply, grade.score or 0.0, grade.all_correct, control))
        return answers

    def _record(self, sample: Sample, answers: tuple[Answer, ...]) -> PromptAnswers:
        example = sample.example
        return PromptAnswers(
            recipe_hash=self._config.recipe.hash,
            task=sample.task.label,
            length=sample.length,
            example=example.id,
            seed=self._config.seed,
            prompt=sample.prompting.ask(example.prompt),
            answer_prefix=sample.prompting.reply_prefix(example.answer_prefix),
            reference=example.answer,
            metadata=example.metadata,
            prompt_tokens=len(sample.prompt.ids),
            answers=answers,
            git=git_hash(),
            versions=versions(),
        )


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """The spellings that a tokenizer reads as special tokens, such as those of its chat template.

    A template's tokens are often among the added ones only, without a name like ``eos_token``.
    """
    added = tokenizer.added_tokens_decoder.values()
    named = set(tokenizer.all_special_tokens) | {token.content for token in added if token.special}
    return frozenset(text for text in named if text)


def _provenance(config: Distillation, records: Sequence[PromptAnswers], sifted: Sifted) -> dict[str, object]:
    """Where the data come from; ``answered_by`` has every state of the code that answered prompts, and how many."""
    states: dict[str, dict[str, Any]] = {}
    for record in records:
        state = {"git": record.git, "versions": dict(record.versions)}
        states.setdefault(repr(state), {**state, "prompts": 0})["prompts"] += 1
    return {
        "git": git_hash(),
        "versions": versions(),
        "answered_by": list(states.values()),
        "model": dataclasses.asdict(config.model),
        "policy": repr(config.recipe.policy),
        "prompting": config.recipe.prompting.to_value(),
        "decoding": config.recipe.decoding.to_dict(),
        "recipe_hash": config.recipe.hash,
        "distillation": config.to_dict(),
        "counts": dataclasses.asdict(sifted.counts),
        "cells": [
            {"task": task, "length": length, **dataclasses.asdict(cell)}
            for (task, length), cell in sifted.cells.items()
        ],
    }


def _nothing_kept(folder: Path, counts: Counts) -> UserError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.left_out.items())
    return UserError(
        f"{folder}: nothing is kept of {counts.answers} answers to {counts.prompts} prompts: {reasons}. Raise "
        f"samples_per_prompt or decoding.max_new_tokens (both with --fresh), ease the task, or write keep: all. "
        f"The answers stay in {folder / ANSWERS}."
    )


def _share(counts: Counts) -> str:
    return f"{counts.correct / counts.answers:.0%}"
