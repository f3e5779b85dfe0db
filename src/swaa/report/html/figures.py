"""What the page shows, as plain values: rows of recipes, groups of rows that may be compared, and the naive line.

A row is a recipe of a run. Rows keep their numbers all over the page. A group is a task at a length; where there are
several, one more group has all answers. What cannot be compared is never averaged in silence: see :func:`warnings`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from swaa.report.records import Record
from swaa.report.rows import Cell, Example, Row, make_rows
from swaa.report.runs import FULL_ATTENTION, RecipeInfo, Run, find_baseline
from swaa.report.stats import Estimate, mean

Pictures = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
"""Policy, as a Python expression, and layers of the model -> masks (:func:`swaa.compiler.picture.mask_pictures`)."""

FAMILIES = {
    "full": "full attention",
    "window": "window in every layer and phase, with or without sinks",
    "decode": "full attention while decoding",
    "layers": "full attention on some layers",
    "both": "full attention while decoding and on some layers",
    "other": "not told apart: the policy could not be drawn",
}
"""What sets the colour of a row."""

_NAIVE = re.compile(r"SlidingWindow\((?:window_size=)?\d+\)")


@dataclass(frozen=True)
class Entry:
    """A row: a recipe of a run.

    Attributes:
        number: from 1, over all runs.
        run: the run's label; runs in one report have different ones.
        info: the recipe.
        family: one of ``FAMILIES``.
        naive: whether it is nothing but a sliding window, in every layer and phase.
    """

    number: int
    run: str
    info: RecipeInfo
    family: str
    naive: bool

    @property
    def tuned(self) -> bool:
        """Whether its weights were fine-tuned."""
        return self.info.fine_tuning is not None

    @property
    def key(self) -> tuple[str, str]:
        """What its records are found by."""
        return self.run, self.info.hash


@dataclass(frozen=True)
class Figures:
    """What a row did in a group.

    Attributes:
        entry: the row.
        row: its figures as in every other table.
        accuracy: share of right answers; of right forced answers where nothing was generated. None: not measured.
        seconds: machine time a request (:func:`request_seconds`), their mean. None: not measured.
        examples: identities of what was asked.
    """

    entry: Entry
    row: Row
    accuracy: Estimate | None
    seconds: float | None
    examples: frozenset[Example]


@dataclass(frozen=True)
class Line:
    """The straight line from naive SWA to full attention, one of each per run and way of asking."""

    label: str
    naive: Figures
    full: Figures

    def at(self, seconds: float) -> float | None:
        """The line's accuracy at a time; None where both ends took the same."""
        (x0, y0), (x1, y1) = self.ends
        return None if x0 == x1 else y0 + (y1 - y0) * (seconds - x0) / (x1 - x0)

    @property
    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(seconds, accuracy) of naive SWA, then of full attention."""
        (x0, y0), (x1, y1) = point(self.naive), point(self.full)
        assert None not in (x0, y0, x1, y1), "a line has two measured ends"
        return (x0, y0), (x1, y1)  # type: ignore[return-value]


@dataclass(frozen=True)
class Group:
    """Rows that answered the same task at the same length, or all of them (``task`` and ``length`` None)."""

    title: str
    task: str | None
    length: int | None
    rows: tuple[Figures, ...]
    lines: tuple[Line, ...]

    def line_of(self, row: Figures) -> Line | None:
        """The line that a row is compared with: its run's and its prompting's, of the window next to its own."""
        mine = row.entry
        same = [
            line
            for line in self.lines
            if (line.full.entry.run, line.full.entry.info.prompting) == (mine.run, mine.info.prompting)
        ]
        window = mine.info.window
        own = [line for line in same if line.naive.entry.info.window == window]
        return next(iter(own or same), None)

    def over_line(self, row: Figures) -> float | None:
        """Accuracy minus the line's at the same time; None where there is no line or no figure."""
        seconds, accuracy = point(row)
        line = self.line_of(row)
        if line is None or seconds is None or accuracy is None:
            return None
        level = line.at(seconds)
        return None if level is None else accuracy - level


def point(row: Figures) -> tuple[float | None, float | None]:
    """Where a row stands in the plot: seconds, and accuracy from 0 to 1; None for what is not known or not finite."""
    accuracy = None if row.accuracy is None else row.accuracy.value
    return _finite(row.seconds), _finite(accuracy)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def family_of(pictures: Sequence[Mapping[str, Any]]) -> str:
    """Which of ``FAMILIES`` a policy belongs to, by its effective masks."""
    if not pictures:
        return "other"
    effective = [(picture["prefill"] == FULL_ATTENTION, picture["decode"] == FULL_ATTENTION) for picture in pictures]
    limited = [decode for prefill, decode in effective if not (prefill and decode)]
    if not limited:
        return "full"
    layers, decode = len(limited) < len(effective), all(limited)
    return {(False, False): "window", (False, True): "decode", (True, False): "layers", (True, True): "both"}[
        layers, decode
    ]


