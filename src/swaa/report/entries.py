"""The rows of several runs before any figure: which recipe of which run, and over which samples they compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from swaa.errors import UserError
from swaa.report.records import Record
from swaa.report.runs import RecipeInfo, Run

SampleKey: TypeAlias = tuple[str, int, str, int]
"""Task, length, example and generation."""
NAMED = 3
"""So many missing samples are named."""


@dataclass(frozen=True)
class Entry:
    """A recipe of a run, with its records."""

    run: Run
    label: str
    recipe: RecipeInfo
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """Of the recipe, with its run."""
        return f"{self.label}: {self.recipe.name}"


def label_runs(paths: Sequence[Path]) -> list[str]:
    """Short names of the folders: their last part, or the whole path where that is not unique.

    Raises:
        UserError: two paths are one folder.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"{path}: this run is given twice. Give each run once.")
        seen[path.resolve()] = path
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def entries_of(run: Run, label: str) -> list[Entry]:
    """The recipes of a run, in its order; a recipe of a running run may have no records yet."""
    records: dict[str, list[Record]] = {recipe.hash: [] for recipe in run.info.recipes}
    for record in run.records:
        records[record.recipe_hash].append(record)
    return [Entry(run, label, recipe, tuple(records[recipe.hash])) for recipe in run.info.recipes]


def sample_key(record: Record) -> SampleKey:
    """What the same sample has in every run and under every recipe."""
    return record.task, record.length, record.example, record.generation


def check_answers(entries: Sequence[Entry]) -> None:
    """Refuse one id for two examples, as of two files of one name."""
    known: dict[tuple[str, int, str], tuple[str, Entry]] = {}
    for entry in entries:
        for record in entry.records:
            answer, first = known.setdefault(sample_key(record)[:3], (record.answer, entry))
            if answer != record.answer:
                raise UserError(
                    f"{sample_name(sample_key(record))}: the answer is {answer!r} in {first.label} and "
                    f"{record.answer!r} in {entry.label}, so these are not the same samples. Run both on the same "
                    "task files and seed."
                )


def same_samples(entries: Sequence[Entry], *, common: bool) -> tuple[list[Entry], list[str]]:
    """The entries over samples that all of them have, and what was left out for that."""
    sets = [{sample_key(record) for record in entry.records} for entry in entries]
    union = dict.fromkeys(sample_key(record) for entry in entries for record in entry.records)
    shared = set(union).intersection(*sets)
    if len(shared) == len(union):
        return list(entries), []
    missing = [[key for key in union if key not in own] for own in sets]
    lines = _missing_lines(entries, missing)
    if not shared:
        raise UserError("\n".join(["no sample is in all rows, so nothing can be compared:", *lines]))
    if not common:
        mend = f"Complete the runs, or give --common to compare the {len(shared)} samples that all rows have."
        raise UserError("\n".join([f"the runs have different samples, {len(union)} in all:", *lines, mend]))
    kept = [
        Entry(entry.run, entry.label, entry.recipe, tuple(one for one in entry.records if sample_key(one) in shared))
        for entry in entries
    ]
    note = f"Compared on the {len(shared)} samples that all rows have, of {len(union)}:"
    return kept, ["\n".join([note, *lines])]


def _missing_lines(entries: Sequence[Entry], missing: Sequence[Sequence[SampleKey]]) -> list[str]:
    """A line for each run whose recipes lack the same samples, or for each recipe."""
    lines = {}
    for entry, keys in zip(entries, missing, strict=True):
        alike = {tuple(other) for one, other in zip(entries, missing, strict=True) if one.label == entry.label}
        who = entry.label if len(alike) == 1 else entry.name
        if keys:
            names = ", ".join(sample_name(key) for key in keys[:NAMED]) + (", …" if len(keys) > NAMED else "")
            state = "" if entry.run.complete else " (the run has not ended)"
            lines[who] = f"  {who} lacks {len(keys)}{state}: {names}"
    return list(lines.values())


def sample_name(key: SampleKey) -> str:
    task, length, example, generation = key
    return f"{task}/{length}/{example}" + (f"#{generation}" if generation else "")


def side_by_side(entries: Sequence[Entry]) -> list[Entry]:
    """Recipes in their order, each with all of its runs."""
    order = {hash_: place for place, hash_ in enumerate(dict.fromkeys(entry.recipe.hash for entry in entries))}
    return sorted(entries, key=lambda entry: order[entry.recipe.hash])
