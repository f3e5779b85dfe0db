"""The folder of a run, read back for reports: what was run, what came, what was left out.

run.json          what ran: model, recipes, tasks, provenance (:class:`RunInfo`)
records.jsonl     one line a sample (:class:`swaa.report.records.Record`)
samples.jsonl     one line an example: the prompt as the model got it (:class:`Sample`)
perplexity.jsonl  one line a recipe and stretch of text (:class:`Stretch`), where it was measured

A run may be read while it runs: what is there is read, and :attr:`Run.note` says what is not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swaa.errors import UserError, invalid, unknown
from swaa.report.jsonfiles import read_json, read_lines, to_value
from swaa.report.records import RECORDS, Record, read_all_records

FORMAT = 1
"""Of ``run.json``."""
RUN, SAMPLES, PERPLEXITY = "run.json", "samples.jsonl", "perplexity.jsonl"
FULL_ATTENTION = "FullAttention()"


@dataclass(frozen=True)
class ModelInfo:
    """The model that ran. ``context``: the tokens it was trained for, None if it does not say."""

    name: str
    dtype: str
    device: str
    num_layers: int | None = None
    num_heads: int | None = None
    context: int | None = None


@dataclass(frozen=True)
class RecipeInfo:
    """A recipe of the run.

    Attributes:
        name: the row's name in tables.
        hash: SHA-256 of the recipe without its name.
        policy: the attention policy, as a Python expression.
        prompting: the name of the way of asking.
        fine_tuning: the name of the training of the weights, None for the model as it is.
        decoding: how answer tokens were chosen.
        window: tokens of the largest sliding window in the policy, None if it has none.
    """

    name: str
    hash: str
    policy: str
    prompting: str = "direct"
    fine_tuning: str | None = None
    decoding: Mapping[str, object] = field(default_factory=dict)
    window: int | None = None

    @property
    def is_full_attention(self) -> bool:
        """Whether this is the model as it was pretrained: full attention, not fine-tuned."""
        return self.policy == FULL_ATTENTION and self.fine_tuning is None


@dataclass(frozen=True)
class TaskInfo:
    """A task of the run: its label in tables, its registered name, its grader's name and parameters."""

    label: str
    name: str
    grader: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class TooLong:
    """An example that did not fit, with the tokens of its prompt."""

    example: str
    tokens: int