def make_entries(runs: Mapping[str, Run], pictures: Pictures) -> list[Entry]:
    """The rows of the runs, in their order; ``runs`` by label."""
    entries: list[Entry] = []
    for label, run in runs.items():
        layers = run.info.model.num_layers or 1
        for info in run.info.recipes:
            family = family_of(pictures.get((info.policy, layers), ()))
            naive = _NAIVE.fullmatch(info.policy) is not None
            entries.append(Entry(len(entries) + 1, label, info, family, naive))
    return entries


def verdict_key(records: Iterable[Record]) -> str:
    """The score that says right or wrong: of what was generated, or of the forced answers where nothing was."""
    return "forced_exact" if all(record.generated is None for record in records) else "all_correct"


def make_groups(runs: Mapping[str, Run], entries: Sequence[Entry], measure: str) -> list[Group]:
    """All answers where there are several tasks or lengths, then every task at every length."""
    cells: dict[tuple[str, int], dict[tuple[str, str], list[Record]]] = {}
    together: dict[tuple[str, str], list[Record]] = {}
    for label, run in runs.items():
        for record in run.records:
            row = (label, record.recipe_hash)
            cells.setdefault((record.task, record.length), {}).setdefault(row, []).append(record)
            together.setdefault(row, []).append(record)
    groups = [
        _group(f"{task}, {length:,} tokens", task, length, found, runs, entries, measure)
        for (task, length), found in cells.items()
    ]
    if len(groups) > 1:
        title = f"all {len(groups)} tasks and lengths"
        groups.insert(0, _group(title, None, None, together, runs, entries, measure))
    return groups


def _group(
    title: str,
    task: str | None,
    length: int | None,
    found: Mapping[tuple[str, str], Sequence[Record]],
    runs: Mapping[str, Run],
    entries: Sequence[Entry],
    measure: str,
) -> Group:
    """Each run's rows are compared with its own full attention, as in the run's own tables."""
    figures: list[Figures] = []
    for label, run in runs.items():
        own = [entry for entry in entries if entry.run == label and entry.key in found]
        baseline = find_baseline(run.info.recipes)
        key = None if baseline is None else (label, baseline.hash)
        cells = [
            Cell(
                found[entry.key],
                baseline=None if key in (None, entry.key) else found.get(key or ("", "")),
                is_baseline=entry.key == key,
                stretches=[one for one in run.perplexity if one.recipe_hash == entry.info.hash],
                part="" if task else title,
            )
            for entry in own
        ]
        figures += map(partial(_figures, found, measure), own, make_rows(cells))
    return Group(title, task, length, tuple(figures), _lines(figures))


def _figures(found: Mapping[tuple[str, str], Sequence[Record]], measure: str, entry: Entry, row: Row) -> Figures:
    records = found[entry.key]
    return Figures(
        entry=entry,
        row=row,
        accuracy=row.accuracy if measure == "all_correct" else row.forced,
        seconds=mean(request_seconds(record) for record in records),
        examples=frozenset((record.task, record.length, record.example) for record in records),
    )


def request_seconds(record: Record) -> float | None:
    """Machine time of one request: its share of the batch's prefill and of the batch's decode steps.

    The first new token comes with the prefill. A batch's steps are shared by its samples, so that batches of other
    sizes compare by what the machine does in an hour, not by how long one user waits.
    """
    timing = record.timing
    if "prefill_seconds" not in timing:
        return None
    steps = max(0.0, timing.get("new_tokens", 1) - 1)
    step = timing.get("decode_ms_per_token", 0.0) / 1000
    return timing["prefill_seconds"] + steps * step / timing.get("batch_size", 1)


def _lines(rows: Sequence[Figures]) -> tuple[Line, ...]:
    """One for every run, way of asking and naive window that has both ends, without fine-tuning."""
    plain = [row for row in rows if not row.entry.tuned and None not in point(row)]
    lines = []
    for full in (row for row in plain if row.entry.info.is_full_attention):
        for naive in (row for row in plain if row.entry.naive):
            ends = full.entry, naive.entry
            if ends[0].run == ends[1].run and ends[0].info.prompting == ends[1].info.prompting:
                lines.append(Line(_words(full.entry.info.prompting), naive, full))
    return tuple(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def warnings(runs: Mapping[str, Run], groups: Sequence[Group], entries: Sequence[Entry]) -> list[str]:
    """What a reader must know before comparing rows, a sentence or two each."""
    told = [note for run in runs.values() if (note := run.note) is not None]
    for group in groups:
        if group.task is None and len(groups) > 1:
            continue  # what differs in it differs in one of its parts, which is named
        sets = {row.examples for row in group.rows}
        if len(sets) > 1:
            common = len(frozenset.intersection(*sets))
            sizes = sorted({len(examples) for examples in sets})
            counts = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
            told.append(
                f"{group.title}: rows have different sets of samples ({counts} a row, {common} in common). "
                "They are shown side by side, and their accuracies are not of the same questions."
            )
        missing = [entry.number for entry in entries if entry.number not in {row.entry.number for row in group.rows}]
        if missing:
            told.append(f"{group.title}: no answers yet of {_numbers(missing)}.")
    return told


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"row{'s' * (len(numbers) > 1)} {shown}" + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
