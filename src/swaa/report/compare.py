"""Several runs in one table: the same samples, a row each recipe and run, differences to one baseline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from swaa.errors import UserError, unknown
from swaa.reading import check_choice
from swaa.report.entries import Entry, check_answers, entries_of, label_runs, same_samples, sample_key, side_by_side
from swaa.report.records import Record
from swaa.report.rows import Cell, Row, make_rows
from swaa.report.runs import Run, find_baseline
from swaa.report.slices import BY, Part, make_slicer

NO_BASELINE = "No baseline: no recipe is full attention without fine-tuning. Name one with --baseline."


@dataclass(frozen=True)
class Comparison:
    """Runs compared: lines of facts that a reader must know, and the table's rows."""

    facts: tuple[str, ...]
    rows: tuple[Row, ...]


def compare_runs(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    by: str = "none",
    edges: Sequence[int] | None = None,
    common: bool = False,
) -> Comparison:
    """The runs in one table, a recipe's rows of several runs side by side.

    Args:
        runs: at least one, each once.
        baseline: name of the recipe that the others are compared with, with its run before it (``run: recipe``) where
            the first run that has it is not meant. By default the first recipe that is full attention, not fine-tuned.
        by: one of ``BY``: ``none`` makes a table of each task and length, anything else one of each task and part.
        edges: see :func:`make_slicer`.
        common: compare the samples that all rows have, where some have more.

    Raises:
        UserError: a run is given twice or has no records; rows have different samples and ``common`` is not set, or
            none in common; a sample has different answers in two runs; see also :func:`make_slicer`.
    """
    check_choice("by", by, BY)
    labels = label_runs([run.path for run in runs])
    for run in runs:
        if not run.records:
            raise UserError(f"{run.path}: this run has no records yet. Wait for its first samples, or leave it out.")
    asked = [entry for run, label in zip(runs, labels, strict=True) for entry in entries_of(run, label)]
    entries = [entry for entry in asked if entry.records]
    chosen = _baseline(entries, baseline)
    check_answers(entries)
    entries, notes = same_samples(entries, common=common)
    entries = side_by_side(entries)
    facts = [
        *(_fact(run, label) for run, label in zip(runs, labels, strict=True)),
        *_different(runs, labels),
        *_repeated(entries),
        *(f"{entry.name} has no records yet and is left out." for entry in asked if not entry.records),
        *notes,
        f"Baseline: {chosen.name}." if chosen else NO_BASELINE,
    ]
    parts = _parts(entries, chosen, by, edges)
    return Comparison(tuple(facts), tuple(row for cells in parts for row in make_rows(cells)))


def _baseline(entries: Sequence[Entry], name: str | None) -> Entry | None:
    for entry in entries:
        if entry.name == name:
            return entry
    if name is not None and name not in {entry.recipe.name for entry in entries}:
        raise unknown("recipe", name, {entry.recipe.name for entry in entries} | {entry.name for entry in entries})
    chosen = find_baseline([entry.recipe for entry in entries], name)
    return next((entry for entry in entries if entry.recipe is chosen), None)


def _parts(
    entries: Sequence[Entry], baseline: Entry | None, by: str, edges: Sequence[int] | None
) -> Iterable[list[Cell]]:
    """The cells of each table, in order."""
    windows = {entry.recipe.hash: entry.recipe.window for entry in entries}
    slicer = None if by == "none" and edges is None else make_slicer(by, windows, edges)
    theirs = {sample_key(one): one for one in next((e.records for e in entries if _is(e, baseline)), ())}
    tables: dict[tuple[int, Part], list[Cell]] = {}
    tasks = list(dict.fromkeys(record.task for entry in entries for record in entry.records))
    for entry in entries:
        groups: dict[tuple[int, Part], list[Record]] = {}
        for record in entry.records:
            part = slicer(record) if slicer else Part(record.length, "")
            groups.setdefault((tasks.index(record.task), part), []).append(record)
        for place, records in groups.items():
            own = _is(entry, baseline)
            same = [theirs[key] for one in records if (key := sample_key(one)) in theirs]
            cell = Cell(
                records,
                baseline=None if own else same or None,
                is_baseline=own,
                stretches=[one for one in entry.run.perplexity if one.recipe_hash == entry.recipe.hash],
                run=entry.label,
                part=place[1].label,
            )
            tables.setdefault(place, []).append(cell)
    return [tables[place] for place in sorted(tables)]


def _is(entry: Entry, other: Entry | None) -> bool:
    return other is not None and entry.name == other.name


def _fact(run: Run, label: str) -> str:
    info, origin = run.info, run.info.provenance
    parts = [
        f"{info.model.name} ({info.model.dtype}, {info.model.device})",
        f"{run.finished} samples",
        f"seed {info.seed}",
        f"git {origin.git[:9] + '+' * origin.git.endswith('+') if origin.git else 'unknown'}",
        *([f"started {origin.started}"] if origin.started else []),
    ]
    lines = [f"{label}: {', '.join(parts)}."]
    lines += [f"  {run.note}"] if run.note else []
    lines += [
        f"  {one.task}: {len(one.too_long)} of {one.offered} examples were longer than {one.length_limit:,} tokens "
        "and left out."
        for one in run.dropped
        if one.too_long
    ]
    return "\n".join(lines)


def _different(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """A line for each fact in which the runs differ."""
    facts: list[Mapping[str, object]] = [_comparable(run) for run in runs]
    lines = []
    for name in dict.fromkeys(name for own in facts for name in own):
        values = [own.get(name) for own in facts]
        if any(value != values[0] for value in values):
            told = " | ".join(f"{value} ({label})" for value, label in zip(values, labels, strict=True))
            lines.append(f"Different {name}: {told}.")
    return lines


def _comparable(run: Run) -> dict[str, object]:
    info, origin = run.info, run.info.provenance
    return {
        "model": info.model.name,
        "dtype": info.model.dtype,
        "device": info.model.device,
        "seed": info.seed,
        "git": origin.git,
        "processor": origin.hardware.processor,
        "threads": origin.hardware.threads,
        "GPU": origin.hardware.gpu,
        **{f"version of {name}": version for name, version in origin.versions.items()},
        **{f"grader of {task.label}": json.dumps(task.grader, sort_keys=True) for task in info.tasks},
    }


def _repeated(entries: Sequence[Entry]) -> list[str]:
    """A line for two runs that share recipes: how many answers came out the same, and of which recipes not all did."""
    counts: dict[str, list[tuple[str, int, int]]] = {}
    for first, second in pairwise(entries):
        if first.recipe.hash == second.recipe.hash:
            before, now = ({sample_key(one): _outcome(one) for one in entry.records} for entry in (first, second))
            same = sum(now.get(key) == outcome for key, outcome in before.items())
            found = counts.setdefault(f"{first.label} and {second.label}", [])
            found.append((first.recipe.name, same, len(before)))
    lines = []
    for runs, found in counts.items():
        same, asked = sum(one[1] for one in found), sum(one[2] for one in found)
        recipes = f"{len(found)} recipe{'s' * (len(found) > 1)}"
        line = f"Repeated in {runs}: {recipes}, {same} of {asked} samples with the same scores"
        others = ", ".join(f"{name} {same} of {asked}" for name, same, asked in found if same < asked)
        lines.append(f"{line}; not all of {others}." if others else f"{line}.")
    return lines


def _outcome(record: Record) -> tuple[object, ...]:
    return record.scores.get("score"), record.scores.get("forced_exact")