@dataclass(frozen=True)
class Dropped:
    """What a length filter left out of a task.

    Attributes:
        task: the task's label.
        length_limit: longest prompt that was kept, in tokens.
        offered: examples that the task offered.
        kept: examples that were run.
        too_long: those that are longer.
        full: those that fit and were not needed.
        left_out: what the task itself leaves out of its file, by reason.
    """

    task: str
    length_limit: int
    offered: int
    kept: int
    too_long: tuple[TooLong, ...] = ()
    full: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """The ids of the examples that are asked of a task at a length."""

    task: str
    length: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Hardware:
    """The machine; ``memory_bytes`` is its main memory. None where it could not be found out."""

    processor: str | None = None
    cores: int | None = None
    threads: int | None = None
    gpu: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: commit (``+``: altered files), versions, machine, command, time of the start."""

    git: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Hardware = field(default_factory=Hardware)
    command: str | None = None
    started: str | None = None


@dataclass(frozen=True)
class RunInfo:
    """``run.json``.

    Attributes:
        status: ``finished``, or ``running``, which an interrupted run stays.
        seed: of the examples.
        num_generations: answers to each example.
        asked: records that a complete run has.
        examples: which examples it asks; nothing in runs of versions that did not say so.
        dropped: what length filters left out, one item a task that lost an example or could have.
    """

    status: str
    model: ModelInfo
    recipes: tuple[RecipeInfo, ...]
    tasks: tuple[TaskInfo, ...]
    lengths: tuple[int, ...]
    num_examples: int
    seed: int
    scoring: tuple[str, ...]
    asked: int
    dropped: tuple[Dropped, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)
    num_generations: int = 1
    examples: tuple[Examples, ...] = ()
    format: int = FORMAT


@dataclass(frozen=True)
class Sample:
    """An example under one way of asking; ``prompt`` is the rendered text, of ``prompt_tokens`` tokens."""

    task: str
    length: int
    example: str
    prompt: str
    prompt_tokens: int
    answer: str
    prompting: str = "direct"
    references: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Stretch:
    """The likelihood of a stretch of text under a recipe.

    Attributes:
        recipe: the recipe's name.
        recipe_hash: SHA-256 of the recipe without its name.
        stretch: number of the stretch.
        nll: mean nats per token.
        delta_nll: ``nll`` minus full attention's.
        long_nll: mean nats over the key tokens, those that long context makes likelier (LongPPL, arXiv 2410.23771);
            None where there is no key token.
        key_tokens: how many there are.
        tokens: tokens of the stretch that were scored.
    """

    recipe: str
    recipe_hash: str
    stretch: int
    nll: float
    delta_nll: float | None = None
    long_nll: float | None = None
    key_tokens: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Run:
    """A run's folder, as it was when it was read.

    Attributes:
        path: the folder.
        info: what ran.
        records: of the run's recipes, tasks and lengths, in their order there, under the recipes' names of now.
        perplexity: stretches of text, where they were measured.
    """

    path: Path
    info: RunInfo
    records: tuple[Record, ...]
    perplexity: tuple[Stretch, ...] = ()

    @functools.cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The examples with their prompts, read when first asked for; none where the folder has none."""
        return tuple(read_lines(Sample, self.path / SAMPLES))

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What length filters left out."""
        return self.info.dropped

    @property
    def finished(self) -> int:
        """Samples on record."""
        return len(self.records)

    @property
    def complete(self) -> bool:
        """Whether the run has ended with all that was asked for."""
        return self.info.status == "finished" and self.finished >= self.info.asked

    @property
    def note(self) -> str | None:
        """What a reader of an incomplete run must know; None for a complete one."""
        if self.complete:
            return None
        state = "lacks records" if self.info.status == "finished" else "has not ended (it runs, or was interrupted)"
        return f"{self.path} {state}: {self.finished} of {self.info.asked} samples are on record."


def read_run(folder: Path) -> Run:
    """The run that a folder holds, complete or not.

    Raises:
        UserError: there is no such folder, it holds no run, one of an earlier version without ``run.json``, or a file
            in it cannot be read; the field or line is named.
    """
    _check_folder(folder)
    info = read_info(folder)
    records = _asked_for(info, read_all_records(folder))
    return Run(folder, info, tuple(records), tuple(read_lines(Stretch, folder / PERPLEXITY)))


def find_baseline(recipes: Sequence[RecipeInfo], name: str | None = None) -> RecipeInfo | None:
    """The recipe that others are compared with: the one of this name, or the first that is the model as it is.

    Returns:
        None if no name is given and no recipe is full attention without fine-tuning.

    Raises:
        UserError: no recipe has this name.
    """
    if name is None:
        return next((recipe for recipe in recipes if recipe.is_full_attention), None)
    for recipe in recipes:
        if recipe.name == name:
            return recipe
    raise unknown("recipe", name, {recipe.name for recipe in recipes})


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "this is a file, not a run's folder" if folder.exists() else "there is no such folder"
        raise UserError(f"{folder}: {what}. Name the folder that `swaa run` wrote.")
    if (folder / RUN).is_file():
        return
    if (folder / RECORDS).exists():
        mend = (
            f"Run `swaa run {folder}/experiment.yaml --output {folder}` once more: it keeps the samples that are there"
        )
        raise UserError(f"{folder}: records without {RUN}: an earlier version of swaa wrote them. {mend}.")
    raise UserError(f"{folder}: this folder holds no run: it has no {RUN}. Name a folder that `swaa run` wrote.")


def read_info(folder: Path) -> RunInfo:
    """What a folder's ``run.json`` says.

    Raises:
        UserError: it cannot be read, or is of another version.
    """
    path = folder / RUN
    values = read_json(path)
    if values.get("format", FORMAT) != FORMAT:
        mend = "Read it with the version of swaa that wrote it."
        raise invalid(f"{path}: format", accepted=str(FORMAT), got=values["format"], mend=mend)
    return to_value(RunInfo, values, f"{path}: ")


def _asked_for(info: RunInfo, records: Sequence[Record]) -> list[Record]:
    """The records of the run's tasks, lengths and recipes, in this order; a folder may hold others of former runs."""
    examples = {(one.task, one.length, name) for one in info.examples for name in one.ids}
    recipes = {recipe.hash: number for number, recipe in enumerate(info.recipes)}
    tasks = {task.label: number for number, task in enumerate(info.tasks)}
    lengths = {length: number for number, length in enumerate(info.lengths)}
    cells = [
        ((tasks[record.task], lengths[record.length], recipes[record.recipe_hash]), record)
        for record in records
        if record.task in tasks and record.length in lengths and record.recipe_hash in recipes
        if record.generation < info.num_generations
        if not examples or (record.task, record.length, record.example) in examples
    ]
    cells.sort(key=lambda cell: cell[0])  # stable: within a cell, as they were written
    return [dataclasses.replace(record, recipe=info.recipes[place[2]].name) for place, record in cells]
